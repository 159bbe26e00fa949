"""JupyterLab in Chromium, as a learner sees it: the index, and a notebook run top to bottom."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "runs" / "browser"
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and not os.environ.get("FTNB_BROWSER_REQUIRED"),
        reason="Chromium is not installed; on Debian: apt install chromium chromium-driver",
    ),
]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab on the loopback address, over a copy of what a checkout holds."
    folder = tmp_path_factory.mktemp("lab")
    for name in ("nbs", "data"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "settings.ini", folder)
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
               f"--port={port}", "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
               "--LabApp.extension_manager=readonly", "--LabApp.news_url=None",
               "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    with open(folder / "lab.log", "w") as log:
        environment = os.environ | settings(folder)
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        await_server(f"http://127.0.0.1:{port}/api", server, folder / "lab.log")
        yield f"http://127.0.0.1:{port}", folder
    finally:
        server.terminate()
        server.wait(20)


def settings(folder) -> dict:
    return {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "OMP_NUM_THREADS": "1",
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "FTNB_MIRROR": ""}


def await_server(url, server, log, seconds=60):
    for _ in range(seconds * 2):
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(log.read_text()[-2000:])


@pytest.fixture(scope="module")
def page():
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser.new_page(viewport={"width": 1300, "height": 1000})
        browser.close()


def open_notebook(page, url, title):
    page.goto(url)
    page.wait_for_selector(f".jp-Notebook h1:has-text('{title}')", timeout=90_000)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=90_000)


def test_the_index_opens_with_the_two_commands(lab, page):
    open_notebook(page, f"{lab[0]}/lab/tree/nbs/index.ipynb", "ftnb: fine-tuning notebooks")
    page.screenshot(path=SHOTS / "index.png")
    text = page.locator(".jp-Notebook").inner_text()
    assert text.index("make compare") < text.index("make test") < 400


def test_a_notebook_runs_from_top_to_bottom(lab, page):
    url, folder = lab
    open_notebook(page, f"{url}/lab/tree/nbs/00_core.ipynb?reset", "Seeds, devices, threads")
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    cells = await_counts(page, folder / "nbs" / "00_core.ipynb")
    page.screenshot(path=SHOTS / "core.png")
    outputs = [output for cell in cells for output in cell.outputs]
    assert not ["\n".join(o.traceback) for o in outputs if o.output_type == "error"]
    assert any("worker_generators_solution: correct" in o.get("text", "") for o in outputs)
    assert [o for o in outputs if "image/png" in o.get("data", {})], "the figure is missing"


def await_counts(page, path, seconds=120):
    "Save every few seconds until each code cell of the saved file has been executed; the cells."
    for _ in range(seconds // 3):
        page.wait_for_timeout(3000)
        page.keyboard.press("Control+s")
        page.wait_for_timeout(500)
        cells = code_cells(path)
        failed = any(o.output_type == "error" for c in cells for o in c.outputs)
        if cells and (failed or all(c.execution_count for c in cells)):
            return cells
    page.screenshot(path=SHOTS / "stuck.png")
    raise AssertionError(f"cells were not executed within {seconds} s; see runs/browser/stuck.png")


def code_cells(path) -> list:
    "The code cells of a notebook; none while the server is writing it."
    try:
        return [c for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
    except nbformat.reader.NotJSONError:
        return []
