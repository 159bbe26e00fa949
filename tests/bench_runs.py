"""What the runner costs and survives: overhead, two workers, kills, ten thousand runs.

    .venv/bin/python tests/bench_runs.py                  everything, about 40 minutes on two cores
    .venv/bin/python tests/bench_runs.py overhead workers
    .venv/bin/python tests/bench_runs.py kills --runs 200 --kills 20
    .venv/bin/python tests/bench_runs.py simulation --runs 10000 --workers 1000

The results are printed and kept in runs/bench/runs.json. Exit code 1 if a bar is missed.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import psutil
from nbformat.v4 import new_code_cell, new_notebook

from ftnb import jobs
from ftnb.core import environment, write_text
from ftnb.jobs import Store, make_job, run_job, run_jobs

ROOT = Path(__file__).resolve().parent.parent
DEFAULTS = "n = 1\nseed = 0\nwork = 0.0"
BODY = """import time
from random import Random
from ftnb.runs import record
began, turns = time.process_time(), 0
while time.process_time() - began < work:  # seconds of the processor, not of the clock
    turns += 1
record(drawn=Random(f"{n} {seed}").random(), seeds=[seed])"""


def notebook(folder: Path) -> Path:
    tagged = new_code_cell(DEFAULTS, metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}}
    toy = new_notebook(cells=[tagged, new_code_cell(BODY)], metadata=kernel)
    nbformat.write(toy, folder / "toy.ipynb")
    return folder / "toy.ipynb"


def overhead(folder: Path, rounds: int) -> dict:
    "Seconds of a run beyond a bare papermill call, interleaved."
    import papermill

    toy, store = notebook(folder), Store(folder / "store")
    took = {"papermill": [], "run_job": []}
    for n in range(rounds + 1):  # the first warms up
        began = time.perf_counter()
        papermill.execute_notebook(toy, folder / "out.ipynb", {"n": n}, progress_bar=False)
        took["papermill"].append(time.perf_counter() - began)
        began = time.perf_counter()
        assert run_job(make_job(toy, {"n": n}), store)["state"] == "done"
        took["run_job"].append(time.perf_counter() - began)
    more = [b - a for a, b in zip(*(t[1:] for t in took.values()), strict=True)]
    found = {"median": statistics.median(more), "min": min(more), "max": max(more)}
    return found | {"rounds": rounds, "bar": "< 0.5 s", "met": found["median"] < 0.5}


def workers(folder: Path, rounds: int, work: float = 15.0) -> dict:
    "Eight equal runs of 15 s on one and two local workers, interleaved; start-up counted."
    toy, ratios, seconds = notebook(folder), [], []
    for r in range(rounds):
        took = []
        for n_workers in (1, 2):
            asked = [make_job(toy, {"n": n, "work": work, "seed": r}) for n in range(8)]
            began = time.perf_counter()
            run_jobs(asked, Store(folder / f"store-{r}-{n_workers}"), f"local:{n_workers}")
            took.append(time.perf_counter() - began)
        seconds.append(took)
        ratios.append(took[0] / took[1])
    found = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return found | {"seconds": seconds, "bar": ">= 1.8", "met": found["median"] >= 1.8}


RUN = """import sys
from ftnb.jobs import Store, make_job, run_jobs
if __name__ == "__main__":
    asked = [make_job(sys.argv[1], {"n": n}) for n in range(int(sys.argv[3]))]
    run_jobs(asked, Store(sys.argv[2]), "local:2")
"""


def kills(folder: Path, n_runs: int, n_kills: int) -> dict:
    "SIGKILL at random moments, then the end; the table against one that was left alone."
    toy, script = notebook(folder), folder / "run.py"
    script.write_text(RUN)
    tables, done_before = [], []
    for name in ("killed", "alone"):
        command = [sys.executable, str(script), str(toy), str(folder / name), str(n_runs)]
        for _ in range(n_kills if name == "killed" else 0):
            process = subprocess.Popen(command)
            time.sleep(random.uniform(3, 12))
            process.send_signal(signal.SIGKILL)
            process.wait()
            done_before.append(len(Store(folder / name).records()))
        subprocess.run(command, check=True)
        records = Store(folder / name).records()
        tables.append({k: r["metrics"]["drawn"] for k, r in records.items()})
    left = list((folder / "killed").glob(".draft-*")), list((folder / "killed/work").iterdir())
    met = tables[0] == tables[1] and len(tables[0]) == n_runs and not any(left)
    return {"runs": n_runs, "kills": n_kills, "done at each kill": done_before,
            "equal tables": tables[0] == tables[1],
            "drafts and checkpoints left": list(map(len, left)),
            "bar": "equal, none lost or twice, nothing left", "met": met}  # fmt: skip


def sleep_on(task: dict) -> dict:
    "In the place of `jobs.work_on`: a run that only takes time."
    time.sleep(task["seconds"])
    return {"key": task["key"], "state": "done", "reason": "", "seconds": task["seconds"]}


async def many_workers(address: str, n: int):
    "Body of a process: n Dask workers with one thread each."
    from distributed import Worker

    names = [f"{os.getpid()}-{i}" for i in range(n)]
    started = [Worker(address, nthreads=1, memory_limit=0, dashboard=False, name=x) for x in names]
    for one in started:
        await one
    print("ready", flush=True)
    await asyncio.gather(*(one.finished() for one in started))


def simulation(folder: Path, n_runs: int, n_workers: int, seconds: float = 1.0) -> dict:
    "Sleeping runs through `run_jobs` on a scheduler with many workers."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    words = ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    quiet = {"stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen([sys.executable, "-m", "distributed.cli.dask_scheduler", *words],
                                 **quiet)  # fmt: skip
    address, each, processes = f"tcp://127.0.0.1:{port}", max(1, n_workers // 8), []
    try:
        time.sleep(5)
        code = f"import asyncio, bench_runs as b; asyncio.run(b.many_workers('{address}', {each}))"
        command, quiet = [sys.executable, "-c", code], quiet | {"stdout": subprocess.PIPE}
        for _ in range(n_workers // each):
            processes.append(subprocess.Popen(command, cwd=ROOT / "tests", text=True, **quiet))
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        return simulated(folder, port, scheduler, n_runs, each * len(processes), seconds)
    finally:
        for process in [*processes, scheduler]:
            process.kill()


def simulated(folder, port, scheduler, n_runs, n_workers, seconds) -> dict:
    toy, store = notebook(folder), Store(folder / "sleep")
    jobs.work_on = sleep_on
    jobs._task = lambda job, parts, store: {"key": jobs.key_of(parts), "seconds": seconds}
    began = time.perf_counter()
    asked = [make_job(toy, {"n": n}) for n in range(n_runs)]
    made = time.perf_counter() - began
    me, peak = psutil.Process(scheduler.pid), [0.0]
    before = me.memory_info().rss / 1e6

    def look(state):
        peak[0] = max(peak[0], me.memory_info().rss / 1e6)

    began = time.perf_counter()
    outcomes = run_jobs(asked, store, f"dask://127.0.0.1:{port}", look)
    took = time.perf_counter() - began
    ideal = n_runs * seconds / n_workers
    return {"runs": n_runs, "workers": n_workers, "seconds of a run": seconds, "wall": took,
            "ideal": ideal, "overhead ms a run": 1e3 * (took - ideal) / n_runs,
            "jobs made ms a run": 1e3 * made / n_runs, "scheduler MB": [before, peak[0]],
            "client MB": psutil.Process().memory_info().rss / 1e6,
            "bar": "all done", "met": all(o["state"] == "done" for o in outcomes.values()),
            }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", default=[])
    parser.add_argument("--runs", type=int)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    a = parser.parse_args()
    rows = {
        "overhead": lambda d: overhead(d, a.rounds),
        "workers": lambda d: workers(d, min(a.rounds, 3)),
        "kills": lambda d: kills(d, a.runs or 200, a.kills),
        "simulation": lambda d: simulation(d, a.runs or 10_000, a.workers),
    }
    path = ROOT / "runs" / "bench" / "runs.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name in a.rows or rows:
        with tempfile.TemporaryDirectory(prefix="ftnb-bench-") as folder:
            kept[name] = rows[name](Path(folder)) | {"environment": environment()}
        shown = {k: v for k, v in kept[name].items() if k != "environment"}
        print(f"{name}: {json.dumps(shown)}", flush=True)
        write_text(path, json.dumps(kept, indent=1) + "\n")
    sys.exit(not all(kept[name]["met"] for name in a.rows or rows))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    main()
