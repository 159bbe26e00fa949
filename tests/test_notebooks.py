"""Papermill runs every notebook at smoke size, with the network off, beside the other tests."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from outputs import difference, differences

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
RUN = """import sys
from ftnb.runs import run_notebook
print(run_notebook(sys.argv[1], out=sys.argv[2]))"""


def execute(notebook: Path) -> subprocess.CompletedProcess:
    "One notebook in a process of its own: one thread, no mirror, no network; kept in runs/."
    offline = os.pathsep.join([str(ROOT / "tests" / "offline"), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": offline, "FTNB_MIRROR": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN, notebook, ROOT / "runs" / "test" / notebook.stem]
    environment = os.environ | settings
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)


BACKGROUND = {}  # path -> future, since all tests were collected
FREE = threading.Semaphore(1)  # one notebook beside the other tests, two in these


def begin(items):
    "Start the notebooks that were asked for; the other tests leave a core idle."
    wanted = [i.callspec.params["path"] for i in items if i.name.startswith("test_notebook[")]
    pool = ThreadPoolExecutor(2)
    # the long ones first, so that no core waits for the last
    for path in sorted(wanted, key=lambda p: p.stem not in SLOW):
        BACKGROUND[path] = pool.submit(execute_when_free, path)


def execute_when_free(notebook: Path) -> subprocess.CompletedProcess:
    with FREE:
        return execute(notebook)


def stop():
    "Start no more notebooks: the tests have ended or were interrupted."
    for future in BACKGROUND.values():
        future.cancel()


@pytest.fixture(scope="module")
def executed():
    "All notebooks that were asked for, from now on two at a time."
    FREE.release()
    yield BACKGROUND
    stop()


SLOW = ("39_compare", "26_parallel", "22_bert", "30_finetune", "20_lm", "23_pretrain")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path, executed):
    ran = executed[path].result()
    assert ran.returncode == 0, f"{path.name} failed; it is kept in runs/\n{ran.stderr[-3000:]}"
    copy = Path(ran.stdout.strip().splitlines()[-1]) / path.name
    found = differences(nbformat.read(path, 4), nbformat.read(copy, 4))
    assert not found, "the committed outputs differ: `make render`\n" + "\n".join(found)


def test_numbers_are_compared_with_a_tolerance_and_words_exactly():
    assert difference("accuracy 0.912 of 1,000", "accuracy 0.913 of 1,000", 0.02) is None
    assert difference("accuracy 0.912", "accuracy 0.812", 0.02)
    assert difference("accuracy 0.9", "precision 0.9", 0.02)
    assert difference("1e-7", "-2e-7", 0.02) is None
    assert difference("[1, 2]", "[1, 2, 3]", 0.02)


def test_the_network_is_off():
    address = "http://192.0.2.1/"  # reserved for documentation
    code = f"import requests; requests.get({address!r}, timeout=5)"
    offline = {"PYTHONPATH": str(ROOT / "tests" / "offline")}
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | offline,
                         capture_output=True, text=True)
    assert ran.returncode != 0 and "switched off" in ran.stderr
