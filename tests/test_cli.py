"""The command line as its users meet it: mistakes, interruptions, exit codes, output."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from typer.testing import CliRunner

from ftnb import cli
from ftnb.core import UserError

TINY = ["--size", "smoke", "--families", "bow", "--train-sizes", "8,24", "--seeds", "2"]


def table(path, rows, head=("text", "label"), encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as f:
        writer = csv.writer(f)
        writer.writerows([head, *rows])
    return str(path)


def good_rows(n=60):
    words = (("the lamp is broken", "light"), ("thank you", "praise"))
    return [(f"{words[i % 2][0]} {i}", words[i % 2][1]) for i in range(n)]


def ftnb(*words, **environment):
    "The real command line, in a process of its own."
    command = [sys.executable, "-m", "ftnb.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def refused(*words):
    "Run in this process; the one line on stderr of a command that must end with exit code 2."
    answer = CliRunner().invoke(cli.app, [str(w) for w in words])
    lines = answer.stderr.strip().splitlines()
    assert answer.exit_code == 2 and len(lines) == 1, (answer.exit_code, answer.output)
    assert lines[0].startswith("error: ") and "Traceback" not in answer.output
    return lines[0]


def test_version_and_help():
    from ftnb import __version__

    assert ftnb("--version").stdout.strip() == f"ftnb {__version__}"
    shown = ftnb("compare", "--help")
    assert shown.returncode == 0 and "ftnb compare my.csv" in " ".join(shown.stdout.split())


def test_the_entry_point_is_installed():
    import importlib.metadata

    points = importlib.metadata.entry_points(group="console_scripts", name="ftnb")
    assert [p.value for p in points] == ["ftnb.cli:main"]


def test_missing_file(tmp_path):
    table(tmp_path / "complaints.csv", good_rows())
    line = refused("compare", tmp_path / "complaint.csv")
    assert "no file" in line and "complaints.csv" in line


def test_wrong_column_names_the_columns(tmp_path):
    path = table(tmp_path / "a.csv", good_rows())
    line = refused("compare", path, "--text", "txt", "--label", "label", *TINY)
    assert "'txt'" in line and "text, label" in line


def test_empty_file(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"")
    assert "empty" in refused("compare", tmp_path / "a.csv")


def test_header_only(tmp_path):
    assert "no rows" in refused("compare", table(tmp_path / "a.csv", []))


def test_one_class_only(tmp_path):
    path = table(tmp_path / "a.csv", [(f"text {i}", "same") for i in range(30)])
    assert "one class only" in refused("compare", path)


def test_class_with_one_example(tmp_path):
    path = table(tmp_path / "a.csv", [*good_rows(), ("a rare thing", "rare")])
    assert "'rare'" in refused("compare", path)
    corpus = cli.compare_parameters([path], "smoke", tmp_path, {"drop_rare": True})
    assert corpus["drop_rare"] is True


def test_empty_texts_and_missing_labels_are_dropped_and_told(tmp_path):
    rows = [*good_rows(), ("", "light"), ("  \t ", "praise"), ("no label", ""), ("nan", "NaN")]
    shown = CliRunner().invoke(cli.app, ["data", "show", table(tmp_path / "a.csv", rows), "--json"])
    facts = json.loads(shown.stdout)
    assert shown.exit_code == 0 and facts["rows"] == 60 and facts["labels"] == ["light", "praise"]
    assert any("2" in note for note in facts["notes"]), facts["notes"]


def test_only_empty_texts(tmp_path):
    refused("compare", table(tmp_path / "a.csv", [("  ", "a"), ("", "b")] * 10))


def test_bytes_that_are_not_utf8(tmp_path):
    rows = [(f"déjà vu à l'été {i}", ("été", "hiver")[i % 2]) for i in range(40)]
    shown = CliRunner().invoke(
        cli.app, ["data", "show", table(tmp_path / "a.csv", rows, encoding="latin-1"), "--json"]
    )
    facts = json.loads(shown.stdout)
    assert facts["labels"] == ["hiver", "été"] and "déjà" in facts["texts"][0]["text"]


def test_ten_thousand_classes(tmp_path):
    alone = [(f"text number {i}", f"class {i}") for i in range(10_000)]
    assert "10,000" in refused("compare", table(tmp_path / "a.csv", alone))
    path = table(tmp_path / "b.csv", [(f"{t} {k}", c) for t, c in alone for k in "ab"])
    cli.compare_parameters([path], "smoke", tmp_path, {})  # two of each can be studied


def test_unknown_set_suggests_the_nearest():
    assert "hotline" in refused("compare", "hotlin")
    assert "sst2" in refused("data", "show", "sst3")
    assert "sst2" in refused("data", "get", "sst")


def test_no_network_and_no_mirror(cache, monkeypatch):
    monkeypatch.setenv("FTNB_OFFLINE", "1")
    line = refused("compare", "sst2", *TINY)
    assert "FTNB_MIRROR" in line or "mirror" in line


def test_a_set_without_labels(mirror):
    assert "error" not in CliRunner().invoke(cli.app, ["data", "show", "tiny_shakespeare"]).output
    assert "label" in refused("compare", "tiny_shakespeare")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--families", "bow,bert"], "no family 'bert'"),
        (["--size", "huge"], "smoke"),
        (["--seeds", "0"], "seeds"),
        (["--train-sizes", "100,lots"], "training size"),
        (["--train-sizes", "100,--5"], "training size"),
        (["--train-sizes", "²"], "training size"),
        (["--families", ","], "names nothing"),
        (["--test-limit", "-3"], "test_limit"),
        (["--cap", "full=true"], "full=2000"),
        (["--cap", "full=many"], "full=2000"),
        (["--cap", "fool=10"], "no family 'fool'"),
        (["--workers", "0"], "workers"),
    ],
)
def test_options_that_make_no_study(options, said):
    assert said in refused("compare", "hotline", *TINY, *options)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", "--sede", "3"], "--seeds"),
        (["compare", "--seeds", "x"], "'--seeds'"),
        (["compare", "--families"], "ftnb compare --help"),
        (["rerun", "--seeds", "0"], "'--seeds'"),
        (["data", "show"], "missing argument"),
        (["data", "shaw"], "'show'"),
        (["compar"], "'compare'"),
        (["--bogus"], "ftnb --help"),
    ],
)
def test_what_cannot_be_read_is_answered_by_one_line(words, said):
    line = refused(*words)
    assert said in line and line.endswith("--help")


def test_usage_errors_of_the_real_command_are_one_line_too():
    ran = ftnb("data", "show", "--row", "3")
    assert ran.returncode == 2 and not ran.stdout and len(ran.stderr.strip().splitlines()) == 1
    assert "--rows" in ran.stderr
    for words in ([], ["data"]):
        assert "Usage" in ftnb(*words).stdout, "no command: the help"


def test_help_does_not_cut_the_families():
    shown = ftnb("compare", "--help", COLUMNS="80").stdout
    names = "bow, vectors, chars, bytes, frozen, full."
    assert all(name in shown for name in names.split())


def test_tables_of_one_name_have_folders_of_their_own(tmp_path):
    one, other = (cli.default_out([str(tmp_path / d / "x.csv")]) for d in "ab")
    assert one != other and one == cli.default_out([str(tmp_path / "a" / "x.csv")])
    long = [cli.default_out([f"{'x' * 200}{end}"]) for end in "ab"]
    assert len(set(long)) == 2 and all(len(p.name) <= 120 for p in long)
    assert cli.default_out(["hotline"]).name == "compare-hotline"


def test_remedies_are_spelt_as_options(tmp_path):
    (tmp_path / "one.csv").write_text("text,label\na,b\nc,d\n")
    (tmp_path / "bare.csv").write_text("words,topic\na,b\nc,d\n")
    for command in (["data", "show"], ["compare"]):
        assert "--drop-rare" in refused(*command, str(tmp_path / "one.csv"))
        assert "--text NAME" in refused(*command, str(tmp_path / "bare.csv"), "--label", "topic")


def test_no_room_on_the_disk(tmp_path, monkeypatch):
    from ftnb import runs

    def in_the_notebook(*_, **__):  # what the notebook raises, the runner passes on
        from ftnb.compare import compare

        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        compare(["hotline"], tmp_path / "out", size="smoke", families=["bow"])

    monkeypatch.setattr(runs, "run_notebook", in_the_notebook)
    assert "no space" in refused("compare", "hotline", *TINY, "--out", tmp_path / "out")


def test_traceback_only_with_debug(monkeypatch, tmp_path):
    from ftnb import runs

    def fail(*_, **__):
        raise runs.NotebookFailed(tmp_path / "kept.ipynb", "ZeroDivisionError", "division by zero")

    monkeypatch.setattr(runs, "run_notebook", fail)
    plain = CliRunner().invoke(cli.app, ["run", "00_core"])
    assert plain.exit_code == 1 and len(plain.stderr.strip().splitlines()) == 1
    assert "kept.ipynb" in plain.stderr
    debug = CliRunner().invoke(cli.app, ["run", "00_core", "--debug"])
    assert debug.exit_code == 1 and "Traceback" in debug.stderr


def test_verify_finds_a_changed_file(mirror, cache, monkeypatch, tmp_path):
    "A digest mismatch is exit code 1, and loading such a set is refused."
    copy = tmp_path / "mirror" / "trec6"
    shutil.copytree(mirror / "trec6", copy)
    victim = sorted(copy.iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    monkeypatch.setenv("FTNB_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("FTNB_OFFLINE", "1")
    answer = CliRunner().invoke(cli.app, ["data", "verify", "trec6"])
    assert answer.exit_code == 1
    refused("data", "get", "trec6")


def test_run_with_an_unknown_parameter():
    assert "seed" in refused("run", "00_core", "-p", "sead=3")
    assert "name=value" in refused("run", "00_core", "-p", "seed")


def test_user_error_of_the_notebook_is_one_line(monkeypatch):
    from ftnb import runs

    def fail(*_, **__):
        raise UserError("found inside the notebook")

    monkeypatch.setattr(runs, "run_notebook", fail)
    assert "found inside the notebook" in refused("run", "00_core")


def test_compare_interrupted_and_continued(tmp_path):
    "Ctrl-C in the middle: exit 130, finished parts stay, no process stays; then it goes on."
    path = table(tmp_path / "my.csv", good_rows())
    long = ["compare", path, *TINY[:4], "--train-sizes", "8", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "ftnb.cli", *map(str, long), "--seeds", "500"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    cells = tmp_path / "out" / "cells"
    deadline = time.monotonic() + 90
    while not (cells.is_dir() and len(list(cells.glob("[!.]*.json"))) >= 5):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=40)
    assert process.returncode == 130 and "Finished parts are kept" in said, said
    assert len(said.strip().splitlines()) == 1
    _, alive = psutil.wait_procs(below, timeout=10)
    assert not alive, "a process stayed behind"
    done = {p.name: p.stat().st_mtime_ns for p in cells.glob("[!.]*.json")}
    assert 5 <= len(done) < 500
    again = ftnb(*long, "--seeds", 4, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["corpora"][0]["curves"][0]["seeds"] == 4
    assert {p.name: p.stat().st_mtime_ns for p in cells.glob("[!.]*.json")} == done
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"index.html", "39_compare.ipynb", "record.json"} <= left


def test_fit_estimate_tells_memory_and_whether_it_fits():
    words = ["fit-estimate", "2x128", "--batch", "4", "--length", "32", "--json"]
    found = [json.loads(CliRunner().invoke(cli.app, [*words, *more]).stdout)
             for more in ([], ["--checkpointing"], ["--memory", "0.001"])]
    plain, again, little = found
    assert plain["fits"] and not little["fits"] and little["free"] == 1_000_000
    assert again["activations"] < plain["activations"] and again["weights"] == plain["weights"]
    assert plain["optimizer"] == 2 * plain["weights"] and plain["step_seconds"] > 0


@pytest.mark.parametrize(
    "words", [["0x128"], ["2x100"], ["no/such/folder"], ["2x128", "--optimizer", "adam"],
              ["2x128", "--accumulate", "99"], ["2x128", "--length", "513"],
              ["2x128", "--device", "tpu"]],
)
def test_fit_estimate_refuses(words):
    answer = CliRunner().invoke(cli.app, ["fit-estimate", *words])
    assert answer.exit_code == 2 and len(answer.stderr.strip().splitlines()) == 1
