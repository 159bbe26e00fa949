"""Readers against the data mirror and against tiny bytes; splits; faults of a user's table."""

import csv
import io
import json
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from ftnb import data
from ftnb.core import UserError
from ftnb.data import SPLITS, Corpus, load, normalised, read_table, stratified_split


@pytest.fixture
def mirrored(mirror, cache, monkeypatch):
    "The data mirror, a private cache, and no network."
    monkeypatch.setenv("FTNB_MIRROR", str(mirror))
    monkeypatch.setenv("FTNB_OFFLINE", "1")
    return mirror


def counts(corpus):
    return {s: int((corpus.split == s).sum()) for s in SPLITS}


def texts_of(corpus, split):
    return {normalised(t) for t, s in zip(corpus.texts, corpus.split, strict=True) if s == split}


def check_corpus(corpus):
    "What holds for every corpus."
    n = len(corpus)
    assert n and len(corpus.split) == n and all(t.strip() for t in corpus.texts)
    assert all(len(column) == n for column in corpus.extra.values())
    if corpus.labels is not None:
        assert corpus.labels.dtype == np.int64 and len(corpus.labels) == n
        assert set(corpus.labels.tolist()) <= set(range(len(corpus.label_names)))
    assert len(corpus.digest) == 64 and corpus.licence and corpus.language


# --- the catalogue ---


def test_catalogue_holds_every_set_of_the_mirror(mirror):
    theirs = json.loads((mirror / "catalog.json").read_text(encoding="utf-8"))
    ours = data.catalogue()
    for theirs_set in theirs:
        entry = ours[theirs_set["name"]]
        same = ("path", "bytes", "sha256", "url")
        assert [[f[k] for k in same] for f in entry["files"]] == [
            [f[k] for k in same] for f in theirs_set["files"]
        ]


def test_catalogue_is_complete():
    for name, entry in data.catalogue().items():
        for key in (
            "task",
            "language",
            "label_names",
            "licence",
            "citation",
            "source",
            "note",
            "reader",
        ):
            assert key in entry, (name, key)
        assert entry["licence_class"] in ("clear", "research", "non-commercial", "unclear", "mixed")
        for file in entry.get("files", []):
            assert file["url"].startswith("https://")
            assert ("sha256" in file and "bytes" in file) != file.get("unverified", False)
        named = {f["path"] for f in entry.get("files", [])}
        assert {p["file"] for p in entry["parts"] if "file" in p} <= named, name


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UserError, match="did you mean sst2"):
        load("sst-2")
    with pytest.raises(UserError, match="ftnb data list"):
        load("qqqqqqqq")


def test_every_set_is_there_and_verified(mirrored):
    states = {
        r["state"] for name in data.catalogue() if name != "ag_news" for r in data.verify(name)
    }
    assert states == {"ok"}
    assert data.describe("sst2")["bytes"] == 738844 + 94400 + 193562
    assert data.describe("stsb")["subsets"] == ["en", "zh"]


BIG = ("online_shopping", "thucnews_titles")  # read once, in a test of their own


@pytest.mark.parametrize(
    "name", [n for n in data.catalogue() if n not in ("docstrings", "hotline", *BIG)]
)
def test_every_set_loads(name, mirrored):
    entry = data._entry(name)
    if entry["reader"] == "table":
        with pytest.raises(UserError, match="load_table"):
            load(name)
        assert len(data.load_table(name)) > 100
        return
    corpus = load(name)
    check_corpus(corpus)
    official = {p["split"] for p in entry["parts"]} - {"all"}
    got = {s for s, n in counts(corpus).items() if n}
    assert official <= got and (got == set(SPLITS) or "train" not in official or name == "udhr2")
    if entry.get("duplicates") != "keep" and "pair" not in entry and "group" not in entry:
        assert not texts_of(corpus, "train") & (
            texts_of(corpus, "test") | texts_of(corpus, "valid")
        )
        assert not texts_of(corpus, "valid") & texts_of(corpus, "test")
    told = any("licence" in note for note in corpus.notes)
    assert told == (entry["licence_class"] != "clear")


# --- the traps, set by set ---


def test_ag_news_falls_back_and_says_so(mirrored):
    corpus = load("ag_news")
    assert "10,000 of 120,000 train rows (ag_news_10k)" in corpus.notes
    assert (
        counts(corpus)["test"] == 7600 and counts(corpus)["train"] + counts(corpus)["valid"] == 9999
    )
    assert not any("Life without numbers" in t for t in texts_of(corpus, "train"))
    assert any("also in test" in note for note in corpus.notes)
    with pytest.raises(data.Unreachable, match="train.csv"):
        load("ag_news", subset="full")


def test_ag_news_takes_the_full_file_where_the_user_has_it(mirrored, cache):
    folder = cache / "data/ag_news"
    folder.mkdir(parents=True)
    rows = "".join(f'"{i % 4 + 1}","Title {i}","Story ""{i}"""\n' for i in range(200))
    (folder / "train.csv").write_text(rows)
    corpus = load("ag_news")
    assert 'Title 4 . Story "4"' in corpus.texts and counts(corpus)["test"] == 7600
    assert "200 of 120,000 train rows" in corpus.notes
    assert any("unverified" in note and "sha256" in note for note in corpus.notes)
    assert not any("ag_news_10k" in note for note in corpus.notes)


def test_ag_news_labels(mirrored):
    clean = load("ag_news_10k")
    noisy = load("ag_news_10k", label="noisy")
    assert np.bincount(clean.labels).tolist() == [2514, 2504, 2519, 2463]
    agree = np.array(clean.extra["noisy"]).astype(int) == clean.labels
    assert agree.mean() == pytest.approx(0.8025, abs=1e-9)
    assert (
        noisy.label_names == clean.label_names
        and noisy.extra["default_label"][0] in clean.label_names
    )
    test = load("ag_news_test")
    assert len(test) == 7600 and np.bincount(test.labels).tolist() == [1900] * 4
    assert test.texts[0].startswith("Fears for T N pension after talks . Unions")
    with pytest.raises(UserError, match="is no label in 7,600"):
        load("ag_news", label="noisy")


def test_sst2_and_trec6(mirrored):
    sst2, trec = load("sst2"), load("trec6")
    assert counts(sst2)["valid"] == 872 and counts(sst2)["test"] == 1821
    assert (
        sst2.texts[0].startswith("a stirring , funny")
        and sst2.label_names[sst2.labels[0]] == "positive"
    )
    assert any("sisterðcity" in t for t in trec.texts), "trec6 train is latin-1"
    assert trec.label_names[trec.labels[trec.texts.index("Who was Galileo ?")]] == "HUM"
    assert counts(trec)["test"] == 500


def test_financial_phrasebank_encodings(mirrored):
    for subset, n in (("AllAgree", 2264), ("75Agree", 3453), ("50Agree", 4846)):
        corpus = load("financial_phrasebank", subset=subset)
        assert len(corpus) == n and not any("@" in t[-10:] for t in corpus.texts)
        assert not any("\ufffd" in t or "Ã" in t for t in corpus.texts)
    assert len(load("financial_phrasebank")) == 2264
    with pytest.raises(UserError, match="choose one of: AllAgree"):
        load("financial_phrasebank", subset="66Agree")


def test_archives(mirrored):
    balanced = {"sentence_polarity": 5331, "subjectivity": 5000, "movie_reviews": 1000}
    for name, n in balanced.items():
        assert np.bincount(load(name).labels).tolist() == [n, n]
    assert np.bincount(load("names").labels).tolist() == [5001, 2943]
    lexicon = load("opinion_lexicon")
    assert len(lexicon) == 6789 and not any(t.startswith(";") for t in lexicon.texts)
    udhr = load("udhr2")
    assert len(udhr) == 387 and "cmn_hans" in udhr.extra["code"] and udhr.labels is None
    assert any("1 empty row dropped" in note for note in udhr.notes)


def test_chinese_reviews(mirrored):
    hotel = load("chnsenticorp")
    assert len(hotel) == 7765 and np.bincount(hotel.labels).tolist()[0] == 2443 + (
        len(hotel) - 7765
    )
    goods = load("online_shopping", label="cat")
    assert len(goods) == 62773 and len(goods.label_names) == 10 and "书籍" in goods.label_names
    assert not any(t.startswith("\ufeff") for t in goods.texts)
    assert set(goods.extra["default_label"]) == {"negative", "positive"}


def test_thucnews_is_shuffled_and_free_of_test_titles(mirrored):
    corpus = load("thucnews_titles")
    train = corpus.part("train")
    raw = (mirrored / "thucnews_titles/dev.txt").read_text(encoding="utf-8").split("\n")
    titles = {normalised(line.rpartition("\t")[0]) for line in raw if line}
    assert len(titles & texts_of(corpus, "test")) == 111
    assert not texts_of(corpus, "train") & texts_of(corpus, "test")
    assert len(set(train.labels[:200].tolist())) == 10, "rows of the file stand class by class"
    assert counts(corpus)["test"] == 40_000 and corpus.label_names[3] == "education"


def test_questions_and_answers(mirrored):
    for name, subset in (("cmrc2018", None), ("xquad", "en"), ("xquad", "zh"), ("subjqa", None)):
        corpus = load(name, subset=subset)
        columns = (corpus.texts, corpus.extra["answers"], corpus.extra["answer_start"])
        for context, answers, starts in zip(*columns, strict=True):
            assert all(context[i : i + len(a)] == a for a, i in zip(answers, starts, strict=True))
        answered = np.mean([bool(a) for a in corpus.extra["answers"]])
        assert answered > 0.99 if name != "subjqa" else 0.3 < answered < 0.6
    assert not any(t.endswith("ANSWERNOTFOUND") for t in corpus.texts)
    assert len(load("xquad", "test")) == 1190
    with pytest.raises(UserError, match="no train rows"):
        load("xquad", "train")


def test_cmrc2018_offsets_are_found_by_search(mirrored):
    raw = json.loads((mirrored / "cmrc2018/cmrc2018_dev.json").read_text(encoding="utf-8"))
    wrong = sum(
        p["context"][a["answer_start"] :][: len(a["text"])] != a["text"]
        for d in raw["data"]
        for p in d["paragraphs"]
        for q in p["qas"]
        for a in q["answers"]
    )
    assert wrong == 200, "the trap is in the file"
    test = load("cmrc2018", "test")
    assert len(test) == 3219


def test_tagged_sentences(mirrored):
    wnut = load("wnut17")
    assert counts(wnut) == {"train": 3394, "valid": 1009, "test": 1287}
    assert all(
        len(a) == len(b) for a, b in zip(wnut.extra["tokens"], wnut.extra["tags"], strict=True)
    )
    gold = load("wikigold")
    assert len(gold) == 1696 and not any("DOCSTART" in t for t in gold.texts)
    for part in SPLITS:
        rest = set(gold.take(gold.split != part).extra["document"])
        assert not set(gold.part(part).extra["document"]) & rest, "documents are kept whole"
    resume = load("resume_ner")
    assert resume.texts[0].startswith("高勇：男") and resume.extra["tags"][0][0] == "B-NAME"


def test_relations_and_triples(mirrored):
    relations = load("semeval2010_task8")
    assert counts(relations)["test"] == 2717 and len(relations) == 10717
    assert len(relations.label_names) == 19 and all(
        "<e1>" in t and "</e2>" in t for t in relations.texts
    )
    codex = load("codex_s")
    assert counts(codex) == {"train": 32888, "valid": 3654, "test": 3656}
    assert codex.part("test").labels.sum() == 1828 and codex.part("train").labels.all()


def test_translations(mirrored):
    tatoeba = load("tatoeba_zh_en")
    assert len(tatoeba) == 26388 and all("CC-BY" in a for a in tatoeba.extra["attribution"])
    assert not texts_of(tatoeba, "train") & texts_of(tatoeba, "test")
    flickr = load("multi30k", subset="fr-2017")
    assert counts(flickr)["test"] == 1000 and flickr.part("train").extra["target"][0].startswith(
        "Deux"
    )
    assert load("multi30k").part("train").extra["target"][0].startswith("Zwei")
    assert len(load("ntrex128")) == 1997


def test_the_rest(mirrored):
    assert [len(load("word_similarity_en", subset=f"wordsim353-{k}")) for k in ("sim", "rel")] == [
        203,
        252,
    ]
    men = load("word_similarity_en", subset="men")
    assert (men.texts[0], men.extra["word2"][0], men.extra["score"][0]) == ("sun", "sunlight", 50.0)
    assert data.load_table("word_similarity_en", "google-analogies.csv").shape[0] == 19544
    assert data.load_table("metr_la_week", "los_adj.csv").shape == (207, 207)
    assert data.load_table("metr_la_week").shape == (2016, 207)
    assert "None" in set(data.load_table("metro_traffic")["holiday"]), "a holiday called None"
    with pytest.raises(UserError, match="no tables"):
        data.load_table("sst2")
    with pytest.raises(UserError, match="its files are: ETTh1.csv"):
        data.load_table("ett", "ETTm1.csv")
    articles = load("wikitext2")
    assert counts(articles) == {"train": 0, "valid": 60, "test": 60}
    shakespeare = load("tiny_shakespeare")
    assert "".join(s[0] for s in shakespeare.split).lstrip("t").lstrip("v").strip("t") == ""
    assert load("imdb_counterfactual", subset="new").texts != load("imdb_counterfactual").texts
    assert max(load("stsb", subset="zh").extra["score"]) == 5.0


# --- readers on tiny bytes, without the mirror ---


def test_lines_end_at_newlines_only():
    raw = "0 a\u0085b\n1 c\u2028d\r\n".encode()
    assert [r["text"] for r in data._read_lines(raw, sep=" ", label="first")] == [
        "a\u0085b",
        "c\u2028d",
    ]
    rows = list(
        data._read_lines("Profit @ 5 % rose@positive\n".encode("latin-1"), "latin-1", "@", "last")
    )
    assert rows == [{"text": "Profit @ 5 % rose", "label": "positive"}]


def test_squad_offsets_that_lie():
    context = "甲 说 乙 好。乙 好!"
    article = {
        "paragraphs": [
            {
                "context": context,
                "qas": [
                    {
                        "id": "1",
                        "question": "谁?",
                        "answers": [
                            {"text": "乙 好", "answer_start": 7},
                            {"text": "乙好", "answer_start": 0},
                            {"text": "不在", "answer_start": 1},
                        ],
                    }
                ],
            }
        ]
    }
    row = next(data._read_squad(json.dumps({"data": [article]}).encode()))
    assert row["answers"] == ["乙 好", "乙 好"] and row["answer_start"] == [8, 4]


def test_subjqa_spans_come_from_offsets():
    head = "review,question,human_ans_spans,human_ans_indices,is_ques_subjective\n"
    raw = head + '" It\'s light. ANSWERNOTFOUND",How?,"It \'s light","(1, 11)",False\n'
    raw += 'Fine ANSWERNOTFOUND,Why?,ANSWERNOTFOUND,"(5, 19)",True\n'
    first, second = data._read_subjqa(raw.encode())
    assert first["answers"] == ["It's light"] and first["text"] == " It's light."
    assert second["answers"] == [] and second["text"] == "Fine"


def test_word_pairs_drop_the_empty_row():
    raw = b",word1,word2,similarity\n0,sun-n,day-n,5\n1,,,\n"
    rows = list(data._read_csv(raw, ["word1"], numbers=["similarity"], skip=[""], strip="-[a-z]$"))
    assert rows[0] == {"text": "sun", "word2": "day", "similarity": 5.0} and rows[1]["text"] == ""


def test_parallel_files_must_align():
    with pytest.raises(ValueError):
        list(data._read_parallel(b"a\nb\n", b"x\n"))


# --- splits and corpora ---


def test_stratified_split_properties():
    rng = np.random.default_rng(0)
    for n, classes in ((30, 2), (500, 7), (2_000, 400)):
        labels = rng.integers(0, classes, n)
        texts = [f"t{i}" for i in rng.integers(0, n, n)]
        split = stratified_split(labels, texts, 0.15, 0.25, seed=n)
        assert set(split) <= set(SPLITS)
        for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
            side = lambda s: {t for t, p in zip(texts, split, strict=True) if p == s}  # noqa: B023, E731
            assert not side(a) & side(b)
        assert abs((split == "test").mean() - 0.25) < 0.1
    singles = stratified_split(np.arange(50), [f"t{i}" for i in range(50)])
    assert set(singles) == {"train"}, "a class of one row stays in train"
    with pytest.raises(UserError, match="leave nothing"):
        stratified_split([0, 1], ["a", "b"], 0.5, 0.5)
    assert len(stratified_split([], [])) == 0
    for wrong in ({"labels": [0]}, {"valid": float("nan")}, {"seed": -1}, {"seed": 0.5}):
        with pytest.raises(UserError) as e:
            stratified_split(**{"labels": [0, 1], "texts": ["a", "b"]} | wrong)
        assert "\n" not in str(e.value)


def test_a_class_whose_texts_have_two_labels_keeps_a_train_row():
    labels = np.repeat(["A", "B"], [20, 2])
    texts = [f"t{i}" for i in [*range(20), 0, 1]]
    for seed in range(200):
        split = stratified_split(labels, texts, seed=seed)
        assert "B" in labels[split == "train"] and (split[:2] == split[20:]).all()


def test_shares_are_exact_to_one_row():
    labels = np.repeat([0, 1, 2], [700, 200, 100])
    split = stratified_split(labels, [f"t{i}" for i in range(1000)], 0.1, 0.2, seed=3)
    for s, share in (("test", 0.2), ("valid", 0.1)):
        got = np.bincount(labels[split == s])
        assert np.all(np.abs(got - share * np.array([700, 200, 100])) <= 1.001), (s, got)


def test_corpus_checks_and_digest():
    with pytest.raises(ValueError, match="2 values for 1 texts"):
        Corpus("c", ["a"], [0, 1], ["x", "y"])
    one = Corpus("c", ["a", "b"], [0, 1], ["x", "y"])
    assert one.digest != Corpus("c", ["a", "b"], [1, 0], ["x", "y"]).digest
    assert one.digest != Corpus("c", ["a", "b"], [0, 1], ["x", "y"], ["train", "test"]).digest
    assert one.digest == Corpus("d", ["a", "b"], [1, 0], ["y", "x"], notes=["n"]).digest
    with pytest.raises(UserError, match="choose one of"):
        one.part("dev")
    with pytest.raises(UserError, match="mask of 1 values for 2 rows"):
        one.take([True])
    with pytest.raises(UserError, match="no split 'tset'"):
        Corpus("c", ["a"], split=["tset"])
    for labels in ([0.9], [-1], [1], [float("nan")], ["x"]):
        with pytest.raises(UserError, match="label k has the name"):
            Corpus("c", ["a"], labels, ["x"])


def test_seed_changes_only_the_split(mirrored):
    a, b, again = (load("chnsenticorp", seed=s) for s in (0, 1, 0))
    assert a.digest == again.digest != b.digest and a.texts == b.texts


# --- a user's own table ---


def write(tmp_path, content, name="t.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
    return path


GOOD = "text,label\n" + "".join(f"row {i},{'ab'[i % 2]}\n" for i in range(40))


def test_formats_give_one_corpus(tmp_path):
    frame = pd.DataFrame({"text": [f"row {i}" for i in range(40)], "label": [*"ab"] * 20})
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_json(tmp_path / "t.jsonl", orient="records", lines=True, force_ascii=False)
    frame.to_json(tmp_path / "t.json", orient="records")
    frame.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    frame.to_csv(tmp_path / "t.csv.gz", index=False)
    write(tmp_path, GOOD)
    names = ("t.csv", "t.tsv", "t.jsonl", "t.json", "t.parquet", "t.csv.gz")
    digests = {read_table(tmp_path / name).digest for name in names}
    assert len(digests) == 1


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-le", "utf-32"]
)
def test_chinese_encodings(tmp_path, encoding):
    text = "文本,标签\n" + "".join(f"房间很干净，服务不错 {i},{'好坏'[i % 2]}\n" for i in range(40))
    corpus = read_table(write(tmp_path, text, encoding=encoding))
    assert corpus.label_names == ["坏", "好"] and corpus.texts[0] == "房间很干净，服务不错 0"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "gb18030"])
def test_few_plain_letters(tmp_path, encoding):
    "UTF-16 without a mark and almost without zeros; traditional characters in GB18030."
    poem = "一一鵝鵝鵝曲項向天歌白毛浮綠水紅掌撥清波" * 9
    text = "文本,標籤\n" + "".join(f"{poem}第{i}首,{i % 2}\n" for i in range(40))
    corpus = read_table(write(tmp_path, text, encoding=encoding), text="文本", label="標籤")
    assert corpus.texts[0] == f"{poem}第0首"


def test_latin1_and_a_named_encoding(tmp_path):
    text = "text,label\n" + "".join(
        f"café très bon {i},{'oui non'.split()[i % 2]}\n" for i in range(40)
    )
    path = write(tmp_path, text, encoding="latin-1")
    corpus = read_table(path)
    assert corpus.texts[0] == "café très bon 0" and any("cp1252" in n for n in corpus.notes)
    with pytest.raises(UserError, match="leave encoding out"):
        read_table(path, encoding="utf-8")
    with pytest.raises(UserError, match="leave encoding out"):
        read_table(path, encoding="utf-99")


def test_damaged_utf8_is_counted(tmp_path):
    raw = ("text,label\n" + "".join(f"房间很干净 {i},{i % 2}\n" for i in range(40))).encode()
    corpus = read_table(write(tmp_path, raw + b"\xff broken,1\n"))
    assert any("1 damaged" in n for n in corpus.notes) and corpus.texts[0] == "房间很干净 0"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_delimiters_and_quoted_newlines(tmp_path, delimiter):
    rows = [f'"a, b; c | d\te\n""line"" two {i}"{delimiter}{i % 2}' for i in range(40)]
    corpus = read_table(write(tmp_path, "\n".join([f"text{delimiter}label", *rows])))
    assert corpus.texts[0] == 'a, b; c | d\te\n"line" two 0' and len(corpus) == 40


def test_tsv_with_stray_quotes(tmp_path):
    text = "text\tlabel\n" + "".join(f'"row {i} said\t{i % 2}\n' for i in range(40))
    corpus = read_table(write(tmp_path, text, "t.tsv"))
    assert len(corpus) == 40 and corpus.texts[0] == '"row 0 said'
    assert any("quotes are ordinary" in n for n in corpus.notes)


FAULTS = {
    "empty.csv": ("", "empty"),
    "blank.csv": (" \n\n", "empty"),
    "header.csv": ("text,label\n", "no rows"),
    "one_column.csv": ("text\nhello\n", "label=...; its columns are: text"),
    "columns.csv": ("x,y\na,b\n", "its columns are: x, y"),
    "one_class.csv": ("text,label\n" + "a,1\nb,1\nc,1\n", "one class only"),
    "one_example.csv": (GOOD + "lonely,c\n", "'c'.*rare='drop'"),
    "blank_texts.csv": ("text,label\n ,1\n\t,2\n", "no row has a text"),
    "no_labels.csv": ("text,label\na,\nb,nan\n", "no row has a label"),
    "wide.csv": (GOOD + "a,b,c\n", "line 42: expected 2 fields.*got 3"),
    "narrow.csv": (GOOD + "alone\n" + "a,b\n", "line 42: expected 2 fields.*got 1"),
    "quote.csv": (GOOD + '"open,a\n', "after line 41"),
    "twice.csv": ("text,text,label\na,b,c\n", "'text' occurs twice"),
    "numbers.csv": (
        "text,label\n" + "".join(f"t{i},{i * 0.37}\n" for i in range(99)),
        "regression",
    ),
    "ids.csv": ("text,label\n" + "".join(f"t{i},{i}\n" for i in range(99)), "regression"),
    "tiny.csv": ("text,label\na,1\nb,2\nc,1\nd,2\n", "leave none"),
    "same.csv": ("text,label\n" + "a,1\nb,2\n" * 20, "leave none"),
    "split.csv": ("text,label,split\na,1,train\nb,2,eval\n", "'eval'"),
    "bad.jsonl": ('{"text": "a", "label": 1}\n{"text": \n', "line 2: not valid JSON"),
    "list.jsonl": ('{"text": "a", "label": 1}\n[1]\n', "line 2: an object"),
    "bad.parquet": ("PAR1 is not enough", "Parquet"),
    "book.xlsx": ("PK", "spreadsheet"),
    "bad.csv.gz": ("not gzip", "gzip"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_clear_line(name, tmp_path):
    content, message = FAULTS[name]
    with pytest.raises(UserError, match=message) as e:
        read_table(write(tmp_path, content, name))
    assert "\n" not in str(e.value) and len(str(e.value)) < 300


def test_missing_file_and_wrong_column(tmp_path):
    path = write(tmp_path, GOOD, "reviews.csv")
    with pytest.raises(UserError, match="did you mean reviews.csv"):
        read_table(tmp_path / "review.csv")
    with pytest.raises(UserError, match="folder"):
        read_table(tmp_path)
    with pytest.raises(UserError, match="did you mean 'text'.*columns are: text, label"):
        read_table(path, text="txet")
    with pytest.raises(UserError, match="no column 'stars'"):
        read_table(path, label="stars")


def test_dropped_rows_are_counted(tmp_path):
    corpus = read_table(write(tmp_path, GOOD + " ,a\n\u3000,b\nx,\ny,NaN\nz,null\n"))
    assert len(corpus) == 40
    assert corpus.notes == ["2 of 45 rows dropped: no text", "3 of 45 rows dropped: no label"]
    kept = read_table(write(tmp_path, GOOD.replace(",a", ",NA").replace(",b", ",None")))
    assert kept.label_names == ["NA", "None"], "plausible names of classes"


def test_rare_classes_can_be_dropped(tmp_path):
    corpus = read_table(write(tmp_path, GOOD + "lonely,c\n"), rare="drop")
    assert len(corpus) == 40 and "1 class with one example dropped" in corpus.notes


def test_float_labels_and_numeric_order(tmp_path):
    rows = "".join(f"row {i},{i % 11}.0\n" for i in range(120))
    assert read_table(write(tmp_path, "text,label\n" + rows)).label_names == [
        str(i) for i in range(11)
    ]
    frame = pd.DataFrame(
        {"text": [f"r{i}" for i in range(60)], "label": [1.0, 2.0, float("nan")] * 20}
    )
    frame.to_parquet(tmp_path / "t.parquet")
    corpus = read_table(tmp_path / "t.parquet")
    assert corpus.label_names == ["1", "2"] and len(corpus) == 40


def test_given_splits_are_kept(tmp_path):
    rows = "".join(
        f"row {i},{'ab'[i % 2]},{'dev' if i < 6 else 'test' if i < 20 else 'train'}\n"
        for i in range(60)
    )
    corpus = read_table(
        write(tmp_path, "text,label,split\n" + rows + "ROW 7,b,train\nlone,c,train\n")
    )
    assert counts(corpus) == {"train": 41, "valid": 6, "test": 14}
    assert "1 train row dropped: also in test" in corpus.notes and "c" in corpus.label_names
    corpus = read_table(write(tmp_path, "text,label,split\n" + rows.replace("dev", "train")))
    assert counts(corpus)["test"] == 14 and counts(corpus)["valid"] > 0
    for column in ("Split", "SPLIT"):
        again = read_table(write(tmp_path, f"text,label,{column}\n" + rows))
        assert counts(again) == {"train": 40, "valid": 6, "test": 14} and not again.extra


def test_shares_of_nothing_and_an_unknown_way_with_rare_classes(tmp_path):
    path = write(tmp_path, GOOD)
    with pytest.raises(UserError, match="pass valid=0.1"):
        read_table(path, valid=0)
    with pytest.raises(UserError, match="'error' or 'drop', not 'Drop'"):
        read_table(path, rare="Drop")


def test_options_that_a_set_does_not_have():
    with pytest.raises(UserError, match="trec6 has no option 'n'"):
        load("trec6", n=5)
    with pytest.raises(UserError, match="hotline has no option 'limit'.*generator_seed"):
        load("hotline", limit=5)


def test_a_table_tells_its_licence(mirrored, caplog):
    data._told.discard("metr_la_week")
    data.load_table("metr_la_week")
    assert any("licence unclear" in line for line in caplog.messages)


def test_huge_text_and_many_classes(tmp_path):
    corpus = read_table(write(tmp_path, GOOD + '"' + "long, " * 1_700_000 + '",a\n'))
    assert max(map(len, corpus.texts)) > 10_000_000
    rows = "".join(f"text {i},class {i // 3}\n" for i in range(30_000))
    corpus = read_table(write(tmp_path, "text,label\n" + rows))
    assert len(corpus.label_names) == 10_000
    assert set(corpus.part("train").labels.tolist()) == set(range(10_000))


def test_other_columns_travel(tmp_path):
    text = "id,Review,stars\n" + "".join(f"{i},row {i},{i % 2}\n" for i in range(40))
    corpus = read_table(write(tmp_path, text))
    assert corpus.extra["id"][:2] == ["0", "1"] and corpus.licence == "the user's own"


# --- made on the machine ---


def test_hotline():
    corpus = load("hotline", n=1200, seed=1)
    check_corpus(corpus)
    test, train = corpus.part("test"), corpus.part("train")
    assert [test.label_names[i] for i in test.labels] == test.extra["intent"]
    wrong = np.mean(
        [
            train.label_names[i] != v
            for i, v in zip(train.labels, train.extra["intent"], strict=True)
        ]
    )
    assert 0.01 < wrong < 0.05 and any("3 % noise" in n for n in corpus.notes)
    assert not texts_of(corpus, "train") & texts_of(corpus, "test")
    check_corpus(load("hotline", n=40))  # a wrong label that is nobody's intent
    assert load("hotline", n=1200, seed=1).digest == corpus.digest != load("hotline", n=1200).digest


def test_docstrings(monkeypatch):
    from ftnb import corpora

    def rows(limit=None, libraries=None, refresh=False):
        made = [
            {"text": f"text {i} of {name}", "label": name, "source": "s"}
            for name in ("numpy", "json", "torch")
            for i in range(40)
        ]
        return made[:limit]

    monkeypatch.setattr(corpora, "docstring_rows", rows)
    corpus = load("docstrings")
    check_corpus(corpus)
    assert corpus.label_names == ["json", "numpy", "torch"] and all(counts(corpus).values())
    assert len(load("docstrings", limit=100)) == 100
    with pytest.raises(UserError, match="neither subset nor label"):
        load("docstrings", label="source")


def test_module_is_quiet_and_light():
    code = (
        "import sys, ftnb.data; "
        "sys.exit(bool({'torch', 'pandas', 'pyarrow', 'requests', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert done.returncode == 0 and not done.stderr


def test_binary_files_and_wide_headers_are_refused_in_one_line(tmp_path):
    head = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
    for raw in (head, b"PK\x03\x04" + bytes(64), bytes(1000), b"\x80\x04\x95\x00\x00\x00\x00"):
        with pytest.raises(UserError) as e:
            read_table(write(tmp_path, raw))
        assert "\n" not in str(e.value) and len(str(e.value)) < 300
    with pytest.raises(UserError, match="and 480 more") as e:
        read_table(write(tmp_path, ",".join(f'"c\n{i}"' for i in range(500)) + "\n"))
    assert "\n" not in str(e.value)


def test_equal_numbers_written_twice_keep_one_order():
    assert data._sorted_names(["1", "01", "1.0", "2"]) == ["01", "1", "1.0", "2"]


def test_whatever_a_csv_writer_writes_is_read_back(tmp_path):
    rng = random.Random(1)
    signs = [
        "a",
        "b",
        " ",
        ",",
        ";",
        "\t",
        "|",
        '"',
        "\n",
        "\r\n",
        "é",
        "中",
        "'",
        "\u2028",
        "\x85",
    ]
    for _ in range(40):
        rows = [("".join(rng.choices(signs, k=20)) + f"#{k}", rng.choice("xy")) for k in range(50)]
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter=rng.choice(",;\t|"), quoting=rng.choice([0, 1, 2]))
        writer.writerows([("text", "label"), *rows])
        encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16"])
        corpus = read_table(write(tmp_path, out.getvalue(), encoding=encoding))
        assert corpus.texts == [text for text, _ in rows]


def test_random_bytes_never_crash(tmp_path):
    rng = random.Random(2)
    for i in range(300):
        name = "t" + rng.choice([".csv", ".tsv", ".jsonl", ".json", ".parquet", ".csv.gz"])
        words = rng.choices(["text", "label", ",", "\n", "{", "}", "[", '"', ":", "中"], k=60)
        raw = rng.randbytes(rng.randint(0, 300)) if i % 2 else "".join(words).encode()
        with pytest.raises(UserError) as e:
            read_table(write(tmp_path, raw, name))
        assert "\n" not in str(e.value)


def test_a_cache_that_may_not_be_made(monkeypatch, tmp_path):
    def refuse(path, *args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.delenv("FTNB_MIRROR", raising=False)
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(UserError, match="FTNB_CACHE") as e:
        load("trec6")
    assert "\n" not in str(e.value)
