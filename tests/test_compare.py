"""The study: interrupted, broken, starved of space, and fed with hostile input."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from ftnb import compare as comparison
from ftnb import study
from ftnb.core import UserError
from ftnb.data import Corpus

TINY = {
    "size": "smoke", "families": ["bow"], "train_sizes": [8, 24], "seeds": 2, "robust_limit": 5,
    "workers": 1, "resamples": 100,
}  # fmt: skip


def write_table(path, n=60, label="topic", text="complaint"):
    "A table of two classes that any classifier can learn."
    rng = np.random.default_rng(0)
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow([text, label])
        for i in range(n):
            word = ("lamp broken", "thank you")[i % 2]
            writer.writerow([f"{word} number {rng.integers(1000)} {i}", ("light", "praise")[i % 2]])
    return path


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    "One finished study: its folder and what it returned."
    folder = tmp_path_factory.mktemp("once")
    return folder, run(folder)


@pytest.fixture
def finished(once, tmp_path):
    "A copy of the finished study that a test may spoil; returns what it had returned."
    shutil.copytree(once[0], tmp_path, dirs_exist_ok=True)
    return once[1]


def run(tmp_path, **changes):
    table = write_table(tmp_path / "my.csv")
    return comparison.compare(
        [str(table)], tmp_path / "out", "complaint", "topic", **TINY | changes
    )


def cells(tmp_path):
    "Finished results; a name with a dot in front is a file that a kill left half written."
    found = (tmp_path / "out" / "cells").glob("[!.]*.json")
    return {p.name: p.stat().st_mtime_ns for p in found}


def test_report_of_a_table_of_ones_own(tmp_path, finished):
    found = finished["corpora"][0]
    assert found["n_classes"] == 2 and not found["failures"]
    best = found["largest"][0]
    assert best["accuracy"]["low"] > 0.5 and best["n_train"] == 24 and best["seeds"] == 2
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"index.html", "results.json", "results.csv", "figures", "cells"} <= names
    assert not (tmp_path / "out" / "progress.json").exists()
    kinds = {p.suffix for p in (tmp_path / "out" / "figures").iterdir()}
    assert kinds == {".png", ".svg"}
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open(encoding="utf-8")))
    assert len(rows) == 2 and {r["family"] for r in rows} == {"bow"}


def test_page_is_self_contained_and_escapes_texts(tmp_path):
    hostile = ["<script>alert(1)</script> lamp", "thank </td> you & more"] * 20
    corpus = Corpus("<b>x</b>", hostile, [0, 1] * 20, ["a<i>", "b"], ["train"] * 20 + ["test"] * 20)
    material = study.prepare(corpus, robust_limit=3)
    task = {"family": "bow", "size": "smoke", "n_train": 4, "seed": 0, "robust": True, "threads": 1}
    numbers, arrays = study.run_task(task, material, 0.0)
    arrays["guess"] = 1 - np.array(material["test_labels"])  # all wrong: all are listed
    facts = numbers | arrays | {"task": task, "startup_seconds": 0.0}
    found = comparison.summarise(material, corpus, [facts], [], 100, 4)
    settings = comparison.check_settings(TINY)
    whole = {"corpora": [found], "settings": settings, "environment": study.environment()}
    comparison.write_report(whole, tmp_path)
    page = (tmp_path / "index.html").read_text("utf-8")
    assert "<script" not in page and "<b>x" not in page and "a<i>" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r'(?:src|href)="(?!#)', page) and "@import" not in page
    assert all(p.parent == tmp_path / "figures" for p in tmp_path.rglob("*.svg"))


def test_second_start_computes_nothing(tmp_path, finished):
    before = cells(tmp_path)
    run(tmp_path)
    assert cells(tmp_path) == before and len(before) == 4


def test_more_seeds_compute_only_what_is_new(tmp_path, finished):
    before = cells(tmp_path)
    run(tmp_path, seeds=3)
    more = cells(tmp_path)
    assert len(more) == 6 and {n: more[n] for n in before} == before


def test_a_changed_text_makes_the_old_results_unfit(tmp_path, finished):
    material = study.prepare(study.open_corpus(str(tmp_path / "my.csv"), "complaint", "topic"))
    changed = material["train_texts"][:-1] + ["another text"]
    other = study.prepare(Corpus("my", changed + ["x", "y"], [0, 1] * (len(changed) // 2 + 1),
                                 ["a", "b"], ["train"] * len(changed) + ["test"] * 2))
    task = {"family": "bow", "size": "smoke", "n_train": 8, "seed": 0, "robust": False}
    assert study.task_key(task, material["digest"]) != study.task_key(task, other["digest"])


def test_damaged_results_are_computed_again(tmp_path, finished):
    victims = sorted((tmp_path / "out" / "cells").glob("*.json"))[:3]
    for victim, damage in zip(victims, (b"", b'{"accur', b"\x00\xff"), strict=True):
        victim.write_bytes(damage)
    assert accuracies(run(tmp_path)) == accuracies(finished)
    assert all(json.loads(victim.read_text()) for victim in victims)


def accuracies(result):
    return [r["accuracy"]["values"] for r in result["corpora"][0]["curves"]]


START = """
import sys
from ftnb.compare import compare
compare([sys.argv[1]], sys.argv[2], "complaint", "topic", size="smoke", families=["bow"],
        train_sizes=[8], seeds=400, robust_limit=5, workers=2, resamples=100)
"""


def interrupted(tmp_path, how):
    "Start a long study, stop it when some results are there; returns what was finished."
    table = write_table(tmp_path / "my.csv")
    command = [sys.executable, "-c", START, table, tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    folder = tmp_path / "out" / "cells"
    while not (folder.is_dir() and len(list(folder.glob("[!.]*.json"))) >= 3):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    process.wait(20)
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive, "a worker stayed behind"
    return cells(tmp_path)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_interrupted_study_continues(tmp_path, how):
    done = interrupted(tmp_path, how)
    assert 3 <= len(done) < 400
    kept = len(done) - 2  # as many seeds again, less than what is there: nothing new to compute
    run_again = dict(train_sizes=[8], seeds=kept)
    found = run(tmp_path, **run_again)["corpora"][0]
    after = cells(tmp_path)
    assert found["curves"][0]["seeds"] == kept
    assert sum(after.get(n) != t for n, t in done.items()) == 0, "finished parts were touched"


def test_a_worker_that_is_killed_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    started = study._start

    def kill_one(chain, *rest):
        job = started(chain, *rest)
        if chain["family"] == "vectors":
            os.kill(job[0].pid, signal.SIGKILL)
        return job

    monkeypatch.setattr(study, "_start", kill_one)
    found = run(tmp_path, families=["bow", "vectors"], train_sizes=[8])["corpora"][0]
    assert {f["family"] for f in found["failures"]} == {"vectors"}
    assert "memory" in found["failures"][0]["reason"]
    assert [r["family"] for r in found["largest"]] == ["bow"]
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert "Not finished" in page and "word vectors" in page


def test_all_families_fail_and_the_report_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(study.FAMILIES["bow"], "estimator", "NoSuchClass")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "from ftnb import study\nstudy.FAMILIES['bow']['estimator'] = 'NoSuchClass'\n"
    )
    found = run(tmp_path)["corpora"][0]
    assert len(found["failures"]) == 4 and not found["largest"]
    assert "NoSuchClass" in found["failures"][0]["reason"]
    assert "Nothing to recommend" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_no_room_at_the_start(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="no space") as caught:
        run(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_room_in_the_middle(tmp_path, monkeypatch):
    "A worker that meets a full disk ends the study with one line; what is finished stays."
    (tmp_path / "sitecustomize.py").write_text(
        "import errno\nfrom ftnb import study\nkeep = study.keep_result\n"
        "def full(folder, key, *rest):\n"
        "    if len(list(folder.glob('*.json'))) >= 2:\n"
        "        raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "    keep(folder, key, *rest)\n"
        "study.keep_result = full\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match="no space left"):
        run(tmp_path)
    assert len(cells(tmp_path)) == 2


def test_two_studies_in_one_folder(tmp_path):
    "The second is refused before it computes anything."
    with study.only_one(tmp_path / "out"), pytest.raises(UserError, match="another comparison"):
        run(tmp_path)


def test_one_very_long_text(tmp_path):
    table = write_table(tmp_path / "my.csv")
    with open(table, "a") as f:
        f.write("x" * 5_000_000 + " lamp " + "y" * 5_000_000 + ",light\n")
    result = comparison.compare(
        [str(table)], tmp_path / "out", "complaint", "topic", **TINY | {"train_sizes": ["all"]}
    )
    assert not result["corpora"][0]["failures"]
    assert (tmp_path / "out" / "index.html").stat().st_size < 2_000_000


def test_same_study_gives_the_same_accuracies_and_figures(tmp_path, finished):
    curves = (tmp_path / "out" / "figures" / "my-curves.svg").read_bytes()
    shutil.rmtree(tmp_path / "out")
    assert accuracies(run(tmp_path)) == accuracies(finished)
    assert (tmp_path / "out" / "figures" / "my-curves.svg").read_bytes() == curves


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"familes": ["bow"]}, "no setting 'familes'"),
        ({"families": "bow"}, "list"),
        ({"families": None}, "list"),
        ({"seeds": "3"}, "seeds"),
        ({"seeds": 2.5}, "seeds"),
        ({"workers": None}, "workers"),
        ({"train_sizes": None}, "list"),
        ({"train_sizes": "all"}, "list"),
        ({"test_limit": -1}, "test_limit"),
        ({"caps": ["full"]}, "caps"),
        ({"caps": {"full": 2.5}}, "cap"),
        ({"size": ["cpu"]}, "smoke"),
    ],
)
def test_settings_that_make_no_study_are_refused_in_one_line(wrong, said):
    with pytest.raises(UserError, match=said) as caught:
        comparison.check_settings(wrong)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("corpora", [None, [], "hotline", [None], [3]])
def test_corpora_are_a_list_of_names(tmp_path, corpora):
    with pytest.raises(UserError, match="corp"):
        comparison.compare(corpora, tmp_path / "out", **TINY)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("labels", [None, [], ["a", "b"], [-1, 0], [[0, 1]], [0.5, 1]])
def test_labels_that_are_no_numbers_of_classes(labels):
    with pytest.raises(UserError, match="labels"):
        study.nested_order(labels, np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(5))
def test_prefixes_are_nested_and_stratified(seed):
    rng = np.random.default_rng(seed)
    labels = rng.choice(7, size=400, p=rng.dirichlet(np.ones(7)))
    labels = np.unique(labels, return_inverse=True)[1]
    order = study.nested_order(labels, rng)
    assert sorted(order) == list(range(400))
    shares = np.bincount(labels) / 400
    counts = np.cumsum(np.eye(len(shares))[labels[order]], axis=0)
    assert np.abs(counts - np.arange(1, 401)[:, None] * shares).max() < 2.5
