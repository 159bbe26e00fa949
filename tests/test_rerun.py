"""`ftnb rerun` as a researcher types it: once, again, killed, asked wrongly."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from ftnb.cli import app
from ftnb.papers import paper_names, read_paper

COMMAND = ["rerun", "wang2012", "--size", "smoke", "-p", 'columns=["MR"]', "-p",
           'rows=["MNB-uni", "NBSVM-uni"]', "-p", "stand_in=300", "-p", "n_folds=3"]  # fmt: skip


def ftnb(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def one_line(answer, code=2):
    assert answer.exit_code == code, (answer.exit_code, answer.output, answer.stderr)
    lines = answer.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def rerun(tmp_path_factory):
    "One small rerun with two seeds, made once."
    out = tmp_path_factory.mktemp("rerun") / "runs"
    answer = ftnb(*COMMAND, "--seeds", 2, "--out", out, "--json")
    assert answer.exit_code == 0, (answer.output, answer.stderr)
    return out, json.loads(answer.stdout)


def test_the_table_has_published_measured_and_a_verdict(rerun):
    out, results = rerun
    found = {(f["row"], f["column"]): f for f in results["tables"]["t2"]["found"]}
    cell = found["MNB-uni", "MR"]
    assert cell["published"] == 77.9 and cell["n_seeds"] == 2 and len(cell["runs"]) == 2
    assert cell["verdict"] == "not comparable" and "smoke size" in cell["reason"]
    assert found["MNB-uni", "CR"]["verdict"] == "not measured"
    folder = out / "rerun-wang2012-smoke"
    assert (folder / "index.html").is_file() and json.loads((folder / "results.json").read_text())


def test_again_reuses_and_one_seed_more_costs_one_run(rerun):
    out, _ = rerun
    answer = ftnb(*COMMAND, "--seeds", 2, "--out", out, "--json")
    assert {r["state"] for r in json.loads(answer.stdout)["runs"].values()} == {"reused"}
    why = json.loads(ftnb("explain", *COMMAND[1:], "--seeds", 3, "--out", out, "--json").stdout)
    assert [w["why"].split()[0].strip(":") for w in why] == ["finished", "finished", "new"]


def test_status_verify_and_crate(rerun, tmp_path):
    out, results = rerun
    told = json.loads(ftnb("status", "--out", out, "--json").stdout)
    assert told["finished"] >= 2 and told["working"] is None
    key = next(iter(results["runs"]))
    found = json.loads(ftnb("verify", key[:10], "--out", out, "--json").stdout)
    assert found["identical"] and found["todays"] and found["changed"] == []
    crate = tmp_path / "crate"
    by = ["--author", "Ada Lovelace", "--licence", "https://spdx.org/licenses/CC0-1.0"]
    answer = ftnb("crate", out / "rerun-wang2012-smoke", crate, "--out", out, *by)
    assert answer.exit_code == 0, answer.stderr
    about = (crate / "ro-crate-metadata.json").read_text("utf-8")
    assert all(json.dumps(word) in about for word in by[1::2])
    assert (crate / "codecheck.yml").is_file() and (crate / "runs" / key / "record.json").is_file()
    answer = ftnb("report", "--out", out, "--json")
    assert any(p.endswith("index.html") for p in json.loads(answer.stdout))


def test_the_list_names_every_paper():
    listed = {p["name"]: p for p in json.loads(ftnb("rerun", "--list", "--json").stdout)}
    asked = ("wang2012 kim2014 zhang2015 joulin2016 iyyer2015 mikolov2013 devlin2018 wang2020 "
             "casanueva2020 cui2019").split()  # fmt: skip
    assert set(listed) == set(paper_names())
    assert not [name for name in listed if name in asked and not listed[name]["notebook"]]


MISTAKES = {
    "no paper 'wang2102'; did you mean": ["rerun", "wang2102"],
    "which paper?": ["rerun"],
    "no executor 'ray'": ["rerun", "wang2012", "--executor", "ray"],
    "no size 'huge'": ["rerun", "wang2012", "--size", "huge"],
    "has no parameter 'colums'": ["rerun", "wang2012", "--size", "smoke", "-p", "colums=[1]"],
    "has no column 'XY'": ["rerun", "wang2012", "--size", "smoke", "-p", 'columns=["XY"]'],
    "must be a list": ["rerun", "wang2012", "--size", "smoke", "-p", "seeds=3"],
    "its rerun is not yet": ["rerun", "hu2021"],
    "no Dask scheduler answers": [*COMMAND, "--seeds", "1", "--executor", "dask://127.0.0.1:9"],
    "no run 'ffff'": ["verify", "ffff"],
    "no rerun in": ["report"],
    "cannot be read": ["rerun", "wang2012", "--executor", "slurm:nowhere.yaml"],
}


@pytest.mark.parametrize("told", MISTAKES)
def test_mistakes_are_one_line(told, tmp_path):
    words = MISTAKES[told]
    out = [] if words == ["rerun"] else ["--out", tmp_path / "runs"]
    answer = ftnb(*words, *out)
    if "scheduler" in told:  # the claims of the paper come first
        assert answer.exit_code == 2 and told in answer.stderr.strip().splitlines()[-1]
    else:
        assert told in one_line(answer)


def test_missing_data_name_the_command_and_the_licence(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("FTNB_OFFLINE", "1")
    line = one_line(ftnb("rerun", "wang2012", "--out", tmp_path / "runs"))
    assert "ftnb data get sentence_polarity (licence: CC BY 4.0" in line
    line = one_line(ftnb("rerun", "wang2012", "-p", 'columns=["CR"]', "--out", tmp_path / "runs"))
    assert "bring your own table" in line


def test_a_folder_that_is_a_file_and_a_corrupt_result(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot write" in one_line(ftnb(*COMMAND, "--out", tmp_path / "file"))
    broken = tmp_path / "rerun-x"
    broken.mkdir()
    (broken / "results.json").write_text('{"half":')
    one_line(ftnb("report", broken))


def test_dry_run_runs_nothing(tmp_path):
    answer = ftnb(*COMMAND, "--seeds", 2, "--out", tmp_path / "runs", "--dry-run", "--json")
    assert [w["why"].split(":")[0] for w in json.loads(answer.stdout)] == ["new", "new"]
    assert not list((tmp_path / "runs" / "store").glob("*/record.json"))


def test_killed_and_typed_again(rerun, tmp_path):
    "SIGKILL in the middle; the same command then gives the table of the undisturbed rerun."
    _, expected = rerun
    words = [sys.executable, "-m", "ftnb.cli", *COMMAND, "--seeds", "2", "--out",
             str(tmp_path / "runs"), "--executor", "local:1", "--json"]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    store = tmp_path / "runs" / "store"
    for _ in range(1200):
        if list(store.glob("*/record.json")) or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    ran = subprocess.run(words, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    results = json.loads(ran.stdout)
    scores = [[(c["row"], c["seed"], c["score"]) for c in r["tables"]["t2"]["cells"]]
              for r in (results, expected)]  # fmt: skip
    assert sorted(scores[0]) == sorted(scores[1])
    assert sorted(r["state"] for r in results["runs"].values()) in (
        ["done", "reused"], ["reused", "reused"])  # fmt: skip


def test_every_paper_with_a_notebook_can_be_planned():
    from ftnb.rerun import make_plan

    for name in paper_names():
        paper = read_paper(name)
        if paper.notebook:
            plan = make_plan(paper, "smoke")
            assert plan.jobs and not plan.missing, name


def test_a_table_of_one_s_own(tmp_path, monkeypatch):
    "A path as typed, in the folder where it is typed; faults are told before anything runs."
    from ftnb.rerun import make_plan

    paper = read_paper("wang2012")
    words = "good fine great bad poor awful film plot".split()
    lines = [f"{words[i % 8]} {words[(3 * i) % 8]} {i},{'pos' if i % 8 < 3 else 'neg'}"
             for i in range(240)]  # fmt: skip
    (tmp_path / "cr.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    given = {"files": {"CR": "cr.csv"}, "columns": ["CR"], "seeds": [0], "stand_in": 0,
             "rows": ["MNB-uni"], "n_folds": 3}  # fmt: skip
    plan = make_plan(paper, "smoke", given)
    assert plan.jobs[0].parameters["files"] == {"CR": str(tmp_path / "cr.csv")}
    words = ["rerun", "wang2012", "--size", "smoke", "--json", "--out", "runs"]
    words += [w for k, v in given.items() for w in ("-p", f"{k}={json.dumps(v)}")]
    answer = ftnb(*words)
    assert answer.exit_code == 0, answer.stderr
    (cell,) = json.loads(answer.stdout)["tables"]["t2"]["cells"]
    assert cell["column"] == "CR" and cell["n"] == 240
    assert "no file nowhere.csv for CR" in one_line(
        ftnb("rerun", "wang2012", "-p", 'files={"CR": "nowhere.csv"}', "--out", "runs"))
    assert "files must name" in one_line(
        ftnb("rerun", "wang2012", "-p", "files=cr.csv", "--out", "runs"))
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n3,4\n")
    bad = [w.replace("cr.csv", "bad.csv") for w in words]
    assert "column" in one_line(ftnb(*bad))


def kept_run(store, plan, **changed):
    "A finished run of a plan, as the store keeps it, with another number for one parameter."
    key = f"{len(store.records()):024x}"
    (store.folder / key).mkdir()
    cells = [{"table": "t2", "row": row, "column": "MR", "seed": s, "score": 70.0 + s * i}
             for i, row in enumerate(("MNB-uni", "MNB-bi")) for s in (0, 1)]  # fmt: skip
    record = {"key": key, "notebook": plan.jobs[0].notebook.name, "size": plan.size,
              "parameters": plan.jobs[0].parameters | changed, "metrics": {"cells": cells}}
    (store.folder / key / "record.json").write_text(json.dumps(record))


def test_seeds_are_forecast_from_runs_that_did_the_same(tmp_path):
    from ftnb.jobs import Store
    from ftnb.rerun import earlier_cells, forecast, make_plan

    plan, store = make_plan(read_paper("wang2012"), "smoke"), Store(tmp_path / "store")
    kept_run(store, plan, stand_in=99)
    kept_run(store, plan, n_folds=3)
    assert earlier_cells(plan, store) == [], "fewer texts or folds tell nothing of these runs"
    assert all("not known" in line for line in forecast(plan, store))
    kept_run(store, plan, seeds=[7], columns=["Subj"])
    assert len(earlier_cells(plan, store)) == 4, "what is dealt out may differ"
    known = [line for line in forecast(plan, store) if "seeds needed" in line]
    assert len(known) == 1 and "MR: MNB-bi over MNB-uni by 1.1 points: " in known[0]
    other = make_plan(read_paper("wang2012"), "smoke", {"n_folds": 3})
    assert len(earlier_cells(other, store)) == 4, "the second run was one of these"


def test_the_kept_record_tells_the_spread_only_of_its_own_parameters(tmp_path, monkeypatch):
    import ftnb.rerun as rerun
    from ftnb.jobs import Store

    monkeypatch.setattr(rerun, "_missing", lambda *given: {})  # no data are needed
    paper, store = read_paper("wang2012"), Store(tmp_path / "store")
    assert rerun.earlier_cells(rerun.make_plan(paper, "cpu"), store)
    assert rerun.earlier_cells(rerun.make_plan(paper, "cpu", {"seeds": [0, 1, 2, 3]}), store)
    assert not rerun.earlier_cells(rerun.make_plan(paper, "cpu", {"n_folds": 5}), store)


def test_results_name_the_store_that_was_used(tmp_path):
    from ftnb.jobs import Store
    from ftnb.rerun import gather, make_plan

    plan = make_plan(read_paper("wang2012"), "smoke")
    failed = {str(i): {"state": "failed", "reason": ""} for i, _ in enumerate(plan.jobs)}
    assert gather(plan, Store(tmp_path / "shelf"), failed)["store"] == "../shelf"


def test_every_machine_of_a_rerun_is_kept(rerun, tmp_path):
    from ftnb.papers import label_of
    from ftnb.rerun import keep_rerun

    results = json.loads(json.dumps(rerun[1]))
    first, second = results["runs"].values()
    second["environment"] |= {"processor": "another", "cores": 99}
    kept = json.loads(keep_rerun(results, tmp_path).read_text())
    assert kept["environment"]["processor"].endswith(" or another")
    assert kept["environment"]["versions"] == first["environment"]["versions"], "where all agree"
    assert [r["environment"]["cores"] for r in kept["runs"].values()] == [
        first["environment"]["cores"], 99]  # fmt: skip
    assert " or another" in label_of(kept)


def test_what_was_not_drawn_counts_once_although_every_run_has_it():
    from ftnb import rerun

    def one(seed, score):
        return {"row": "majority", "column": "all", "seed": seed, "score": score}

    drawn = [one(0, 50.0), one(1, 50.0)]
    assert rerun.each_once([*drawn, one(None, 69.0), one(None, 69.0)]) == [*drawn, one(None, 69.0)]
    unlike = [one(None, 69.0), one(None, 68.0)]
    assert rerun.each_once(unlike) == unlike, "`assess` then refuses the table"
