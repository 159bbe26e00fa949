"""Downloads over the loopback: resumed, verified, safe for two processes; hostile archives."""

import contextlib
import errno
import gzip
import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile

import pytest

from ftnb import data, files
from ftnb.core import UserError

BODY = bytes(range(256)) * 800  # 204,800 bytes: more than three pieces of 64 kB
SHA = hashlib.sha256(BODY).hexdigest()


def get(server, tmp_path, **options):
    server.files.setdefault("a.bin", BODY)
    options = {"size": len(BODY), "sha256": SHA, "wait": 0.01, **options}
    return files.download(f"{server.url}/a.bin", tmp_path / "a.bin", **options)


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_whole_file_renamed_into_place(server, tmp_path):
    assert get(server, tmp_path).read_bytes() == BODY
    assert not (tmp_path / "a.bin.part").exists()
    get(server, tmp_path)
    assert len(server.log) == 1, "a file that is there is not fetched again"


def test_resumes_after_breaks_and_fetches_each_byte_once(server, tmp_path):
    server.cuts["a.bin"] = [100_000, 4_800]
    assert get(server, tmp_path).read_bytes() == BODY
    assert [r for _, r in server.log] == [None, "bytes=100000-", "bytes=104800-"]


def test_resumes_in_a_second_call(server, tmp_path):
    server.cuts["a.bin"] = [150_000]
    with pytest.raises(UserError) as e:
        get(server, tmp_path, tries=1)
    assert "150,000 of 204,800" in one_line(e) and "run again" in str(e.value)
    assert (tmp_path / "a.bin.part").stat().st_size == 150_000
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.log[-1][1] == "bytes=150000-"


def test_without_a_digest_a_second_call_starts_anew(server, tmp_path):
    "The file may have changed in between, and nothing could tell."
    server.cuts["a.bin"] = [150_000]
    with pytest.raises(UserError, match="run again$"):
        get(server, tmp_path, tries=1, sha256=None)
    server.files["a.bin"] = BODY[::-1]
    assert get(server, tmp_path, sha256=None).read_bytes() == BODY[::-1]
    assert server.log[-1][1] is None


def test_a_part_that_is_all_of_a_file_of_unknown_size_is_kept(tmp_path, monkeypatch):
    class Answer(contextlib.nullcontext):
        status_code, headers = 416, {"Content-Range": f"bytes */{len(BODY)}"}

        def __enter__(self):
            return self

    monkeypatch.setattr(files, "_request", lambda url, start: Answer())
    (tmp_path / "a.bin.part").write_bytes(BODY)
    assert files.download("http://x/a.bin", tmp_path / "a.bin", sha256=SHA).read_bytes() == BODY


def test_truncated_without_known_size_is_noticed(server, tmp_path):
    server.cuts["a.bin"] = [10, 0, 0, 0]
    with pytest.raises(UserError, match="broke off after 10"):
        get(server, tmp_path, size=None, sha256=None)


def test_short_file_at_the_source(server, tmp_path):
    server.files["a.bin"] = BODY[:1000]
    with pytest.raises(UserError) as e:
        get(server, tmp_path, tries=2)
    assert "1,000 of 204,800" in one_line(e)
    assert (tmp_path / "a.bin.part").exists()


def test_server_that_ignores_ranges(server, tmp_path):
    server.ranges = False
    (tmp_path / "a.bin.part").write_bytes(b"x" * 70_000)
    assert get(server, tmp_path).read_bytes() == BODY


def test_part_longer_than_the_file_is_discarded(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"x" * 300_000)
    assert get(server, tmp_path).read_bytes() == BODY
    (tmp_path / "a.bin").unlink()
    (tmp_path / "a.bin.part").write_bytes(b"x" * 300_000)
    assert get(server, tmp_path, size=None).read_bytes() == BODY, "416, then from the start"


def test_complete_part_is_verified_without_a_request(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(BODY)
    assert get(server, tmp_path).read_bytes() == BODY and server.log == []


def test_digest_mismatch_removes_the_file(server, tmp_path):
    server.files["a.bin"] = BODY[:-1] + b"?"
    with pytest.raises(UserError) as e:
        get(server, tmp_path)
    assert "not the file expected" in one_line(e)
    assert sorted(p.suffix for p in tmp_path.iterdir()) in ([], [".lock"])


def test_server_errors_are_retried_and_404_is_not(server, tmp_path):
    server.status["a.bin"] = 503
    with pytest.raises(files.Unreachable, match="503"):
        get(server, tmp_path, tries=3)
    assert len(server.log) == 3
    server.status["a.bin"] = 404
    with pytest.raises(files.Unreachable, match="a.bin.*404"):
        get(server, tmp_path, tries=3)
    assert len(server.log) == 4


def test_no_space(server, tmp_path, monkeypatch):
    def full(folder, n_bytes):
        raise UserError("no space")

    monkeypatch.setattr(files, "require_disk", full)
    with pytest.raises(UserError, match="no space"):
        get(server, tmp_path)


def test_two_processes_fetch_once(server, tmp_path):
    server.files["a.bin"] = BODY
    code = (
        "import sys; from ftnb.files import download; "
        f"download(sys.argv[1], sys.argv[2], {len(BODY)}, {SHA!r})"
    )
    command = [sys.executable, "-c", code, f"{server.url}/a.bin", str(tmp_path / "a.bin")]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [p.wait(timeout=60) for p in both] == [0, 0]
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [r for _, r in server.log] == [None], "the second found the first one's file"


# --- lookup: mirror, cache, download ---


def toy(server, body=b"0 bad\n1 good\n" * 40, **changes):
    server.files["toy.txt"] = body
    file = {
        "path": "toy.txt",
        "url": f"{server.url}/toy.txt",
        "bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        **changes,
    }
    return {
        "toy": {
            "task": "t",
            "language": "en",
            "licence": "CC0",
            "licence_class": "clear",
            "citation": "c",
            "label_names": ["bad", "good"],
            "label_keys": ["0", "1"],
            "reader": "lines",
            "options": {"sep": " ", "label": "first"},
            "files": [file],
            "duplicates": "keep",
            "parts": [{"file": "toy.txt", "split": "all"}],
        }
    }


@pytest.fixture
def toys(server, cache, monkeypatch):
    def use(entries):
        monkeypatch.setattr(data, "_catalogue", lambda: entries)

    use(toy(server))
    return use


def test_download_then_cache(server, toys, cache):
    assert data.verify("toy")[0]["state"] == "absent"
    path = data.fetch("toy")["toy.txt"]
    assert path.is_relative_to(cache) and data.verify("toy")[0]["state"] == "ok"
    data.fetch("toy")
    assert len(server.log) == 1


def test_mirror_comes_first_and_is_checked(server, toys, tmp_path, monkeypatch):
    (tmp_path / "m/toy").mkdir(parents=True)
    (tmp_path / "m/toy/toy.txt").write_bytes(server.files["toy.txt"])
    monkeypatch.setenv("FTNB_MIRROR", str(tmp_path / "m"))
    assert data.fetch("toy")["toy.txt"].is_relative_to(tmp_path / "m") and server.log == []
    (tmp_path / "m/toy/toy.txt").write_bytes(b"0 other\n")
    with pytest.raises(UserError) as e:
        data.fetch("toy")
    assert "data mirror" in one_line(e) and data.verify("toy")[0]["state"].startswith("8 bytes")


def test_spoilt_cache_is_fetched_again(server, toys):
    path = data.fetch("toy")["toy.txt"]
    path.write_bytes(b"x" * path.stat().st_size)
    assert "sha256" in data.verify("toy")[0]["state"]
    assert data.fetch("toy")["toy.txt"].read_bytes() == server.files["toy.txt"]


def test_no_network_and_no_mirror_names_the_remedy(toys, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(files.Unreachable) as e:
        data._obtain("toy", data._entry("toy")["files"][0], tries=1)
    message = one_line(e)
    assert "FTNB_MIRROR" in message and "toy/toy.txt" in message and "520 bytes" in message


def test_offline_switch_asks_nobody(toys, server, monkeypatch):
    monkeypatch.setenv("FTNB_OFFLINE", "1")
    with pytest.raises(files.Unreachable, match="FTNB_OFFLINE"):
        data.load("toy")
    assert server.log == []


def test_url_without_digest_only_if_marked(server, toys):
    entries = toy(server)
    del entries["toy"]["files"][0]["sha256"]
    toys(entries)
    with pytest.raises(UserError, match="not marked unverified"):
        data.fetch("toy")
    entries["toy"]["files"][0]["unverified"] = True
    assert any("unverified" in note for note in data.load("toy").notes)
    assert data.verify("toy")[0]["state"] == "unverified"


def test_licence_is_told_once(toys, server, caplog):
    entries = toy(server)
    entries["toy"]["licence_class"] = "research"
    toys(entries)
    data._told.discard("toy")
    assert all("licence research: CC0" in data.load("toy").notes for _ in range(2))
    assert sum("licence research" in r.message for r in caplog.records) == 1


# --- archives ---


def zipped(path, *entries):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = mode << 16, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def tarred(path, *infos):
    with tarfile.open(path, "w:gz") as archive:
        for name, content, kind, link in infos:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "..\\x", "C:\\x", "\\\\host\\x"])
def test_names_that_leave_the_folder(tmp_path, name):
    for path in (
        zipped(tmp_path / "h.zip", ("ok.txt", b"1", 0), (name, b"x", 0)),
        tarred(tmp_path / "h.tar.gz", (name, b"x", tarfile.REGTYPE, "")),
    ):
        with pytest.raises(UserError, match="unsafe name"):
            files.unpack(path, tmp_path / "out")
        assert not (tmp_path / "out").exists(), "nothing is written before all names are checked"


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
)
def test_links_and_devices(tmp_path, kind):
    path = tarred(tmp_path / "h.tar.gz", ("link", b"", kind, "/etc/passwd"))
    with pytest.raises(UserError, match="no plain file"):
        list(files.members(path))


def test_symlink_in_a_zip(tmp_path):
    path = zipped(tmp_path / "h.zip", ("link", b"/etc/passwd", stat.S_IFLNK))
    with pytest.raises(UserError, match="no plain file"):
        list(files.members(path))


def test_link_already_in_the_folder_is_not_followed(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    os.symlink(tmp_path / "elsewhere", tmp_path / "out/sub")
    with pytest.raises(UserError, match="outside"):
        files.unpack(zipped(tmp_path / "h.zip", ("sub/x", b"1", 0)), tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_bombs(tmp_path):
    bomb = bytes(5_000_000)
    zip_bomb = zipped(tmp_path / "b.zip", ("a", bomb, 0), ("b", bomb, 0))
    tar_bomb = tarred(tmp_path / "b.tar.gz", ("a", bomb, tarfile.REGTYPE, ""))
    for path, limit in ((zip_bomb, 9_000_000), (tar_bomb, 4_000_000)):
        with pytest.raises(UserError, match="unpacks to more"):
            list(files.members(path, limit=limit))
    with pytest.raises(UserError, match="unpacks to more"):
        files.gunzip(gzip.compress(bomb), limit=1_000_000)


def test_broken_archives(tmp_path):
    whole = zipped(tmp_path / "h.zip", ("a", os.urandom(9000), 0)).read_bytes()
    (tmp_path / "h.zip").write_bytes(whole[:4000])
    (tmp_path / "h.tar.gz").write_bytes(gzip.compress(os.urandom(9000))[:4000])
    for name in ("h.zip", "h.tar.gz"):
        with pytest.raises(UserError, match="not a whole archive"):
            list(files.members(tmp_path / name))
    with pytest.raises(UserError, match="gzip"):
        files.gunzip(gzip.compress(b"x" * 9000)[:-12])


def test_a_bad_archive_writes_nothing(tmp_path):
    bomb = zipped(tmp_path / "b.zip", ("a", b"1", 0), ("b", bytes(5_000_000), 0))
    both = zipped(tmp_path / "c.zip", ("a", b"1", 0), ("a/b", b"2", 0))
    for path, told in ((bomb, "unpacks to more"), (both, "as a file and as a folder")):
        with pytest.raises(UserError, match=told):
            files.unpack(path, tmp_path / "out", limit=1_000_000)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["b.zip", "c.zip"]
    (tmp_path / "out" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match="in the way"):
        files.unpack(zipped(tmp_path / "d.zip", ("z", b"1", 0), ("a", b"2", 0)), tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["a"]


def test_archives_that_cannot_be_read_are_one_line(tmp_path):
    whole = zipped(tmp_path / "A.ZIP", ("a", b"1" * 99, 0))
    assert list(files.members(whole)) == [("a", b"1" * 99)], "capitals in the suffix"
    raw = bytearray(whole.read_bytes())
    flags = raw.index(b"PK\x01\x02") + 8
    locked = bytes(raw[:6] + b"\1" + raw[7:flags] + b"\1" + raw[flags + 1 :])
    method = bytes(raw[:8] + b"\x63" + raw[9 : flags + 2] + b"\x63" + raw[flags + 3 :])
    for name, content, told in (("l.zip", locked, "encrypted"), ("m.zip", method, "compression"),
                                ("t.tar", b"no archive" * 99, "not a whole archive")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=told) as e:
            list(files.members(tmp_path / name))
        one_line(e)
    with pytest.raises(UserError, match="no file"):
        list(files.members(tmp_path / "absent.zip"))


@pytest.mark.parametrize("name, content, told", [
    ("a.csv", b"\xef\xbb\xbf", "is empty"), ("a.csv.gz", gzip.compress(b""), "is empty"),
    ("a.csv.GZ", gzip.compress(b" \n"), "is empty"), ("a.json", b"[]", "is empty"),
    ("a.json", b'{"text": ["a"], "label": [1]}', "a list of objects"),
    ("a.json", b'{\n"text": "a",\n"label": 1}', "a list of objects"),
    ("a.json", b"[" * 100_000, "nested too deeply"),
    ("a.jsonl", b'{"text": ' + b"[" * 100_000, "line 1: not a table.*nested too deeply"),
])  # fmt: skip
def test_tables_without_rows_are_one_line(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told) as e:
        files.read_columns(tmp_path / name, None, [])
    one_line(e)


def test_interrupt_keeps_what_has_come(server, tmp_path, monkeypatch):
    @contextlib.contextmanager
    def impatient(name):
        def report(done, total):
            raise KeyboardInterrupt

        yield report

    with monkeypatch.context() as patch:
        patch.setattr(files, "_bar", impatient)
        with pytest.raises(KeyboardInterrupt):
            get(server, tmp_path)
    assert (tmp_path / "a.bin.part").stat().st_size == 1 << 16
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.log[-1][1] == f"bytes={1 << 16}-"


def test_a_mirror_that_is_not_there_is_told(toys, monkeypatch, tmp_path):
    monkeypatch.setenv("FTNB_MIRROR", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no folder"):
        data.load("toy")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_to_is_one_line(server, tmp_path, monkeypatch, code):
    def refuse(path, *args, **options):
        raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with pytest.raises(UserError) as e:
        get(server, tmp_path)
    assert "FTNB_CACHE" in one_line(e) and os.strerror(code) in str(e.value)
