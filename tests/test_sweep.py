"""Sweeps: one file, the same table whoever finishes first, faults with their line."""

from pathlib import Path

import pytest
import yaml
from test_jobs import cluster, notebook, wait_for_scheduler  # noqa: F401

from ftnb import sweep as sweeps
from ftnb.core import UserError
from ftnb.jobs import Store, parse_executor
from ftnb.sweep import (
    ends_of,
    format_sweep,
    ranked,
    read_sweep,
    run_sweep,
    rungs,
    settings,
    summary,
)

BODY = """from random import Random
from ftnb.runs import record
assert n < 1000, "too many"
score = Random(f"{n} {seed} {log}").random() if wait < 9 else float("nan")
record(score=score * (1 + wait), inner={"score": n}, name="a", seeds=[seed],
       cells=[{"score": n}], two=[{"score": n}, {"score": -n}])"""
GRID = {
    "notebook": "toy.ipynb", "search": "grid", "space": {"n": {"values": [3, 1, 2]}},
    "seeds": [0, 1], "metric": "score", "direction": "maximize",
}  # fmt: skip
HALVING = GRID | {
    "search": "halving", "space": {"n": {"low": 1, "high": 90, "kind": "int", "log": True}},
    "seeds": [0], "trials": 4, "budget": {"parameter": "wait", "min": 1, "max": 4, "factor": 2},
}  # fmt: skip


@pytest.fixture
def home(tmp_path) -> Path:
    notebook(tmp_path, body=BODY)
    return tmp_path


def read(home, found):
    text = found if isinstance(found, str) else yaml.safe_dump(found, sort_keys=False)
    (home / "sweep.yaml").write_text(text)
    return read_sweep(home / "sweep.yaml")


@pytest.fixture
def direct(monkeypatch):
    "Jobs run in this process, without notebooks: fast. Lists the parameters of what was run."
    ran = []

    def play(jobs, store, executor, notify):
        from ftnb.jobs import ingredients, key_of
        from ftnb.runs import write_record

        found = {}
        for job in jobs:
            key = key_of(ingredients(job))
            state = "reused" if store.record(key) else "done"
            if state == "done":
                ran.append(job.parameters)
                if job.parameters["n"] >= 1000:
                    found[key] = {"key": key, "state": "failed", "reason": "too | many"}
                    continue
                metrics: dict = {}
                body = BODY.replace("from ftnb.runs import record", "")
                exec(body, job.parameters | {"record": metrics.update})
                store.path(key).mkdir()
                facts = {"notebook": "toy.ipynb", "metrics": metrics, "key": key}
                write_record(store.path(key), facts | {"finished": ""})
            found[key] = {"key": key, "state": state, "reason": ""}
            notify({"done": len(found)})
        return found

    monkeypatch.setattr(sweeps, "run_jobs", play)
    return ran


def test_a_grid_on_real_notebooks_and_a_second_start(home):
    grid = read(home, GRID)
    found = run_sweep(grid, home / "store", "local:2")
    assert [t["parameters"]["n"] for t in found["trials"]] == [3, 1, 2]
    assert all(set(t["scores"]) == {"0", "1"} for t in found["trials"])
    states = []
    assert run_sweep(grid, home / "store", "local:1", states.append) == found
    assert states[0]["reused"] == 6 and states[0]["rung"] == 0


def test_dask_gives_the_table_of_local(home, cluster):  # noqa: F811
    budget = HALVING["budget"] | {"factor": 4}
    halving = read(home, HALVING | {"trials": 3, "budget": budget})
    local = run_sweep(halving, home / "local", "local:2")
    wait_for_scheduler(cluster)
    over_dask = run_sweep(halving, home / "dask", f"dask://127.0.0.1:{cluster.port}")
    assert over_dask == local and format_sweep(over_dask) == format_sweep(local)


def test_halving_promotes_by_score_and_spends_little(home, direct):
    found = run_sweep(read(home, HALVING), home / "store")
    assert [p["wait"] for p in direct] == [1] * 4 + [2] * 2 + [4]
    first = sorted(found["trials"], key=lambda t: -t["history"][0])
    assert {t["number"] for t in first[:2]} == {t["number"] for t in found["trials"] if t["rung"]}
    (best,) = (t for t in found["trials"] if t["rung"] == 2)
    assert best["number"] == found["best"] and len(best["history"]) == 3


def test_minimize_turns_it_round(home, direct):
    high = run_sweep(read(home, GRID), home / "store")
    low = run_sweep(read(home, GRID | {"direction": "minimize"}), home / "store")
    assert len(direct) == 6, "the direction decides no run"
    means = {t["number"]: t["mean"] for t in high["trials"]}
    assert high["best"] == max(means, key=means.get) and low["best"] == min(means, key=means.get)


def test_ties_go_to_the_smaller_number():
    trials = [{"number": i, "mean": m} for i, m in enumerate([0.5, 0.7, None, 0.7])]
    assert [t["number"] for t in ranked(trials, "maximize")] == [1, 3, 0]
    assert [t["number"] for t in ranked(trials, "minimize")] == [0, 1, 3]


def test_a_failure_is_told_and_its_trial_cannot_win(home, direct):
    found = run_sweep(read(home, GRID | {"space": {"n": {"values": [5000, 1]}}}), home / "store")
    assert [f["reason"] for f in found["failures"]] == ["too | many"] * 2 and found["best"] == 1
    assert found["trials"][0]["mean"] is None
    told = format_sweep(found)
    assert "Failed:" in told and "too \\| many" in told and "**1**" in told


def test_a_score_that_is_no_number_is_a_failure(home, direct):
    found = run_sweep(read(home, GRID | {"parameters": {"wait": 9.0}}), home / "store")
    assert found["best"] is None and len(found["failures"]) == 6
    assert found["failures"][0]["reason"] == "score is nan"
    assert "No trial finished" in format_sweep(found)


@pytest.mark.parametrize("metric, told", [
    ("scores", "no metric 'scores'; did you mean 'score'?"), ("name", "not a number but 'a'"),
    ("inner", "not a number"), ("inner.x", "no metric 'inner.x'"),
    ("two.score", "metric 'two.score' holds 2 values"), ("two.2.score", "no metric 'two.2.score'"),
    ("cells.x", "no metric 'cells.x'"), ("name.0", "no metric 'name.0'"),
])  # fmt: skip
def test_a_metric_that_is_not_there_is_told_after_the_first_run(home, direct, metric, told):
    with pytest.raises(UserError, match="metric") as e:
        run_sweep(read(home, GRID | {"metric": metric}), home / "store")
    assert told in str(e.value) and "\n" not in str(e.value) and len(direct) == 1


@pytest.mark.parametrize("metric", ["inner.score", "cells.score", "cells.0.score", "two.0.score"])
def test_a_score_inside_a_group(home, direct, metric):
    found = run_sweep(read(home, GRID | {"metric": metric}), home / "store")
    assert [t["mean"] for t in found["trials"]] == [3, 1, 2]


def test_a_random_draw_is_fixed_by_its_seed_and_draws_nothing_twice(home):
    space = {"n": {"low": 1, "high": 6, "kind": "int"}, "set_name": {"values": ["", "x"]},
             "wait": {"low": 1e-3, "high": 1, "log": True}}  # fmt: skip
    asked = GRID | {"search": "random", "space": space, "trials": 40}
    drawn = settings(read(home, asked))
    assert drawn == settings(read(home, asked)) != settings(read(home, asked | {"seed": 1}))
    assert sum(0.001 <= d["wait"] < 0.0316 for d in drawn) in range(10, 31), "even in its logarithm"
    del space["wait"]
    drawn = settings(read(home, asked | {"trials": 12}))
    assert len({tuple(d.items()) for d in drawn}) == 12


def test_a_grid_of_two_has_every_pair_in_order(home):
    space = {"n": {"values": [2, 1]}, "wait": {"values": [0.5, 1, 0.25]}}
    drawn = [tuple(s.values()) for s in settings(read(home, GRID | {"space": space}))]
    assert drawn == [(n, w) for n in (2, 1) for w in (0.5, 1, 0.25)]


@pytest.mark.parametrize("low, high, factor, expected", [
    (1, 4, 2, [1, 2, 4]), (1, 10, 3, [1, 3, 9, 10]), (0.5, 1, 10, [0.5, 1]),
])  # fmt: skip
def test_budgets_of_the_rungs(home, low, high, factor, expected):
    budget = {"parameter": "wait", "min": low, "max": high, "factor": factor}
    assert rungs(read(home, HALVING | {"budget": budget})) == expected


def test_summary_over_seeds():
    assert summary([0.5]) == {"mean": 0.5, "interval": None}
    assert summary([0.5, None])["mean"] is None
    mean, (low, high) = summary([0.5, 0.7]).values()
    assert low < 0.5 < 0.6 == pytest.approx(mean) and high > 0.7


@pytest.mark.parametrize("metric, scores, ends", [
    ("accuracy", [0.9, 0.8], (0, 1)), ("cells.accuracy", [90.0, None, 80.0], (0, 100)),
    ("F1", [0.0, 1.0], (0, 1)), ("loss", [0.5, 0.6], (float("-inf"), float("inf"))),
    ("accuracy", [900.0, 1.0], (float("-inf"), float("inf"))),
])  # fmt: skip
def test_an_interval_ends_where_the_scale_ends(metric, scores, ends):
    assert ends_of(metric, scores) == ends
    low, high = summary([0.99, 0.7], ends_of("accuracy", [0.99, 0.7]))["interval"]
    assert high == 1 and 0 <= low < 0.7
    assert summary([0.99, 0.7])["interval"][1] > 1


def test_the_best_of_halving_names_its_budget(home, direct):
    told = format_sweep(run_sweep(read(home, HALVING), home / "store"))
    assert "is the best of 4 by score (maximize), the only one that reached wait = 4;" in told
    budget = HALVING["budget"] | {"max": 2}
    told = format_sweep(run_sweep(read(home, HALVING | {"budget": budget}), home / "store"))
    assert "one of 2 that reached wait = 2;" in told
    assert "reached" not in format_sweep(run_sweep(read(home, GRID), home / "store"))


def test_a_list_of_seeds_gets_a_list_of_one(home):
    from ftnb.sweep import job_of

    path = home / "toy.ipynb"
    path.write_text(path.read_text().replace("seed = 0", "seeds = [0, 1]"))
    found = read(home, GRID | {"seed_parameter": "seeds"})
    assert job_of(found, {"n": 1}, 7).parameters["seeds"] == [7]


TEXT = """notebook: toy.ipynb
search: random
space:
  n: {low: 1, high: 9, kind: int}
  wait:
    low: 1e-3
    high: 1
    log: true
seeds: [0, 1]
metric: score
direction: maximize
trials: 3
parameters:
  log: ""
"""


def test_numbers_as_people_write_them(home):
    assert read(home, TEXT).space["wait"]["low"] == 0.001


@pytest.mark.parametrize("old, new, line, told", [
    ("search", "serch", 2, "unknown key 'serch'; did you mean 'search'?"),
    ("random", "radnom", 2, "search cannot be 'radnom'; did you mean 'random'?"),
    ("toy.ipynb", "no.ipynb", 1, "no"),
    ("toy.ipynb", "[1]", 1, "notebook must be a text, not [1]"),
    ("    low: 1e-3", "    lo: 1e-3", 6, "unknown key 'lo'; did you mean 'low'?"),
    ("    low: 1e-3", "    low: small", 6, "space.wait.low must be a number, not 'small'"),
    ("    low: 1e-3", "    low: .nan", 5, "low must be smaller than high"),
    ("    low: 1e-3", "    low: 0", 6, "with log, low must be more than 0"),
    ("    low: 1e-3", "    low: 2", 5, "low must be smaller than high, not 2 and 1"),
    ("  wait:", "  wiat:", 5, "no parameter 'wiat'; did you mean 'wait'?"),
    ("  wait:", "  n:", 5, "the key 'n' stands here again"),
    ("  wait:", "  1:", 5, "the key '1' must be a text"),
    ("kind: int", "kind: float", 4, "kind: float does not fit"),
    (", kind: int", "", 4, "does not fit"),
    ("low: 1, high: 9, kind: int", "", 4, "n is empty"),
    ("low: 1, high: 9, kind: int", "values: []", 4, "space.n.values is empty"),
    ("low: 1, high: 9, kind: int", "values: [1, 1]", 4, "holds the same value twice"),
    ("low: 1, high: 9, kind: int", "values: [1, 2.5]", 4, "n cannot be 2.5"),
    ("low: 1, high: 9, kind: int", "values: [1], low: 1", 4, "either values, or low and high"),
    ("low: 1, high: 9, kind: int", "low: 1, high: 9.5, kind: int", 4, "whole ends"),
    ("seeds: [0, 1]", "seeds: []", 9, "seeds is empty"),
    ("seeds: [0, 1]", "seeds: [0, x]", 9, "seeds.1 must be a whole number, not 'x'"),
    ("seeds: [0, 1]", "seeds: [0, -1]", 9, "seeds.1 must be 0 or more"),
    ("metric: score\n", "", 1, "needs the key 'metric'"),
    ("trials: 3\n", "", 1, "random needs the key 'trials'"),
    ("trials: 3", "trials: 0", 12, "trials must be 1 or more"),
    ("trials: 3", "budget: {parameter: n, min: 1, max: 3, factor: 2}", 12, "set twice"),
    ("random", "grid", 4, "a grid needs values for n"),
    ("random", "halving", 1, "halving needs the key 'budget'"),
    ('log: ""', "logs: 1", 14, "no parameter 'logs'; did you mean 'log'?"),
    ('log: ""', "log: 1", 14, "log cannot be 1"),
    ('log: ""', "n: 1", 4, "'n' is set twice: by parameters and by space"),
    ('log: ""', "seed: 1", 14, "'seed' is set twice"),
    ("trials: 3", "seed_parameter: sed\ntrials: 3", 12, "did you mean 'seed'?"),
    ("trials: 3", "size: huge\ntrials: 3", 12, "no size 'huge'"),
    ("random", "[random", 3, "not YAML"),
    ("random", "!!binary aGk=", 2, ""),
])  # fmt: skip
def test_a_fault_has_one_line_and_its_place(home, old, new, line, told):
    with pytest.raises(UserError) as e:
        read(home, TEXT.replace(old, new, 1))
    assert told in str(e.value) and "\n" not in str(e.value)
    assert f"sweep.yaml, line {line}: " in str(e.value) or "binary" in new


@pytest.mark.parametrize("content", [
    b"", b"# only this", b"just words", b"- a\n- b", b"\xff\xfe", b"a: \x00", b"a: &a [*a]",
    b"a: *nowhere", b"{[a]: 1}", b"a: !!python/object:os.system x", b"\tsearch: grid",
])  # fmt: skip
def test_files_that_are_no_sweep(home, content):
    (home / "sweep.yaml").write_bytes(content)
    with pytest.raises(UserError, match="sweep.yaml") as e:
        read_sweep(home / "sweep.yaml")
    assert "\n" not in str(e.value)


def test_a_file_that_is_not_there(home):
    for path in (home / "none.yaml", home):
        with pytest.raises(UserError, match="cannot be read"):
            read_sweep(path)


def test_plans_that_do_not_fit_the_space(home):
    few = GRID | {"search": "random", "trials": 4}
    with pytest.raises(UserError, match="line 14: the space has 3 combinations, not 4"):
        read(home, few)
    with pytest.raises(UserError, match="this grid has 3 combinations: leave trials out"):
        read(home, GRID | {"trials": 2})
    with pytest.raises(UserError, match="budget is for search: halving"):
        read(home, GRID | {"budget": HALVING["budget"]})
    with pytest.raises(UserError, match="min must be more than 0 and smaller"):
        read(home, HALVING | {"budget": HALVING["budget"] | {"max": 1}})


def test_an_executor_that_does_not_exist(home):
    with pytest.raises(UserError, match="there are: local") as e:
        run_sweep(read(home, GRID), Store(home / "store"), "ray")
    assert "\n" not in str(e.value) and parse_executor("local:2").workers == 2
