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
from ftnb.core import UserError, environment
from ftnb.data import Corpus
from ftnb.jobs import modules_behind

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
    facts = numbers | arrays | study._circumstances(task, 0.0)
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


@pytest.mark.parametrize("family", study.FAMILIES)
def test_each_module_behind_a_result_changes_its_key(family, monkeypatch):
    task = {"family": family, "size": "smoke", "n_train": 8, "seed": 0, "robust": False}
    module = study.FAMILIES[family]["module"]
    first, real = study.task_key(task, "digest"), study._source_digest
    behind = {*modules_behind(f"import ftnb.{module}"), "study", "metrics", "core", "text"}
    for name in behind:
        monkeypatch.setattr(study, "_source_digest",
                            lambda m, name=name: "other" if m == name else real(m))
        assert study.task_key(task, "digest") != first, f"{name}.py decides, too"
    others = {"bow", "vectors", "chars", "bert"} - behind
    monkeypatch.setattr(study, "_source_digest", lambda m: "other" if m in others else real(m))
    assert others and study.task_key(task, "digest") == first, "other families decide nothing"


def test_a_gpu_that_is_not_used_is_not_reported(monkeypatch):
    monkeypatch.setattr(study, "environment", lambda: environment() | {"device": "a GPU"})
    task = {"family": "chars", "size": "cpu", "threads": 1}
    assert study._circumstances(task, 0.0)["device"] == "cpu"
    assert study._circumstances(task | {"size": "gpu"}, 0.0)["device"] == "a GPU"
    assert study._circumstances(task | {"size": "gpu", "family": "bow"}, 0.0)["device"] == "cpu"


def test_damaged_results_are_computed_again(tmp_path, finished):
    victims = sorted((tmp_path / "out" / "cells").glob("[!.]*.json"))[:3]
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


def test_a_damaged_result_whose_worker_is_killed_is_a_failure(tmp_path, finished, monkeypatch):
    "The mark is there and the arrays are broken: the result still counts as absent."
    victim = sorted((tmp_path / "out" / "cells").glob("*.npz"))[0]
    victim.write_bytes(b"half a file")
    started = study._start

    def kill(*given):
        job = started(*given)
        os.kill(job[0].pid, signal.SIGKILL)
        return job

    monkeypatch.setattr(study, "_start", kill)
    found = run(tmp_path)["corpora"][0]
    assert len(found["failures"]) == 1 and "memory" in found["failures"][0]["reason"]
    assert sum(r["seeds"] for r in found["curves"]) == 3


def by_hand(task, accuracy=0.5, **more):
    "A result of six test texts, without a training."
    here = {"processor": "a CPU", "device": "cpu", "threads": 1, "task": task}
    numbers = dict.fromkeys(("train_seconds", "milliseconds", "startup_seconds", "peak_mb",
                             "predict_seconds", "n_parameters", "size_bytes"), 1.0)
    numbers |= {"accuracy": accuracy, "macro_f1": accuracy, "calibration_error": 0.1}
    guess, sure = np.array([0, 1, 0, 0, 1, 1]), np.full(6, 0.6)
    robust = {"robust": dict.fromkeys(("none", "typos", "upper", "nonce"), 0.5)}
    return here | numbers | robust | {"guess": guess, "confidence": sure} | more


def summary(results, failures=(), largest=24, caps=None, name="made"):
    "A study by hand, summarised; its report as a page."
    texts = [f"text {i}" for i in range(12)]
    corpus = Corpus(name, texts, [0, 1] * 6, ["a", "b"], ["train"] * 6 + ["test"] * 6)
    material = study.prepare(corpus, robust_limit=3)
    found = comparison.summarise(material, corpus, results, list(failures), 100, largest, caps)
    seeds = max((r["seeds"] for r in found["curves"]), default=1)
    whole = {"corpora": [found], "settings": comparison.check_settings(TINY | {"seeds": seeds}),
             "environment": study.environment()}
    figures = dict.fromkeys(("curves", "cost", "robustness"), "<svg/>")
    return found, comparison.render_page(whole, [figures])


def task_of(family, n_train, seed=0):
    return {"family": family, "n_train": n_train, "seed": seed}


def test_a_size_that_failed_is_not_called_capped():
    done = [by_hand(task_of(f, n)) for f, n in (("bow", 8), ("bow", 24), ("vectors", 8))]
    done += [by_hand(task_of("full", 8))]
    failure = task_of("vectors", 24) | {"reason": "a full moon"}
    found, page = summary(done, [failure], caps={"full": 8})
    said = {r["family"]: comparison.train_rows(r) for r in found["largest"]}
    assert said == {"bow": "24", "vectors": "8 (larger size not finished)",
                    "full": "8 (capped for time)"}
    curves = {row[0]: row[-1] for row in comparison.curve_table(found)["rows"]}
    assert curves["word vectors"] == "not finished" and curves["MiniLM, fine-tuned"] == "not run"
    assert "On equal terms, with 8 rows" in page


def test_every_reason_of_a_failure_is_told_once():
    failures = [task_of("vectors", 24, s) | {"reason": "a full moon"} for s in (1, 2)]
    failures += [task_of("chars", n, 1) | {"reason": "a flood"} for n in (8, 24)]
    failures += [task_of("vectors", 24, 3) | {"reason": "a flood"}]
    found, page = summary([by_hand(task_of("bow", 24))], failures)
    assert comparison.failure_lines(found["failures"]) == [
        "word vectors with 24 rows, 2 seeds: a full moon",
        "characters with 8 rows, 1 seed: a flood", "characters with 24 rows, 1 seed: a flood",
        "word vectors with 24 rows, 1 seed: a flood",
    ]  # fmt: skip
    assert page.count("Not finished:") == 4


def test_the_page_names_the_machine_of_the_results():
    one = by_hand(task_of("bow", 24))
    _, page = summary([one])
    assert "measured on a CPU, cpu, 1 thread(s) in each." in page and "More than one" not in page
    _, page = summary([one, by_hand(task_of("full", 24), device="a GPU")])
    assert "a GPU, 1 thread(s) in each; and on a CPU, cpu, 1" in page and "More than one" in page
    assert "nothing" in summary([])[1]


def test_intervals_of_one_seed_say_what_they_hold():
    _, page = summary([by_hand(task_of("bow", 24))])
    assert "6 test texts, 1 seed." in page and "test texts only" in page
    assert "combine" not in page
    two = [by_hand(task_of("bow", 24, s), 0.4 + 0.1 * s) for s in (0, 1)]
    _, page = summary(two)
    assert "2 seeds. Intervals combine test items and seeds." in page
    _, page = summary([*two, by_hand(task_of("vectors", 24))])
    assert "1 to 2 seeds." in page and "those of a single seed, test items only" in page
    settings = [{"settings": comparison.check_settings({"seeds": n})} for n in (1, 2)]
    lines = [" ".join(comparison.method_lines(one)) for one in settings]
    assert "Student" not in lines[0] and "One seed" in lines[0] and "Student" in lines[1]


def test_two_tables_of_one_name_do_not_share_a_report(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_table(tmp_path / folder / "x.csv", n=60 if folder == "a" else 80)
    tables = [str(tmp_path / folder / "x.csv") for folder in ("a", "b")]
    result = comparison.compare(tables, tmp_path / "out", "complaint", "topic", **TINY)
    names = [os.path.join(folder, "x.csv") for folder in ("a", "b")]
    assert [f["name"] for f in result["corpora"]] == names
    assert set(result["recommendations"]) == set(names)
    assert len(list((tmp_path / "out" / "figures").glob("*-curves.svg"))) == 2
    page = (tmp_path / "out" / "index.html").read_text("utf-8")
    assert len(set(re.findall(r'<h2 id="([^"]+)"', page))) == 2


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
