"""The report of reruns: what it says, what it refuses to let through, and that it needs nothing."""

import base64
import hashlib
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from ftnb.core import UserError
from ftnb.papers import VERDICTS, Paper, Table, assess, cell, check_claims, read_paper
from ftnb.report import (
    LOOK,
    SCRIPT,
    claim_sentence,
    claim_word,
    cost_line,
    curves_of,
    draw,
    inline_svg,
    plot_table,
    policy,
    read_results,
    render_page,
    run_facts,
    tint,
    write_report,
)

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(2)> & 50 % _x_ $y$ #1 {b} ~^\\ a|b'


def a_run(key, column, seed, **more):
    here = {"versions": {"python": "3.11", "torch": "2.0"}, "processor": "some", "cores": 2,
            "threads": 1, "device": "cpu", "system": "Linux"}
    return {"notebook": "80_wang2012.ipynb", "title": f"80_wang2012(columns=['{column}'])",
            "parameters": {"columns": [column], "seeds": [seed]}, "seeds": [seed],
            "data": {"sentence_polarity": "ab" * 32}, "metrics": {},
            "git": {"commit": "12" * 20, "dirty": seed == 1}, "environment": here,
            "seconds": 12.5, "peak_memory_mb": 400.0, "energy_joules": None, "key": key,
            "finished": "2026-01-01T00:00:00+00:00", "state": "done", "reason": ""} | more


def results_of(paper, table, columns, size="cpu", rename=None, n_seeds=3):
    "A rerun of a paper whose every measured cell is a coin with the published chance."
    rng, cells, runs = np.random.default_rng(0), [], {}
    for column in columns:
        for seed in range(n_seeds):
            key = f"{len(runs):024x}"
            runs[key] = a_run(key, column, seed)
            for row in [*table.published, rename or "our own row"]:
                chance = table.published.get(row, {}).get(column, [80])[0] / 100
                differs = "half of the rows" if row == "SVM-uni" else ""
                made = cell(table, row, column, seed, rng.random(2000) < chance, differs=differs)
                cells.append(made | {"run": key})
    missing = {c: f"{c}: not here; get it with: ftnb data get {c.lower()} (licence: any)"
               for c in table.columns if c not in columns}
    failure = {"title": "80_wang2012(columns=['CR'])", "reason": "MemoryError: no more",
               "path": "store/failed/1", "command": "ftnb run 80_wang2012 -p 'columns=[\"CR\"]'"}
    return {"paper": paper.name, "size": size, "store": "store", "made": "2026-01-01T00:00:00",
            "executor": "local", "threads": 1, "parameters": {}, "missing": missing, "runs": runs,
            "failures": [failure],
            "tables": {table.name: {"found": assess(table, cells, missing), "cells": cells,
                                    "claims": check_claims(table, cells)}}}


@pytest.fixture(scope="module")
def wang():
    paper = read_paper("wang2012")
    return paper, paper.tables["t2"]


@pytest.fixture(scope="module")
def results(wang):
    return results_of(*wang, ["MR", "Subj"])


@pytest.fixture(scope="module")
def files(results, tmp_path_factory):
    return write_report(results, tmp_path_factory.mktemp("report"))


class Page(html.parser.HTMLParser):
    "Collects what a test wants to know of a page."

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded, self.tags, self.words = [], [], [], [], []
        self.open, self.faults = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if given.get("id") else []
        if tag == "a":
            self.links.append(given["href"])
        elif tag != "use":
            self.loaded += [v for k, v in given.items() if k in ("src", "href", "srcset")]
        if tag not in ("meta", "link", "br", "img", "path", "use", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag in ("path", "use", "rect"):
            return
        if not self.open or self.open[-1] != tag:
            self.faults.append((tag, self.getpos()))
        else:
            self.open.pop()

    def handle_data(self, data):
        self.words.append(data)


def test_the_files_and_their_order(files):
    assert [p.name for p in files] == ["index.html", "table-wang2012-t2.md",
                                       "table-wang2012-t2.tex", "table-wang2012-t2.csv"]


def test_the_page_says_what_a_report_must(files, results, wang):
    paper, table = wang
    text = files[0].read_text("utf-8")
    words = " ".join(" ".join(Page(text).words).split())
    for needed in (paper.question, paper.title, "Wang and Manning (2012)", table.protocol,
                   "the folds are our own draw", "MemoryError: no more", "store/failed/1",
                   "ftnb data get mpqa", "energy", "unknown", "half of the rows", "93.6",
                   "our own row", "ftnb rerun wang2012 --size cpu",
                   "with changes that are not committed", "Failed runs: 1"):
        assert needed in words, needed
    for key in results["runs"]:
        assert f"ftnb verify {key}" in words
    assert text.index("What the paper claims") < text.index("Published and measured")
    seen = {f["verdict"] for f in results["tables"]["t2"]["found"]}
    assert {"not comparable", "not measured", "not published", "reached"} <= seen
    assert all(f"{LOOK[v][1]} {v}" in words for v in seen), "a sign and a word for each verdict"


def test_every_measured_cell_leads_to_its_runs(files, results):
    page = Page(files[0].read_text("utf-8"))
    assert len(page.ids) == len(set(page.ids)), "an anchor is double"
    inside = {link[1:] for link in page.links if link.startswith("#")}
    assert inside <= set(page.ids), f"links to nowhere: {inside - set(page.ids)}"
    runs = [link for link in page.links if link.startswith("#run-")]
    measured = [f for f in results["tables"]["t2"]["found"] if f["measured"] is not None]
    assert len(runs) == sum(len(f["runs"]) for f in measured) + len(results["runs"])
    rows = [link for link in page.links if link.startswith("#cell-")]
    assert len(rows) == len(measured), "the numbers of the grid lead to the list"


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(files, wang):
    text = files[0].read_text("utf-8")
    page = Page(text)
    assert not page.faults and not page.open
    assert page.loaded == ["data:,"], "only an empty icon is loaded"
    assert [link for link in page.links if not link.startswith("#")] == [wang[0].url]
    assert not re.search(r"@import|url\((?!#)", text)
    assert not re.search(r"https?://(?!aclanthology|www\.w3\.org/2000/svg)", text)
    assert text.startswith("<!doctype html>\n<html lang=\"en\">") and "<title>" in text


def test_the_policy_allows_our_script_alone(files):
    text = files[0].read_text("utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"sha256-{digest}" in policy() and script == SCRIPT and "default-src 'none'" in policy()
    (meta,) = [a for tag, a in Page(text).tags if tag == "meta" and "http-equiv" in a]
    assert meta["content"] == policy()


@pytest.mark.parametrize("size, loud", [("smoke", "SMOKE SIZE"), ("cpu", "CPU SIZE")])
def test_a_small_size_is_said_wherever_the_two_numbers_meet(wang, tmp_path, size, loud):
    page, markdown, latex, table = write_report(results_of(*wang, ["MR"], size), tmp_path)
    text = page.read_text("utf-8")
    for place in ("<h2", 'id="claims-', 'id="grid-', 'id="list-'):
        start = text.index(place)
        assert loud in text[start : start + 400], place
    assert loud in re.search(r"<title>(.*?)</title>", text)[1]
    assert text.count(f"measured, {loud}") >= 2, "the head of the column, and the figure"
    assert f"measured gap, {loud}" in text
    for part in re.split(r"^## ", markdown.read_text("utf-8"), flags=re.M):
        assert loud in part.partition("- ✓")[0], part[:60]
    assert latex.read_text("utf-8").count(loud) >= 4
    assert set(pd.read_csv(table)["size"]) == {size}
    gpu = render_page(results_of(*wang, ["MR"], "gpu"))
    assert "SIZE" not in gpu and "gpu size" in gpu


def test_a_hostile_name_stays_text(wang, tmp_path):
    paper, table = wang
    bad = results_of(paper, table, ["MR"], rename=HOSTILE)
    key = next(iter(bad["runs"]))
    bad["missing"] |= {"CR": HOSTILE}
    bad["failures"] = [{"title": HOSTILE, "reason": HOSTILE, "path": HOSTILE, "command": HOSTILE}]
    bad["runs"][key] |= {"title": HOSTILE, "parameters": {HOSTILE: HOSTILE}, "data": {HOSTILE: "0"},
                         "state": HOSTILE, "metrics": {"curve": [
                             {"x": [1, 2], "y": [1, 2], "label": HOSTILE, "xlabel": HOSTILE}]}}
    bad |= {"store": HOSTILE, "made": HOSTILE, "executor": HOSTILE}
    page, markdown, latex, table = write_report(bad, tmp_path)
    seen = Page(page.read_text("utf-8"))
    assert not seen.faults and [t for t, _ in seen.tags].count("script") == 1
    assert not [a for t, a in seen.tags if t == "img" or any(k.startswith("on") for k in a)]
    assert HOSTILE in " ".join(seen.words), "but it can be read"
    assert "<script" not in markdown.read_text("utf-8")
    lines = [line for line in markdown.read_text("utf-8").splitlines() if line.startswith("|")]
    pipes = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
    assert len(pipes) == 3, "claims, grid and list keep their numbers of cells"
    assert HOSTILE in set(pd.read_csv(table)["row"])
    check_latex(latex.read_text("utf-8"))


def check_latex(text):
    "Balanced, and no sign of its own is left bare."
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    assert body.isascii(), set(re.findall(r"[^\x00-\x7f]", body))
    begun, ended = (re.findall(rf"\\{w}\{{(\w+)\}}", body) for w in ("begin", "end"))
    assert sorted(begun) == sorted(ended) and {"table", "tabular", "longtable"} == set(begun)
    bare = re.sub(r"\\\\|\\[\\{}&%$#_]", "", body)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert not re.search(r"[%#~<>^]", bare)
    assert "_" not in re.sub(r"\\label\{[^}]*\}", "", bare)
    for rule in ("toprule", "midrule", "bottomrule"):
        assert f"\\{rule}" in body


def test_latex_is_sound(files):
    check_latex(files[2].read_text("utf-8"))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(wang, tmp_path):
    write_report(results_of(*wang, ["MR"], rename=HOSTILE), tmp_path)
    (tmp_path / "m.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,longtable}\\begin{document}"
        "\\input{table-wang2012-t2}\\end{document}")
    run = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "m.tex"],
                         cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert run.returncode == 0, run.stdout[-2000:]


def test_the_csv_has_every_digit(files, results):
    table = pd.read_csv(files[3], keep_default_na=False, na_values=[""])
    found = results["tables"]["t2"]["found"]
    assert len(table) == len(found) and list(table.verdict) == [f["verdict"] for f in found]
    for name in ("measured", "low", "high", "p_holm", "published"):
        ours = [np.nan if f.get(name) is None else f[name] for f in found]
        np.testing.assert_array_equal(table[name], ours)
    both = [f["over_seeds"] for f in found if f["measured"] is not None]
    np.testing.assert_array_equal(table[["seeds_low", "seeds_high"]].dropna(), both)
    linked = [k for runs in table.runs.dropna() for k in runs.split()]
    assert set(linked) == set(results["runs"])


def test_the_bytes_are_the_same_each_time(results, files, tmp_path):
    again = write_report(json.loads(json.dumps(results)), tmp_path)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in files]


def test_the_user_s_matplotlib_settings_change_nothing(results, wang, monkeypatch):
    import matplotlib

    found = results["tables"]["t2"]["found"]
    before = draw(plot_table, wang[1], found, "x")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 31)
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "black")
    assert draw(plot_table, wang[1], found, "x") == before


def test_several_reruns_and_the_same_paper_twice(wang, tmp_path):
    both = [results_of(*wang, ["MR"], "smoke"), results_of(*wang, ["Subj"], "cpu")]
    made = write_report(both, tmp_path)
    assert [p.name for p in made if p.suffix == ".csv"] == ["table-wang2012-t2.csv",
                                                            "table-wang2012-2-t2.csv"]
    page = Page(made[0].read_text("utf-8"))
    assert not page.faults and len(page.ids) == len(set(page.ids))
    assert {"#wang2012", "#wang2012-2"} <= set(page.links)


def test_a_rerun_of_which_nothing_was_measured(wang):
    empty = results_of(*wang, [])
    text = render_page(empty)
    assert not Page(text).faults and "<svg" not in text and "24 not measured" in text


def test_a_lower_is_better_table_with_bare_scores():
    "An error rate, scores with intervals instead of items, a deterministic row, no claims."
    table = Table(paper="p", name="t", number="1", caption="c", metric="error", unit="%",
                  better="lower", decimals=2, seeds=2, protocol="", columns=("a", "b"),
                  published={"m": {"a": [5.0, "V"], "b": [7.25, "M"]}}, data={}, differs=(),
                  claims=())
    paper = Paper(name="p", title="t", authors="A. One, B. Two, and C. Three", year=2000, venue="v",
                  url="javascript:alert(1)", edition="", question="q", tables={"t": table})
    cells = [cell(table, "m", "a", None, score=9.0, interval=(8.8, 9.2)),
             cell(table, "m", "b", 0, score=7.0)]
    one = {"paper": "p", "size": "gpu", "tables": {"t": {"found": assess(table, cells),
           "claims": [], "cells": cells}}}
    page = Page(render_page(one, {"p": paper}))
    words = " ".join(" ".join(page.words).split())
    assert "One et al. (2000)" in words and "▼ below (worse)" in words and "9.00" in words
    assert not page.faults and not any("javascript" in link for link in page.links)


@pytest.mark.parametrize("wrong, words", [
    ([], "nothing to report"), (3, "must be"), ({"paper": "wang2012"}, "no 'size'"),
    ({"paper": "wong2012", "size": "cpu", "tables": {}}, "did you mean wang2012"),
    ({"paper": "wang2012", "size": "cpu", "tables": {"t9": {}}}, "no table 't9'"),
])
def test_what_is_no_result_is_refused_in_one_line(wrong, words, tmp_path):
    given = [wrong] if isinstance(wrong, int) else wrong
    with pytest.raises(UserError, match=re.escape(words)) as e:
        write_report(given, tmp_path / "out")
    assert "\n" not in str(e.value) and not (tmp_path / "out").exists()


def test_reading_results(results, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert read_results(tmp_path) == read_results(tmp_path / "results.json") == results
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "other.json").write_text('{"a": 1}')
    for name, words in (("none", "no results"), ("bad.json", "cannot be read"),
                        ("other.json", "no 'paper'")):
        with pytest.raises(UserError, match=words):
            read_results(tmp_path / name)


def test_text_can_be_read_on_every_tint():
    "Contrast as the accessibility guidelines define it."

    def luminance(colour):
        c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    assert set(LOOK) == set(VERDICTS)
    for look in LOOK.values():
        for ink in ("#16191d", "#4a535d", "#0b57a4"):
            assert (luminance(tint(look[0])) + 0.05) / (luminance(ink) + 0.05) >= 4.5


def test_curves_of_runs_and_cells():
    "Lists are lines; single points with one label are a line; a label in two runs is two lines."
    point = [{"x": i, "y": 2 * i, "label": "a"} for i in range(3)]
    line = [{"x": [1, 2], "y": [3, 4], "label": "b"}]
    one = {"runs": {"k": {"metrics": {"curve": point}}, "l": {"metrics": {"curve": point + line}}},
           "tables": {"t": {"cells": [{"run": "m", "curve": line}]}}}
    found = [(c["run"], c["label"], c["y"]) for c in curves_of(one)]
    assert found == [("k", "a", [0, 2, 4]), ("l", "a", [0, 2, 4]), ("l", "b", [3, 4]),
                     ("m", "b", [3, 4])]


def test_two_figures_on_one_page_share_no_name():
    raw = b'<?xml?><svg><metadata>x</metadata><g id="a"/><use xlink:href="#a"/><p clip="url(#a)"/>'
    assert inline_svg(raw, "f") == '<svg><g id="f-a"/><use href="#f-a"/><p clip="url(#f-a)"/>'


def test_unknown_is_said_and_zero_is_not_unknown():
    facts = dict(run_facts("k", {}))
    assert facts["seconds"] == facts["energy"] == facts["threads"] == "unknown"
    assert dict(run_facts("k", {"energy_joules": 0.0}))["energy"] == "0 J"


def test_a_claim_is_no_more_comparable_than_its_cells(wang):
    paper, table = wang
    results = results_of(paper, table, ["MR", "Subj"])  # SVM-uni is not comparable
    one = results["tables"]["t2"]
    claim = check_claims(table, one["cells"])[0] | {"than": "SVM-uni"}
    assert claim_word(claim, table, one["found"]) == "not comparable"
    assert claim_sentence(claim, table, one["found"]) == (
        "SVM-uni is not comparable (half of the rows)")
    one["claims"] = [claim]
    words = " ".join(" ".join(Page(render_page(results)).words).split())
    assert "≠ not comparable" in words and "SVM-uni is not comparable (half of the rows)" in words


def test_a_claim_needs_the_seeds_of_a_verdict(wang):
    paper, table = wang
    one = results_of(paper, table, ["MR"], n_seeds=2)["tables"]["t2"]
    claim = one["claims"][0] | {"low": 0.5, "high": 1.5}
    assert claim_word(claim, table, one["found"]) == "open"
    assert claim_sentence(claim, table, one["found"]) == "2 of 3 seeds that a verdict needs"
    enough = claim | {"n_seeds": 3}
    assert claim_word(enough, table, one["found"]) == "holds"
    for gap, why in ((0.0, "no gap"), (float("nan"), "lacks a number")):
        assert claim_word(enough | {"published": gap}, table, one["found"]) == "open"
        assert why in claim_sentence(enough | {"published": gap}, table, one["found"])


def test_the_page_says_that_claims_are_over_seeds(files):
    for path in files[:2]:
        text = " ".join(path.read_text("utf-8").split())
        assert "95 % over seeds" in text and "what other test items would give" in text
    assert "What differs from the paper" in files[1].read_text("utf-8")


def test_an_unknown_cost_is_not_counted_as_zero():
    known = {"seconds": 2.0, "peak_memory_mb": 5.0, "energy_joules": 1.0}
    assert cost_line({"a": known, "b": known}) == (
        "2 runs; seconds in all 4.0 s; most memory of a run 5 MB; energy in all 2 J.")
    assert cost_line({"a": known, "b": {}}).count("unknown") == 3
    assert cost_line({}).count("unknown") == 3
