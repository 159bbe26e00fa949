"Published numbers: every file is whole, some numbers by hand, and a fault is told in one line."

import re
from dataclasses import replace

import numpy as np
import pytest

from ftnb.core import UserError, resource
from ftnb.data import catalogue
from ftnb.papers import (
    MARKS,
    assess,
    cell,
    format_table,
    paired_gap,
    paper_names,
    read_paper,
    test_power,
)  # fmt: skip
from ftnb.runs import parameters_of

PAPERS = paper_names()
FOLDER = resource("data") / "papers"


def cells(paper):
    "All published cells of a paper: (table, row, column, number, mark)."
    return [(t, row, column, *found) for t in paper.tables.values()
            for row, columns in t.published.items() for column, found in columns.items()]


def number(paper, table, row, column):
    return tuple(read_paper(paper).tables[table].published[row][column])


@pytest.mark.parametrize("name", PAPERS)
def test_a_file_is_complete(name):
    paper = read_paper(name)
    assert all([paper.title, paper.authors, paper.venue, paper.edition, paper.question])
    assert paper.url.startswith("https://") and str(paper.year) == name[-4:]
    assert paper.question.endswith("?") and paper.tables
    for table in paper.tables.values():
        assert table.caption.endswith(".") and table.protocol.endswith(".")
        assert table.columns and table.published and table.seeds >= 2
        assert len(set(table.columns)) == len(table.columns)
        used = {c for row in table.published.values() for c in row}
        assert used == set(table.columns), "a column without any number"


@pytest.mark.parametrize("name", PAPERS)
def test_numbers_carry_a_mark_and_no_digits_too_many(name):
    for table, row, column, value, mark in cells(read_paper(name)):
        where = f"{table.name}, {row}, {column}: {value}"
        assert mark in MARKS, where
        assert round(value, table.decimals) == value, f"{where} has more decimals than the table"
        if table.unit == "%":
            assert 0 <= value <= 100, where


@pytest.mark.parametrize("name", PAPERS)
def test_the_sets_are_catalogued_and_claims_can_be_checked(name):
    for table in read_paper(name).tables.values():
        strange = set(table.data.values()) - set(catalogue())
        assert not strange, f"{table.name} names sets that are not in the catalogue: {strange}"
        for claim in table.claims:
            values = [table.published[claim[k]][claim["column"]][0] for k in ("better", "than")]
            gap = values[0] - values[1]
            assert gap > 0 if table.better == "higher" else gap < 0, f"{table.name}: {claim}"


@pytest.mark.parametrize("name", [n for n in PAPERS if read_paper(n).notebook])
def test_the_notebook_exists_and_its_parameters_are_dealt_out(name):
    paper = read_paper(name)
    path = resource("nbs") / f"{paper.notebook}.ipynb"
    assert path.is_file(), f"{name} names {path.name}"
    given = parameters_of(path)
    for one in paper.split:
        assert isinstance(given[one], list) and given[one], f"{one} must be a list"
    known = {c for t in paper.tables.values() for c in t.columns}
    assert set(given.get("columns", [])) <= known


def test_a_paper_without_a_notebook_deals_nothing_out():
    waiting = [read_paper(n) for n in PAPERS if not read_paper(n).notebook]
    assert waiting and not any(p.split for p in waiting)


@pytest.mark.parametrize(
    "paper, table, row, column, found",
    [
        ("houlsby2019", "t1", "adapters, 8 to 256", "total", (80.0, "V")),
        ("houlsby2019", "t1", "BERT-LARGE, all weights", "RTE", (70.1, "V")),
        ("li2021", "t1", "prefix, 0.1 %", "BLEU", (69.7, "V")),
        ("li2021", "t1b", "adapter, 3 %", "NIST", (8.71, "M")),
        ("hu2021", "t2", "LoRA, 0.3M", "RTE", (86.6, "V")),
        ("hu2021", "t3b", "LoRA, 0.35M", "CIDEr", (2.53, "V")),
        ("zhang2023", "t1", "AdaLoRA, 1.27M", "CoLA", (71.45, "V")),
        ("conneau2016", "t5", "depth 29, k-max", "AG", (8.67, "V")),
        ("larson2019", "t2_oos", "BERT, oos-train", "OOS+", (59.2, "V")),
        ("larson2019", "t2_oos", "BERT, oos-train", "Full", (40.3, "M")),
        ("shen2018", "t2", "LSTM", "DBP", (98.55, "V")),
        ("shen2018", "t2", "LSTM", "AG", (86.06, "M")),
        ("xue2021", "t2", "ByT5", "small", (80.5, "M")),
        ("wang2020", "dev", "MiniLM 6L/384", "SST-2", (91.3, "V")),
        ("wang2020", "readme", "MiniLM-L6xH384, released", "SST-2", (91.5, "V")),
        ("cui2019", "chnsenticorp", "BERT-wwm", "test mean", (95.0, "V")),
        ("wang2012", "t2", "NBSVM-bi", "MR", (79.4, "V")),
    ],
)
def test_numbers_by_hand(paper, table, row, column, found):
    assert number(paper, table, row, column) == found


def test_averages_are_the_papers_own_and_differ_from_the_mean_of_the_row():
    for name, table in (("zhang2023", "t1"), ("houlsby2019", "t1")):
        for columns in read_paper(name).tables[table].published.values():
            *scores, average = (value for value, _ in columns.values())
            assert abs(np.mean(scores) - average) > 0.05, name
    for columns in read_paper("hu2021").tables["t2"].published.values():
        *scores, average = (value for value, _ in columns.values())
        assert abs(np.mean(scores) - average) < 0.1  # the columns are rounded


def test_lora_rows_that_start_elsewhere_are_never_compared():
    table = read_paper("hu2021").tables["t2"]
    right = np.ones(400, bool)
    right[:40] = False
    made = [cell(table, "LoRA, 0.3M", c, s, right) for c in ("RTE", "MNLI") for s in range(5)]
    verdicts = {f["column"]: f for f in assess(table, made) if f["measured"] is not None}
    assert verdicts["RTE"]["verdict"] == "not comparable" and "MNLI" in verdicts["RTE"]["reason"]
    assert verdicts["MNLI"]["p"] is not None


@pytest.mark.parametrize("name", PAPERS)
def test_every_table_can_be_printed(name):
    paper = read_paper(name)
    for table in paper.tables.values():
        text = format_table(paper, table, assess(table, []), everything=True)
        head = next(line for line in text.splitlines() if line.startswith("| row"))
        body = [line for line in text.splitlines() if line.startswith("| ")]
        assert {line.count("|") for line in body} == {head.count("|")}
        assert len(body) == sum(len(row) for row in table.published.values()) + 2


FAULTS = [
    ("decimals = 1", 'decimals = "one"', ["t1.decimals", "'one'"]),
    ("decimals = 1", "decimls = 1", ["at tables.t1", "'decimls'"]),
    ('better = "higher"', 'better = "more"', ["t1.better", "more"]),
    ('[60.5, "V"]', "60.5", ["published", "BERT-LARGE, all weights.CoLA", "60.5"]),
    ('[60.5, "V"]', "[60.5]", ["BERT-LARGE, all weights.CoLA"]),
    ('[60.5, "V"]', '[60.5, "X"]', ["BERT-LARGE, all weights.CoLA", "X"]),
    ('[60.5, "V"]', '["60.5", "V"]', ["BERT-LARGE, all weights.CoLA", "60.5"]),
    ("year = 2019", 'year = "2019"', ["at year", "2019"]),
    ("year = 2019", "", ["at top", "year"]),
    ('title = "', 'notebok = "x"\ntitle = "', ["at top", "notebok"]),
    ('title = "', "title = ", ["line"]),
    ('metric = "GLUE score"', 'metric = "GLUE score', ["line"]),
    ('columns = ["SST-2", "STS-B"]', 'columns = ["SST2"]', ["t1", "'SST2'"]),
    ('than = "adapters, 8 to 256"', 'than = "adapters"', ["t1", "'adapters'"]),
    ('SST-2 = "sst2"', 'SST3 = "sst2"', ["t1", "'SST3'"]),
]


@pytest.mark.parametrize("old, new, words", FAULTS)
def test_a_faulty_file_is_told_in_one_line_with_its_place(tmp_path, old, new, words):
    text = (FOLDER / "houlsby2019.toml").read_text("utf-8")
    assert old in text
    (tmp_path / "houlsby2019.toml").write_text(text.replace(old, new), "utf-8")
    with pytest.raises(UserError) as caught:
        read_paper("houlsby2019", tmp_path)
    told = str(caught.value)
    assert "\n" not in told and "houlsby2019" in told
    assert all(word in told for word in words), told


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "some2020.toml").write_bytes(b"title = \xff\xfe")
    with pytest.raises(UserError, match="some2020.toml cannot be read as TOML"):
        read_paper("some2020", tmp_path)


NEAR = {"wang2021": "wang2020", "hu2020": "hu2021", "Houlsby": "houlsby2019", "li-2021": "li2021"}


@pytest.mark.parametrize("asked, near", NEAR.items())
def test_an_unknown_paper_gives_the_nearest_names(asked, near):
    with pytest.raises(UserError) as caught:
        read_paper(asked)
    told = str(caught.value)
    assert re.search(rf"did you mean .*\b{near}\b", told), told
    assert "\n" not in told and all(name in told for name in PAPERS)


def test_nothing_near():
    with pytest.raises(UserError, match="no paper 'zzz'; there are: "):
        read_paper("zzz")


NBSVM = read_paper("wang2012").tables["t2"]


def mr_cell(seed, **given):
    return cell(NBSVM, "NBSVM-bi", "MR", seed, **given)


def test_a_score_without_any_interval_gets_no_verdict():
    (found,) = [f for f in assess(NBSVM, [mr_cell(None, score=70.0)]) if f["measured"] is not None]
    assert found["verdict"] == "not comparable" and "no interval" in found["reason"]
    (found,) = [f for f in assess(NBSVM, [mr_cell(None, score=70.0, interval=(69.0, 71.0))])
                if f["measured"] is not None]  # fmt: skip
    assert found["verdict"] == "below"
    size = read_paper("wang2020").tables["size"]
    counted = [cell(size, row, "parameters", None, score=s)
               for row, s in (("BERT-base", 108.9), ("DistilBERT", 70.0))]  # fmt: skip
    verdicts = {f["row"]: f["verdict"] for f in assess(size, counted) if f["measured"]}
    assert verdicts == {"BERT-base": "reached", "DistilBERT": "below"}, "a count has no chance"


@pytest.mark.parametrize("seeds", [(0, 1, 0), (None, None)])
def test_the_same_seed_twice_is_refused(seeds):
    cells = [mr_cell(s, right=np.arange(50) % 5 > 0) for s in seeds]
    with pytest.raises(UserError, match=f"MR: seed {seeds[0]} is there 2 times"):
        assess(NBSVM, cells)


@pytest.mark.parametrize("metric", ["parameters", "speed-up", "time of an epoch", "F1 of names"])
def test_right_answers_need_a_metric_that_counts_them(metric):
    with pytest.raises(UserError, match=f"{metric} is no share of right answers: give score="):
        cell(replace(NBSVM, metric=metric), "NBSVM-bi", "MR", 0, right=np.ones(3, bool))


@pytest.mark.parametrize("n", [2, 3, 7, 100])
@pytest.mark.parametrize("gap", [0.1, 2.0, 15.0, 60.0, 1e9])
def test_power_is_that_of_the_integral(n, gap):
    from scipy.integrate import quad
    from scipy.stats import chi, norm, t

    bound, shift = t.ppf(0.975, n - 1), gap * n**0.5
    root = (n - 1) ** 0.5

    def upper(u):
        return chi.pdf(u, n - 1) * norm.cdf(shift - bound * u / root)

    exact, _ = quad(upper, 0, 40, points=[min(39.0, shift * root / bound)], limit=200)
    assert abs(test_power(gap, 1.0, n) - exact) < 1e-4


test_power.__test__ = False  # a function of the library, whatever its name


def test_a_gap_of_two_rows_needs_the_answers_to_the_same_items():
    table = read_paper("wang2012").tables["t2"]

    def made(row, seed, right=None, **more):
        return cell(table, row, "MR", seed, right=right, **more)

    rng = np.random.default_rng(0)
    right = {(r, s): rng.random(50) < 0.7 for r in "ab" for s in range(3)}
    cells = [made(r, s, right[r, s]) for r, s in right]
    found = paired_gap(cells, "a", "b", "MR")
    each = [100 * (right["a", s].mean() - right["b", s].mean()) for s in range(3)]
    np.testing.assert_allclose(found["each"], each)
    assert found["both"][0] <= min(found["items"][0], found["seeds"][0])
    assert paired_gap(cells, "b", "a", "MR")["gap"] == -found["gap"]
    one = [c for c in cells if c["row"] == "b" or c["seed"] == 2]
    assert paired_gap(one, "a", "b", "MR")["seeds"] is None, "one seed in common"
    shorter, no_answers, nobody = right["a", 0][:-1], {"score": 70.0}, made("d", 0, right["a", 0])
    for wrong in (made("c", 0, shorter), made("c", 0, **no_answers), nobody):
        with pytest.raises(UserError, match="the same items"):
            paired_gap([*cells, wrong], "a", "c", "MR")
