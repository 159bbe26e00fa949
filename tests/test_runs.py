"""Runs of notebooks: bad input, failures, two at a time, killed in the middle."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from ftnb import cli, runs
from ftnb.core import UserError
from ftnb.runs import NotebookFailed, run_notebook

BODY = """from ftnb.runs import record
record(double=2 * number, seeds=[seed], data={"toy": "aa"}, salt=hash("word"))"""
SCRIPT = """import sys
from ftnb.runs import run_notebook
print(run_notebook(sys.argv[1], {"number": int(sys.argv[3])}, out=sys.argv[2]))"""


def notebook(folder: Path, body: str = BODY, name: str = "toy.ipynb") -> Path:
    defaults = new_code_cell("number = 3\nseed = 1", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[defaults, new_code_cell(body)]), folder / name)
    return folder / name


def start(path: Path, out: Path, number: int = 0) -> subprocess.Popen:
    "A run in a process of its own."
    command = [sys.executable, "-c", SCRIPT, path, out, str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    "The folders of two runs that were made at the same time, and their home."
    home = tmp_path_factory.mktemp("pair")
    path, out = notebook(home), home / "runs"
    processes = [start(path, out, number) for number in (5, 6)]
    said = [p.communicate(timeout=120) for p in processes]
    assert all(p.returncode == 0 for p in processes), said
    return [Path(stdout.strip()) for stdout, _ in said], out


def test_two_runs_at_the_same_time_do_not_collide(pair):
    runs, out = pair
    assert names(out) == sorted(run.name for run in runs) and len(set(runs)) == 2
    assert all(names(run) == ["record.json", "toy.ipynb"] for run in runs)
    doubles = [json.loads((r / "record.json").read_text())["metrics"]["double"] for r in runs]
    assert doubles == [10, 12]


def test_the_record_holds_what_a_repetition_needs(pair):
    first, second = (json.loads((run / "record.json").read_text()) for run in pair[0])
    assert set(first) == {"notebook", "source_digest", "parameters", "seeds", "data", "metrics",
                          "git", "environment", "seconds", "peak_memory_mb", "energy_joules",
                          "finished"}
    assert first["notebook"] == "toy.ipynb" and re.fullmatch("[0-9a-f]{64}", first["source_digest"])
    assert first["parameters"] == {"number": 5, "seed": 1}, "defaults are recorded too"
    assert first["seeds"] == [1] and first["data"] == {"toy": "aa"}
    assert first["metrics"]["salt"] == second["metrics"]["salt"], "kernels share the hash salt"
    assert set(first["git"]) == {"commit", "dirty"}
    assert first["environment"]["versions"]["numpy"] and first["environment"]["threads"] >= 1
    assert first["seconds"] > 0 and first["finished"].endswith("+00:00")
    assert first["source_digest"] == second["source_digest"]
    assert str(Path.home()) not in json.dumps(first), "no path of this machine"


def test_the_executed_notebook_has_the_injected_values_and_no_noise(pair):
    executed = nbformat.read(pair[0][0] / "toy.ipynb", 4)
    injected = [c for c in executed.cells if "injected-parameters" in c.metadata.get("tags", [])]
    assert len(injected) == 1 and "number = 5" in injected[0].source
    streams = [o for c in executed.cells for o in c.outputs if o.output_type == "stream"]
    assert streams == []


def test_an_unknown_parameter_is_refused_before_anything_runs(tmp_path):
    path = notebook(tmp_path)
    with pytest.raises(UserError, match="'nubmer'.*did you mean 'number'.*number, seed") as refused:
        run_notebook(path, {"nubmer": 1}, out=tmp_path / "runs")
    assert "\n" not in str(refused.value) and not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="no parameter 'zzz'; it has: number, seed"):
        run_notebook(path, {"zzz": 1}, out=tmp_path / "runs")


def test_an_unknown_size_is_refused_with_the_sizes_there_are(tmp_path):
    path = notebook(tmp_path)
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes" / "toy.big.yaml").write_text("number: 50")
    with pytest.raises(UserError, match="no size 'huge'; there are: smoke, big"):
        run_notebook(path, size="huge", out=tmp_path / "runs")
    (tmp_path / "sizes" / "toy.odd.yaml").write_text("nubmer: 50")
    with pytest.raises(UserError, match="did you mean 'number'"):
        run_notebook(path, size="odd", out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("value", [Path("a"), {1, 2}, [float("inf")], {"a": {("b",): 1}}])
def test_a_parameter_without_a_json_form_is_refused_before_anything_runs(tmp_path, value):
    with pytest.raises(UserError, match="'number' holds.*no JSON form"):
        run_notebook(notebook(tmp_path), {"number": value}, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_numbers_of_numpy_are_parameters(tmp_path):
    run = run_notebook(notebook(tmp_path), {"number": np.int64(4)}, out=tmp_path / "runs")
    facts = json.loads((run / "record.json").read_text())
    assert facts["parameters"]["number"] == 4 and facts["metrics"]["double"] == 8


def test_a_process_that_dies_is_kept_as_a_failure(tmp_path):
    body = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(NotebookFailed, match="out of memory") as failed:
        run_notebook(notebook(tmp_path, body), out=tmp_path / "runs")
    assert names(tmp_path / "runs") == ["failed"] and failed.value.path.exists()


def test_a_folder_inside_another_checkout_has_no_commit(tmp_path):
    "A package that is installed below somebody's repository is not part of it."
    (tmp_path / "installed").mkdir()
    (tmp_path / "theirs.txt").write_text("tracked")
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "x")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    assert runs.git_state(tmp_path)["commit"]
    assert runs.git_state(tmp_path / "installed") == {"commit": None, "dirty": None}


@pytest.mark.parametrize("text, told", [
    ("number: [1", "cannot be read as YAML"), ("- 1", "name: value"), ("1: 2", "name: value"),
    ("number: 1e-3", "write 1.0e-3"), ("number: [2.5e3]", "write 2.5e\\+3"),
])  # fmt: skip
def test_a_size_file_that_is_wrong_is_one_line(tmp_path, text, told):
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes" / "toy.odd.yaml").write_text(text)
    with pytest.raises(UserError, match=told) as refused:
        runs.size_parameters(notebook(tmp_path), "odd")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["99_absent", "absent.ipynb", "", "../etc", "/no/04_runs.ipynb"])
def test_an_unknown_notebook_is_refused_with_the_names_there_are(tmp_path, name):
    with pytest.raises(UserError, match="no notebook.*runs.*train") as refused:
        run_notebook(name, out=tmp_path / "runs")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 3}', "\x00"])
def test_a_file_that_is_no_notebook_is_refused(tmp_path, content):
    (tmp_path / "odd.ipynb").write_text(content)
    with pytest.raises(UserError, match="cannot be read as a notebook"):
        run_notebook(tmp_path / "odd.ipynb", out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_failing_notebook_is_kept_with_its_traceback_and_nothing_else(tmp_path):
    path, out = notebook(tmp_path, "number / 0"), tmp_path / "runs"
    before = path.read_bytes()
    with pytest.raises(NotebookFailed, match="ZeroDivisionError") as failed:
        run_notebook(path, out=out)
    kept = failed.value.path
    assert failed.value.ename == "ZeroDivisionError" and kept.name == "toy.ipynb"
    assert names(out) == ["failed"] and names(out / "failed") == [kept.parent.name]
    assert names(kept.parent) == ["toy.ipynb"], "a failure has no record"
    errors = [o for c in nbformat.read(kept, 4).cells for o in c.get("outputs", [])
              if o.output_type == "error"]
    assert "division by zero" in "".join(errors[0].traceback)
    assert path.read_bytes() == before, "the source is left alone"


def test_a_user_error_in_the_kernel_is_a_user_error_here(tmp_path):
    body = "from ftnb.core import UserError\nraise UserError('no column x; there are: a, b')"
    with pytest.raises(UserError) as refused:
        run_notebook(notebook(tmp_path, body), out=tmp_path / "runs")
    assert str(refused.value) == "no column x; there are: a, b"
    assert names(tmp_path / "runs") == ["failed"]


def test_a_run_killed_in_the_middle_leaves_nothing_that_looks_like_a_run(tmp_path):
    body = "import os, time\nopen('started', 'w').write(str(os.getpid()))\ntime.sleep(60)"
    out, started = tmp_path / "runs", tmp_path / "started"
    process = start(notebook(tmp_path, body), out)
    try:
        for _ in range(600):
            if (started.exists() and started.read_text()) or process.poll() is not None:
                break
            time.sleep(0.1)
        assert process.poll() is None, process.communicate()
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    finally:
        process.kill()
        process.communicate()
        if started.exists():  # the kernel, if it has not noticed yet that it is alone
            try:
                os.kill(int(started.read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass
    assert len(names(out)) == 1 and names(out)[0].startswith(".draft-")
    assert not list(out.rglob("record.json"))


def test_ftnb_run_with_a_size_and_a_parameter(tmp_path):
    path = notebook(tmp_path)
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes" / "toy.big.yaml").write_text("number: 50\nseed: 8")
    words = ["run", path, "--size", "big", "-p", "seed=9", "--out", tmp_path / "runs", "--json"]
    answer = CliRunner().invoke(cli.app, [str(w) for w in words])
    assert answer.exit_code == 0, answer.output
    facts = json.loads(answer.stdout)
    assert facts["parameters"] == {"number": 50, "seed": 9}, "a value given wins over the size's"
    assert facts["metrics"]["double"] == 100
    assert names(Path(facts["folder"])) == ["record.json", "toy.ipynb"]


def test_measured_results_are_kept_records(tmp_path):
    "A run's record is kept under a name; a folder without one is refused."
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="no record.json"):
        runs.keep_measured(tmp_path / "run", "x", folder=tmp_path / "measured")
    (tmp_path / "run" / "record.json").write_text('{"metrics": {"accuracy": 0.5}}')
    runs.keep_measured(tmp_path / "run", "x", folder=tmp_path / "measured")
    assert runs.measured("x", folder=tmp_path / "measured")["metrics"] == {"accuracy": 0.5}
