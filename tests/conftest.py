"""Fixtures that several test files use: the data mirror, a private cache, a file server."""

import http.server
import os
import re
import signal
import threading
from pathlib import Path

import pytest

# A run in the background starts with Ctrl-C ignored, and its children inherit that: listen again.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def mirror() -> Path:
    "The data mirror named by FTNB_MIRROR; tests that need it are skipped without."
    folder = os.environ.get("FTNB_MIRROR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FTNB_MIRROR is not set: no data mirror")
    return Path(folder)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    "An empty cache of this test alone, and no mirror."
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("FTNB_MIRROR", raising=False)
    monkeypatch.delenv("FTNB_OFFLINE", raising=False)
    return tmp_path / "cache"


class FileServer(http.server.ThreadingHTTPServer):
    """Serves `files` (path -> bytes) on the loopback and logs (path, Range header).

    `cuts[path]` is a list: the n-th answer stops after so many bytes (None: whole).
    `status[path]` answers with that status alone. `ranges = False` ignores Range.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files, self.cuts, self.status, self.ranges, self.log = {}, {}, {}, True, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, path = self.server, self.path.lstrip("/")
        asked = self.headers.get("Range")
        server.log.append((path, asked))
        body = server.files.get(path, b"")
        start = int(re.match(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        status = server.status.get(path) or (
            404 if path not in server.files else 206 if start else 200
        )
        if status == 206 and start >= len(body):
            status = 416
        self.send_response(status)
        content = body[start:] if status in (200, 206) else b""
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        cut = server.cuts[path].pop(0) if server.cuts.get(path) else None
        self.wfile.write(content if cut is None else content[:cut])
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    "A FileServer on the loopback."
    server = FileServer()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def pytest_collection_finish(session):
    if not session.config.option.collectonly:
        from test_notebooks import begin

        begin(session.items)


def pytest_sessionfinish():
    from test_notebooks import stop

    stop()
