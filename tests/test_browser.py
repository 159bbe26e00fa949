"""In Chromium, as a person sees it: the index and a notebook in JupyterLab, and a report."""

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
from test_report import HOSTILE, results_of

from ftnb.papers import read_paper
from ftnb.report import write_report

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


def await_counts(page, path, seconds=300):
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


@pytest.fixture
def report(page, tmp_path):
    "A report in a tab of its own, without network; the tab, and what its console said."
    paper = read_paper("wang2012")
    results = results_of(paper, paper.tables["t2"], ["MR", "Subj"], rename=HOSTILE)
    for run in results["runs"].values():
        run["metrics"] = {"curve": [{"x": [1, 2, 3], "y": [70, 76, 78], "label": "NBSVM-bi"}]}
    index = write_report(results, tmp_path)[0]
    tab, said = page.context.browser.new_page(), []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    tab.on("request", lambda request: said.append(request.url) if "http" in request.url else None)
    tab.goto(index.as_uri())
    yield tab, said
    assert not said, said
    tab.close()


def test_a_report_is_wide_enough_and_no_wider(report):
    tab, _ = report
    for width in (1280, 400):
        tab.set_viewport_size({"width": width, "height": 900})
        over = tab.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert over <= 0, f"{over} pixels too wide at {width}"
        tab.screenshot(path=SHOTS / f"report-{width}.png", full_page=True)
    tab.set_viewport_size({"width": 1280, "height": 900})
    inner = tab.locator(".wide").evaluate_all("all => all.map(e => e.scrollWidth - e.clientWidth)")
    assert inner == [0, 0, 0, 0], "on a laptop, no table is to be pushed to and fro"
    tab.emulate_media(media="print")
    tab.set_viewport_size({"width": 1030, "height": 720})  # A4 on its side, without margins
    tab.screenshot(path=SHOTS / "report-print.png", full_page=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1030
    assert tab.locator("svg").count() == 2 and tab.locator("figure").first.is_visible()


LIST = "table[aria-labelledby='list-wang2012-t2']"


def published(tab) -> list[str]:
    "The fourth column of the list of cells, as it is shown."
    return tab.locator(f"{LIST} tbody tr > :nth-child(4)").all_inner_texts()


def test_a_click_and_a_key_sort_the_cells_of_a_report(report):
    tab, _ = report
    before = published(tab)
    header = tab.locator(f"{LIST} th:has(button:text-is('published'))")
    header.locator("button").click()
    rising = published(tab)
    numbers = [float(t.split()[0]) for t in rising if t != "–"]
    printed = next(iter(read_paper("wang2012").tables.values())).published
    assert numbers == sorted(numbers) and rising != before
    assert len(numbers) == sum(len(row) for row in printed.values())
    assert rising[-2:] == ["–", "–"], "what is not there goes last"
    assert header.get_attribute("aria-sort") == "ascending"
    header.locator("button").focus()
    tab.keyboard.press("Enter")
    falling = [float(t.split()[0]) for t in published(tab)[:-2]]
    assert falling == numbers[::-1] and header.get_attribute("aria-sort") == "descending"
    tab.locator(f"{LIST} th button").first.click()
    assert header.get_attribute("aria-sort") is None, "one header at a time"


def test_a_number_of_a_report_leads_to_its_run(report):
    tab, _ = report
    tab.locator(".grid td a").first.click()
    row = tab.locator("tr:target")
    assert row.count() == 1 and row.locator("th").inner_text() == "MNB-uni"
    row.locator("td a").last.click()
    run = tab.locator(".run:target")
    assert "ftnb verify" in run.inner_text() and "seeds" in run.inner_text()


def test_a_script_in_a_report_that_is_not_ours_is_refused(report):
    tab, said = report
    tab.evaluate("document.body.append(Object.assign(document.createElement('script'), "
                 "{textContent: 'window.evil = 1'}))")
    assert tab.evaluate("window.evil") is None
    assert len(said) == 1 and "Content Security Policy" in said.pop()
