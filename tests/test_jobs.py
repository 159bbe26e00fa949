"""Many runs: what names them, what keeps them, and what they survive."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from ftnb import jobs
from ftnb.core import UserError
from ftnb.jobs import (
    Store,
    explain,
    imported_modules,
    ingredients,
    key_of,
    make_job,
    modules_behind,
    parse_executor,
    run_job,
    run_jobs,
    sets_named,
)

DEFAULTS = 'n = 1\nseed = 0\nwait = 0.0\nlog = ""\nset_name = ""'
BODY = """import time
from random import Random
from ftnb.runs import record
time.sleep(wait)
if log:
    with open(log, "a") as f:
        f.write(f"{n}\\n")
assert n < 1000, "too many"
record(drawn=Random(f"{n} {seed}").random(), seeds=[seed])"""


def notebook(folder: Path, body=BODY, prose="A toy.", name="toy") -> Path:
    tagged = new_code_cell(DEFAULTS, metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell(prose), tagged, new_code_cell(body)]
    nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


@pytest.fixture
def toy(tmp_path):
    return notebook(tmp_path)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def key(job):
    return key_of(ingredients(job))


def drawn(store, outcomes):
    return {k: store.record(k)["metrics"]["drawn"] for k in outcomes}


def test_imports_are_found_wherever_they_stand():
    source = """
%matplotlib inline
import ftnb.bow
from ftnb import vectors
from ftnb.core import UserError
import numpy
def f():
    from ftnb.study import plan
"""
    assert imported_modules(source) == {"bow", "vectors", "core", "study"}
    assert {"core", "text", "bow"} <= set(modules_behind("from ftnb.bow import naive_bayes"))
    assert modules_behind("import numpy") == {}


def test_sets_are_found_in_code_and_parameters(toy):
    assert sets_named('x = load("sst2")') == {"sst2"}
    parts = ingredients(make_job(toy, {"set_name": "trec6", "log": ["no", {"set": "hotline"}]}))
    assert {p for p in parts if p.startswith("data/")} == {"data/hotline", "data/trec6"}


def test_what_changes_the_key(tmp_path, toy, monkeypatch):
    first = key(make_job(toy))
    notebook(tmp_path, prose="Other words.")
    assert key(make_job(toy)) == first, "prose decides nothing"
    assert key(make_job(toy, {"n": 1})) == first, "a default given is the default"
    others = [dict(parameters={"n": 2}), dict(threads=2), dict(data=("sst2",)),
              dict(parameters={"set_name": "sst2"})]  # fmt: skip
    found = {first, *(key(make_job(toy, **other)) for other in others)}
    notebook(tmp_path, body=BODY + "\n1")
    found.add(key(make_job(toy)))
    monkeypatch.setattr(jobs, "installed", lambda: "other versions")
    found.add(key(make_job(toy)))
    assert len(found) == 7


def test_a_file_counts_by_its_content(tmp_path, toy):
    (tmp_path / "a.csv").write_text("one")
    (tmp_path / "b.csv").write_text("one")
    a, b = ({"log": str(tmp_path / f"{x}.csv")} for x in "ab")
    assert key(make_job(toy, a)) == key(make_job(toy, b))
    (tmp_path / "b.csv").write_text("two")
    assert key(make_job(toy, a)) != key(make_job(toy, b))


def test_a_folder_and_a_file_without_suffix_count_by_name(tmp_path, toy):
    path = tmp_path / "words"
    before = [key(make_job(toy, {"log": str(p)})) for p in (path, tmp_path)]
    path.write_text("one")
    assert before == [key(make_job(toy, {"log": str(p)})) for p in (path, tmp_path)]


def test_published_numbers_and_python_belong_to_the_key(tmp_path, toy, monkeypatch):
    toy = notebook(tmp_path, BODY + '\nread_paper("wang2012")', name="paper")
    parts = ingredients(make_job(toy, {"set_name": "kim2014"}))
    assert {"papers/wang2012.toml", "papers/kim2014.toml"} <= parts.keys()
    monkeypatch.setattr(jobs.platform, "python_version", lambda: "2.7")
    now = ingredients(make_job(toy, {"set_name": "kim2014"}))
    assert [k for k in parts if parts[k] != now[k]] == ["versions"]


FLAKY = """with open(log, "a") as f:
    f.write("x")
from ftnb.runs import record
assert len(open(log).read()) > n, "not yet"
record(drawn=0.5, seeds=[seed])"""


@pytest.mark.parametrize("retries, state, tries", [(0, "failed", 1), (2, "done", 2)])
def test_a_run_that_fails_is_tried_again(tmp_path, store, retries, state, tries):
    flaky = notebook(tmp_path, FLAKY, name="flaky")
    asked = make_job(flaky, {"log": str(tmp_path / "log")})
    (outcome,) = run_jobs([asked], store, "local:1", retries=retries).values()
    assert outcome["state"] == state and (tmp_path / "log").read_text() == "x" * tries
    assert bool(store.record(outcome["key"])) == (state == "done")


def test_a_process_that_dies_is_a_failed_run(tmp_path, store):
    dead = notebook(tmp_path, "import os\nos.kill(os.getpid(), 9)", name="dead")
    outcome = run_job(make_job(dead), store)
    assert outcome["state"] == "failed" and "its process died" in outcome["reason"]
    assert (Path(outcome["path"]) / "failure.json").is_file() and not store.records()


def test_a_worker_with_other_data_or_versions_files_nothing(toy, store, monkeypatch):
    job = make_job(toy, {"set_name": "sst2"})
    parts = ingredients(job)
    task = jobs._task(job, parts, store) | {"round": "one"}
    files = [f | {"state": "corrupt"} for f in jobs.verify("sst2")]
    monkeypatch.setattr(jobs, "verify", lambda name: files)
    monkeypatch.setattr(jobs, "installed", lambda: "other versions")
    for change in ({}, {"parts": parts | {"notebook": "another"}}):
        with pytest.raises(UserError, match="sees another data/sst2,.* versions than") as e:
            jobs.work_on(task | change)
        assert ("notebook" in str(e.value).partition("than")[0]) == bool(change)
    assert not store.records()
    calls = []
    monkeypatch.setattr(jobs, "installed", lambda: calls.append(1) or "x")
    for _ in range(3):
        with pytest.raises(UserError):
            jobs.work_on(task | {"round": "two"})
    assert len(calls) == 1, "once in a round"


def test_a_set_that_arrives_changes_the_key(toy, cache, monkeypatch):
    job = make_job(toy, {"set_name": "sst2"})
    absent = ingredients(job)
    files = [f | {"state": "ok"} for f in jobs.verify("sst2")]
    monkeypatch.setattr(jobs, "verify", lambda name: files)
    here = ingredients(job)
    assert {k for k in here if here[k] != absent[k]} == {"data/sst2"}


def test_explain_says_what_changed(tmp_path, toy, store):
    job = make_job(toy)
    assert explain(job, store).startswith("new")
    run_job(job, store)
    assert explain(job, store).startswith("finished")
    notebook(tmp_path, body=BODY + "\n1")
    assert explain(make_job(toy), store) == "changed since the last run: notebook"
    assert explain(make_job(toy, {"n": 5}), store).startswith("new")


def test_reused_and_never_executed_twice(tmp_path, toy, store):
    job = make_job(toy, {"log": str(tmp_path / "log"), "wait": 0.5})
    states = []
    both = [threading.Thread(target=lambda: states.append(run_job(job, store)["state"]))
            for _ in range(2)]  # fmt: skip
    for t in both:
        t.start()
    for t in both:
        t.join()
    assert sorted(states) == ["done", "reused"]
    assert (tmp_path / "log").read_text() == "1\n"
    assert not list(store.folder.glob(".draft-*")) and not list((store.folder / "work").iterdir())


def test_a_failing_run_is_kept_with_its_command_and_stops_nobody(toy, store):
    asked = [make_job(toy, {"n": n}) for n in (1, 5000, 2)]
    outcomes = list(run_jobs(asked, store, "local:2").values())
    assert [o["state"] for o in outcomes] == ["done", "failed", "done"]
    kept = Path(outcomes[1]["path"])
    told = json.loads((kept / "failure.json").read_text())
    assert "AssertionError" in told["error"] and "n=5000" in told["command"]
    assert nbformat.read(kept / "toy.ipynb", 4)
    assert explain(asked[1], store) == "failed last time"
    command = told["command"].replace("ftnb", f"{sys.executable} -m ftnb.cli", 1)
    again = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=kept)
    assert again.returncode == 1 and "AssertionError" in again.stderr


def test_a_corrupt_record_is_set_aside_and_run_again(toy, store):
    job = make_job(toy)
    folder = store.path(run_job(job, store)["key"])
    (folder / "record.json").write_text('{"half": ')
    assert explain(job, store) == "its record cannot be read"
    assert run_job(job, store)["state"] == "done" and store.record(folder.name)
    assert [p.name for p in (store.folder / "failed").iterdir()][0].startswith(folder.name)


def test_a_full_disk_is_one_line_and_keeps_what_is_finished(toy, store, monkeypatch):
    run_job(make_job(toy), store)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(jobs, "perform", full)
    with pytest.raises(UserError, match="no space left.*kept") as e:
        run_job(make_job(toy, {"n": 2}), store)
    assert "\n" not in str(e.value) and len(store.records()) == 1
    assert not list(store.folder.glob(".draft-*"))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*--out"):
        Store(tmp_path / "file" / "store")

    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(UserError, match="Read-only file system"):
        Store(tmp_path / "other")


@pytest.mark.parametrize("text", ["", "local:0", "local:x", "dask://", "dask:1", "ray", "dask://a"])
def test_executors_that_do_not_exist(text):
    with pytest.raises(UserError, match="there are: local"):
        parse_executor(text)


def test_local_does_not_use_more_cores_than_there_are():
    cores = os.cpu_count()
    assert parse_executor("local").workers * 1 <= cores
    assert parse_executor("local", threads=cores).workers == 1


def test_a_scheduler_that_does_not_answer_is_one_line(toy, store):
    with pytest.raises(UserError, match="no Dask scheduler answers at tcp://127.0.0.1:9"):
        run_jobs([make_job(toy)], store, "dask://127.0.0.1:9")


def test_a_worker_with_other_code_is_refused():
    class Client:
        def run(self, state):
            return {"tcp://a": state(), "tcp://b": state() | {"torch": "0.1"}}

    with pytest.raises(UserError, match="tcp://b differs: torch 0.1 there"):
        jobs.check_workers(Client())


def test_slurm_job_script_without_a_cluster(tmp_path):
    (tmp_path / "slurm.yaml").write_text("queue: gpu\ncores: 4\nmemory: 16GB\n")
    script = jobs.slurm_cluster(parse_executor(f"slurm:{tmp_path}/slurm.yaml").settings)
    told = script.job_script()
    script.close()
    assert all(part in told for part in ("#SBATCH -p gpu", "--cpus-per-task=4", "#!/usr/bin/env"))
    (tmp_path / "slurm.yaml").write_text("queeue: gpu\n")
    with pytest.raises(UserError, match="queeue"):
        jobs.slurm_cluster(parse_executor(f"slurm:{tmp_path}/slurm.yaml").settings)
    with pytest.raises(UserError, match="cannot be read"):
        parse_executor("slurm:nowhere.yaml")


LOCAL = """import sys
from ftnb.jobs import Store, make_job, run_jobs
if __name__ == "__main__":
    toy, store, n, wait, log = sys.argv[1:]
    asked = [make_job(toy, {"n": i, "wait": float(wait), "log": log}) for i in range(int(n))]
    run_jobs(asked, Store(store), "local:2")
"""


def start(tmp_path, toy, store, n, wait=0.2):
    script = tmp_path / "local.py"
    script.write_text(LOCAL)
    words = [toy, store.folder, str(n), str(wait), tmp_path / "log"]
    return subprocess.Popen([sys.executable, script, *map(str, words)], stderr=subprocess.PIPE)


def test_killed_at_random_and_finished(tmp_path, toy, store):
    "The whole of it (200 runs, 20 kills) is a row of the bench."
    n, waits = 8, iter((4.0, 6.5, 5.0))
    for wait in waits:
        process = start(tmp_path, toy, store, n)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    process = start(tmp_path, toy, store, n)
    assert process.wait(120) == 0, process.stderr.read()
    asked = [make_job(toy, {"n": i, "wait": 0.2, "log": str(tmp_path / "log")}) for i in range(n)]
    found = store.records()
    alone = Store(tmp_path / "alone")
    assert set(found) == {key(j) for j in asked}
    expected = run_job(asked[0], alone)["key"]
    assert found[expected]["metrics"] == alone.record(expected)["metrics"]


def test_two_reruns_at_once_share_the_work(tmp_path, toy, store):
    both = [start(tmp_path, toy, store, 6) for _ in range(2)]
    assert [p.wait(180) for p in both] == [0, 0]
    assert sorted((tmp_path / "log").read_text().split()) == [str(i) for i in range(6)]
    assert len(store.records()) == 6


class Cluster:
    "A Dask scheduler and workers, each a process of its own, on the loopback."

    def __init__(self, port, log):
        self.port, self.log, self.workers = port, open(log, "ab"), []
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", str(port))

    def start(self, kind, *words):
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *words, "--no-dashboard"]
        return subprocess.Popen(command, stderr=self.log, stdout=self.log)

    def add_worker(self):
        words = ["--nthreads", "1", "--memory-limit", "0", "--death-timeout", "60", "--no-nanny"]
        worker = self.start("worker", f"tcp://127.0.0.1:{self.port}", *words)
        self.workers.append(worker)

    def restart(self):
        self.scheduler.kill()
        self.scheduler.wait()
        time.sleep(1)
        self.scheduler = self.start("scheduler", "--host", "127.0.0.1", "--port", str(self.port))

    def close(self):
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()
        self.log.close()


@pytest.fixture
def cluster(tmp_path):
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    cluster = Cluster(port, tmp_path / "dask.log")
    cluster.add_worker()
    cluster.add_worker()
    yield cluster
    cluster.close()


def wait_for_scheduler(cluster):
    import socket

    for _ in range(300):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", cluster.port)) == 0:
                return
        time.sleep(0.1)


def test_dask_gives_the_table_of_local_though_worker_and_scheduler_die(
    tmp_path, toy, store, cluster
):
    asked = [make_job(toy, {"n": n, "wait": 0.5}) for n in range(6)]
    local = Store(tmp_path / "local")
    expected = drawn(local, run_jobs(asked, local, "local:2"))
    run_jobs(asked[:2], store, "local:1")  # begun locally, finished on Dask
    left = [lambda: cluster.workers[0].kill(), lambda: (cluster.restart(), cluster.add_worker())]

    def trouble(state):
        if left and state["done"] >= 5 - len(left):
            left.pop(0)()

    wait_for_scheduler(cluster)
    outcomes = run_jobs(asked, store, f"dask://127.0.0.1:{cluster.port}", trouble)
    assert all(o["state"] in ("done", "reused") for o in outcomes.values())
    assert drawn(store, outcomes) == expected and not left
    assert len(store.records()) == len(asked)


def test_runs_of_a_worker_with_a_folder_of_its_own_come_home(toy, store, cluster, monkeypatch):
    wait_for_scheduler(cluster)
    hidden = jobs._task

    def elsewhere(*given):
        return hidden(*given) | {"token": "of another folder"}

    monkeypatch.setattr(jobs, "_task", elsewhere)
    (outcome,) = run_jobs([make_job(toy)], store, f"dask://127.0.0.1:{cluster.port}").values()
    assert outcome["state"] in ("done", "reused") and store.record(outcome["key"])
    assert "files" not in outcome
