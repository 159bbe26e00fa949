"""Ours against the field's libraries: the same answers first, then seconds and peak memory.

    make bench                                every benchmark, a few minutes on two cores
    .venv/bin/python tests/bench.py NAME ...  some of them
    .venv/bin/python tests/bench.py --list    their names

Each benchmark runs in fresh processes with a fixed number of threads. In the first, both sides warm
up on little data (libraries load, kernels compile) and then take turns, A B A B: once untimed, for
the answers to be compared, and five times timed; the ratio is that of the medians. Two more
processes run one side each, for its peak memory: what it needed above the process with its
libraries and data loaded and warm.
A process that measures time keeps the memory that it freed (KEEP), as one that goes on working
does, on both sides: what a new page costs differs by a factor of ten between machines and minutes.
The table is printed and kept in runs/bench/, as JSON (every single timing) and as Markdown.
The exit code is 1 if an answer differs, a bar is missed or a benchmark fails.
"""

import argparse
import importlib
import json
import os
import pkgutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import benches
from benches.common import Case

from ftnb.core import environment, write_text

ROOT = Path(__file__).resolve().parent.parent
KEEP = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}  # of glibc
ROUNDS = 5  # timings of each side: the median then ignores two disturbed ones
EXTRA = ("fasttext", "sentence_transformers", "gensim", "accelerate")  # modules of the bench extra

BENCHMARKS = {}  # name -> Benchmark, from every module of benches/
for _, module, _ in sorted(pkgutil.iter_modules(benches.__path__), key=lambda m: m[1]):
    found = importlib.import_module(f"benches.{module}")
    BENCHMARKS |= getattr(found, "BENCHMARKS", {})


# ---------------------------------------------------------------- one process, one measurement


def timings(case: Case, rounds: int) -> dict:
    "Warm up, then both sides in turns; the answers of the first, untimed turn are compared."
    sides, wrong, agreed = {"ours": case.ours, "peer": case.peer}, "", ""
    if case.ceiling:
        sides["ceiling"] = case.ceiling
    for run in sides.values():
        timed(warm_up(case), run)
    seconds = {name: [] for name in sides}
    for turn in range(rounds + 1):
        answers = {}
        for name, run in sides.items():
            took, answers[name] = timed(case, run)
            if turn:
                seconds[name].append(took)
        if turn == 0:
            try:
                agreed = case.check(answers["ours"], answers["peer"])
            except AssertionError as e:
                wrong = " ".join(str(e).split())[:200] or "the answers differ"
    return dict(data=case.said, seconds=seconds, agreed=agreed, wrong=wrong, notes=case.notes)


def warm_up(case: Case) -> Case:
    "The same work on little data: libraries load, kernels compile."
    return replace(case, data=case.small, notes=[])


def timed(case: Case, run: Callable, attempts: int = 10):
    "Seconds and answer of one turn; a turn that ends in the peer's known error is repeated."
    for _ in range(attempts):
        began = time.perf_counter()
        try:
            answer = run(*case.data)
        except RuntimeError as e:
            if not case.retry or not str(e).startswith(case.retry):
                raise
            case.notes.append(f"repeated after the peer's {str(e)!r}")
            continue
        return time.perf_counter() - began, answer
    raise RuntimeError(f"{attempts} turns in a row ended in {case.retry!r}")


def memory(case: Case, side: str) -> dict:
    "Peak memory of one side, above the warm process."
    from ftnb.core import Cost

    run = getattr(case, side)
    timed(warm_up(case), run)
    with Cost() as cost:
        timed(case, run)
    return dict(peak_mb=cost.peak_mb)


def child(name: str, part: str, out: str, rounds: int):
    "Body of a measuring process: write the result, or why there is none."
    try:
        case = BENCHMARKS[name].make()
        result = timings(case, rounds) if part == "time" else memory(case, part)
    except ModuleNotFoundError as e:
        if e.name not in EXTRA:
            raise
        result = dict(missing="peer not installed: pip install ftnb[bench]")
    Path(out).write_text(json.dumps(result))


# ---------------------------------------------------------------- the parent


def measure(name: str, part: str, rounds: int = 1) -> dict:
    "Run one measuring process."
    threads = str(BENCHMARKS[name].threads)
    fixed = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    env = os.environ | {key: threads for key in fixed} | {"TOKENIZERS_PARALLELISM": "true",
                                                         "RAYON_NUM_THREADS": threads,
                                                         "HF_HUB_OFFLINE": "1"}
    if part == "time":
        env |= KEEP
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, __file__, f"--rounds={rounds}", "--part", name, part, str(out)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            return dict(failed=last[:300])
        return json.loads(out.read_text())


def benchmark(name: str, rounds: int) -> dict:
    "All measurements of one benchmark as one row."
    about = BENCHMARKS[name]
    row = dict(name=name, threads=about.threads, bar=about.bar,
               versions={p: installed(p) for p in about.packages.split()},
               load_before=round(os.getloadavg()[0], 2))
    row |= measure(name, "time", rounds)
    if "seconds" not in row:
        return row | dict(verdict=row.get("missing") or f"failed: {row['failed']}")
    ours, peer = row["seconds"]["ours"], row["seconds"]["peer"]
    pairs = [b / a for a, b in zip(ours, peer, strict=True)]
    ratio = statistics.median(peer) / statistics.median(ours)
    row |= dict(ratio=ratio, lowest=min(pairs), highest=max(pairs))
    if "ceiling" in row["seconds"]:
        row["share"] = statistics.median(row["seconds"].pop("ceiling")) / statistics.median(ours)
    row["peak_mb"] = {side: measure(name, side).get("peak_mb") for side in ("ours", "peer")}
    return row | dict(verdict=verdict(row))


def verdict(row: dict) -> str:
    low, high = row["bar"]
    if row["wrong"]:
        return "answers differ"
    if row["ratio"] < low or (high and row["ratio"] > high):
        return f"bar missed ({bar(row)})"
    return "ok"


def bar(row: dict) -> str:
    low, high = row["bar"]
    return f"{low:g} to {high:g}" if high else f">= {low:g}x"


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


COLUMNS = ("benchmark", "data", "threads", "ours s", "peer s", "ratio (min-max)", "bar",
           "ours MB", "peer MB", "answers", "peer", "verdict")


def cells(row: dict) -> list[str]:
    peer = ", ".join(f"{name} {v}" for name, v in row["versions"].items())
    if "seconds" not in row:
        nothing = ["-"] * 3
        return [row["name"], "-", str(row["threads"]), *nothing, bar(row), *nothing, peer,
                row["verdict"]]
    median = {side: statistics.median(s) for side, s in row["seconds"].items()}
    mb = ["?" if row["peak_mb"][s] is None else f"{row['peak_mb'][s]:.0f}" for s in median]
    notes = f"; {len(row['notes'])} turns {row['notes'][0]}" if row["notes"] else ""
    if "share" in row:
        notes += f"; {row['share']:.2f} of the rate of our matrix products alone"
    return [row["name"], row["data"], str(row["threads"]), f"{median['ours']:.3f}",
            f"{median['peer']:.3f}",
            f"{row['ratio']:.2f} ({row['lowest']:.2f}-{row['highest']:.2f})", bar(row), *mb,
            (row["agreed"] or row["wrong"]) + notes, peer, row["verdict"]]


def markdown(rows: list[dict], about: dict, rounds: int) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items() if v != "absent")
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    lines += [" | ".join(c.replace("|", "/") for c in cells(row)) for row in rows]
    table = "\n".join(f"| {line} |" for line in lines)
    return (f"{table}\n\nMedians of {rounds} turns; ratio = peer / ours; MB = peak above the warm "
            f"process. {about['processor']}, {about['cores']} cores; {versions}.\n")


def show(rows: list[dict]):
    "The table, as wide as it needs to be when written to a file."
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*COLUMNS, show_lines=True)
    for row in rows:
        colour = "green" if row["verdict"] == "ok" else "red"
        *most, last = map(escape, cells(row))
        table.add_row(*most, f"[{colour}]{last}[/]")
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"turns of each ({ROUNDS})")
    parser.add_argument("--list", action="store_true", help="names of the benchmarks")
    parser.add_argument("--part", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.part:
        child(*asked.part, asked.rounds)
        return 0
    if asked.list:
        print("\n".join(BENCHMARKS))
        return 0
    unknown = [name for name in asked.names if name not in BENCHMARKS]
    if unknown:
        print(f"no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    rows = []
    for name in asked.names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows.append(benchmark(name, asked.rounds))
    about, date = environment(), datetime.now().strftime("%Y-%m-%dT%H%M%S")
    stem = ROOT / "runs" / "bench" / date
    record = dict(date=date, rounds=asked.rounds, environment=about, rows=rows)
    write_text(f"{stem}.json", json.dumps(record, indent=1) + "\n")
    write_text(f"{stem}.md", markdown(rows, about, asked.rounds))
    show(rows)
    print(f"kept in {stem.relative_to(ROOT)}.json and .md")
    return int(any(row["verdict"] != "ok" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
