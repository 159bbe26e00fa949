"What the notebook on streams cannot show well: contracts, hostile input, broken files, threads."

import gzip
import itertools
import json
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from estimator_checks import CHECKS, sklearn_checks
from sklearn.base import clone
from sklearn.linear_model import SGDClassifier

from ftnb import stream
from ftnb.bow import HashedNgrams
from ftnb.core import UserError
from ftnb.stream import StreamClassifier, progressive, read_chunks

TEXTS = ["the pump leaks", "no water", "water 水泵", "a pump", "light is out", "the lamp",
         "lamp and light", "dark street", "bus is late", "no bus", "bus 公交车", "the driver"]
LABELS = ["water"] * 4 + ["light"] * 4 + ["bus"] * 4
SMALL = dict(n_features=2**12, random_state=0)
HOSTILE = ["", " ", "\n\t", "。，", "!" * 10**6, "\ud800", "\x00", "é" * 999, "w" * 10**6]
DIMS = pytest.mark.parametrize("dim", [0, 3])


def factory(**more):
    return StreamClassifier(**SMALL | more)


@DIMS
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check, dim):
    check(lambda: factory(dim=dim), TEXTS, LABELS)


@pytest.mark.parametrize("name, check", list(sklearn_checks(factory())), ids=lambda x: str(x)[:40])
def test_scikit_learns_own_checks(name, check):
    check()


def random_rows(seed, n=200, m=50, k=4):
    rng = np.random.default_rng(seed)
    X = sp.random(n, m, 0.1, "csr", np.float32, random_state=seed)
    return X, rng.integers(k, size=n), rng


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("dim", [0, 5])
def test_the_kernels_follow_the_gradient(dim, adaptive):
    "Each step, from an arbitrary table, is the negative gradient times the rate of its row."
    torch = pytest.importorskip("torch")
    X, y, rng = random_rows(dim)
    k, width = 4, dim or 4
    table = rng.normal(size=(51, width + 1)).astype(np.float32)
    table[:, width] = 0
    output = rng.normal(size=(k, dim + 1)).astype(np.float32) if dim else None
    if dim:
        output[:, dim] = 0
    for i in range(30):
        leaf = torch.tensor(table[:, :width], dtype=torch.float64, requires_grad=True)
        out = torch.tensor(output[:, :dim], dtype=torch.float64, requires_grad=True) if dim else 0
        row = torch.tensor(X[i].toarray()[0], dtype=torch.float64)
        sums = row @ leaf[:-1] + leaf[-1]
        scores = out @ sums if dim else sums
        torch.nn.functional.cross_entropy(scores[None], torch.tensor(y[i : i + 1])).backward()
        before = table.copy(), None if output is None else output.copy()
        stream._learn(X, y, np.array([i]), table, output, (0.3, 0.3), adaptive)
        for old, new, leafs in ((before[0], table, leaf), (before[1], output, out)):
            if old is None:
                continue
            gradient = leafs.grad.numpy()
            squares = old[:, -1] + (gradient**2).mean(1)
            scale = np.sqrt(squares + 1e-12) if adaptive else np.ones(len(old))
            step = 0.3 * gradient / scale[:, None]
            np.testing.assert_allclose(old[:, :-1] - new[:, :-1], step, rtol=2e-3, atol=2e-5)
            if adaptive:
                np.testing.assert_allclose(new[:, -1], squares, rtol=1e-3, atol=1e-6)


def test_plain_sgd_equals_scikit_learns_logistic_regression():
    X, y, _ = random_rows(1, k=2)
    table = np.zeros((51, 3), np.float32)
    stream._learn(X, y, np.arange(200), table, None, (0.05, 0.05), adaptive=False, every=0.0)
    theirs = SGDClassifier(loss="log_loss", alpha=0, penalty=None, learning_rate="constant",
                           eta0=0.1, shuffle=False, fit_intercept=False, max_iter=1, tol=None)
    theirs.fit(X.astype(np.float64), y)  # half the rate for each of two symmetric columns
    np.testing.assert_allclose(table[:-1, 1] - table[:-1, 0], theirs.coef_[0], atol=1e-4)


@DIMS
@pytest.mark.parametrize("size", [1, 5, 12])
def test_chunks_in_order_equal_one_pass_of_fit(dim, size):
    whole = factory(dim=dim, epochs=1, shuffle=False).fit(TEXTS, LABELS)
    parts = factory(dim=dim)
    for a in range(0, 12, size):
        parts.partial_fit(TEXTS[a : a + size], LABELS[a : a + size], ["bus", "water", "light"])
    assert np.array_equal(whole.table_, parts.table_) and parts.n_seen_ == 12
    assert np.array_equal(whole.predict_proba(TEXTS), parts.predict_proba(TEXTS))


@DIMS
def test_random_state_repeats_the_table(dim):
    one, two = (factory(dim=dim).fit(TEXTS, LABELS) for _ in range(2))
    assert np.array_equal(one.table_, two.table_)
    other = factory(dim=dim, random_state=1).fit(TEXTS, LABELS)
    assert not np.array_equal(one.table_, other.table_), "the order is drawn"


@DIMS
def test_two_threads_learn_as_well(dim):
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(200)])
    y = rng.integers(4, size=4_000)
    texts = [" ".join(words[50 * c + rng.integers(50, size=6)]) for c in y]
    for threads in (1, 2):
        model = factory(dim=dim, threads=threads, n_features=2**16).fit(texts, y)
        assert model.score(texts, y) > 0.99


def test_a_stream_names_its_classes_once():
    model = factory()
    with pytest.raises(UserError, match="first call"):
        model.partial_fit(TEXTS, LABELS)
    with pytest.raises(UserError, match="two or more"):
        model.partial_fit(TEXTS, LABELS, ["bus"])
    with pytest.raises(UserError, match="none of the"):
        model.partial_fit(TEXTS, LABELS, ["bus", "light"])
    assert not hasattr(model, "classes_"), "a refused chunk leaves no trace"
    model.partial_fit(TEXTS[:4], LABELS[:4], ["water", "light", "bus", "bus"])
    assert model.classes_.tolist() == ["bus", "light", "water"]
    before = model.table_.copy()
    refused = [(["tram"], None), ([3], None), (["bus"], ["bus", "tram"]), (["bus", "bus"], None)]
    for labels, classes in refused:
        with pytest.raises(UserError):
            model.partial_fit(["x"], labels, classes)
    with pytest.raises(UserError):
        model.partial_fit([], [])
    assert np.array_equal(model.table_, before) and model.n_seen_ == 4
    model.partial_fit(TEXTS[4:], LABELS[4:], ["light", "bus", "water"])
    assert model.score(TEXTS, LABELS) > 0.5


def test_integer_classes_do_not_depend_on_the_chunk():
    model = factory().partial_fit(["a"], [7], classes=[9, 7, 8])
    model.partial_fit(["b"], [9])
    assert model.predict(["a", "b"]).tolist() == [7, 9]


@pytest.mark.parametrize("bad", [
    dict(rate=0), dict(rate=-1), dict(rate=float("nan")), dict(epochs=0), dict(dim=-1),
    dict(threads=0), dict(n_features=0), dict(ngram_range=(2, 1)), dict(analyzer="x"),
    dict(n_features=2**31 - 1),
], ids=str)
def test_bad_parameters(bad):
    for call in ("fit", "partial_fit"):
        more = {} if call == "fit" else {"classes": LABELS}
        with pytest.raises(UserError):
            getattr(factory(**bad), call)(TEXTS, LABELS, **more)


def test_a_table_that_no_longer_fits_is_not_read():
    model = factory().fit(TEXTS, LABELS)
    for change in (dict(n_features=2**20), dict(dim=10)):
        other = pickle.loads(pickle.dumps(model)).set_params(**change)
        for call in (lambda m: m.predict(TEXTS), lambda m: m.partial_fit(TEXTS, LABELS)):
            with pytest.raises(UserError, match="changed"):
                call(other)


@DIMS
@pytest.mark.parametrize("n_features", [1, 3, 2**12])
def test_hostile_texts_and_collisions(dim, n_features):
    model = factory(dim=dim, n_features=n_features)
    model.fit([*TEXTS, *HOSTILE], [*LABELS, *["bus"] * len(HOSTILE)])
    proba = model.predict_proba(HOSTILE)
    assert np.isfinite(proba).all() and np.allclose(proba.sum(1), 1)


@DIMS
def test_ten_megabytes_and_a_million_words(dim):
    long = ["word " * 2_000_000, " ".join(map(str, range(1_000_000)))]
    model = factory(dim=dim, epochs=1).fit(long * 2, [0, 1] * 2)
    assert np.isfinite(model.table_).all() and np.isfinite(model.predict_proba(long)).all()
    assert model.predict(["word word"]).tolist() == [0]


def test_any_rate_stays_finite():
    for rate, dim in itertools.product((1e-9, 1e3), (0, 3)):
        model = factory(rate=rate, dim=dim, epochs=50).fit(TEXTS, LABELS)
        assert np.isfinite(model.predict_proba(TEXTS)).all()


@DIMS
def test_saved_and_loaded(dim, tmp_path):
    model = factory(dim=dim, ngram_range=(1, 3)).fit(TEXTS, LABELS)
    model.save_pretrained(tmp_path)
    again = StreamClassifier.from_pretrained(tmp_path)
    assert again.get_params() == model.get_params() and again.n_seen_ == model.n_seen_
    assert np.array_equal(again.predict_proba(TEXTS), model.predict_proba(TEXTS))
    assert not list(tmp_path.glob("*.pkl")) and len(list(tmp_path.iterdir())) == 2
    assert clone(again).get_params() == again.get_params()


@pytest.mark.parametrize("name, content", [
    ("config.json", None), ("config.json", "{"), ("config.json", "[]"), ("config.json", "{}"),
    ("model.safetensors", None), ("model.safetensors", "x" * 50),
])
def test_damaged_folders(name, content, tmp_path):
    factory().fit(TEXTS, LABELS).save_pretrained(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        StreamClassifier.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_fit_the_table(tmp_path):
    factory().fit(TEXTS, LABELS).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key, value in (("n_features", 2**13), ("dim", 3)):
        wrong = config | {"settings": config["settings"] | {key: value}}
        (tmp_path / "config.json").write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="in place of|output"):
            StreamClassifier.from_pretrained(tmp_path)


def test_progressive_scores_before_it_learns():
    chunks = [(TEXTS[a : a + 3], LABELS[a : a + 3]) for a in range(0, 12, 3)]
    seen, right = zip(*progressive(factory(), chunks, sorted(set(LABELS))), strict=True)
    assert seen == (3, 6, 9, 12) and np.isnan(right[0])
    model = factory().partial_fit(*chunks[0], sorted(set(LABELS)))
    expected = np.mean(model.predict(chunks[1][0]) == np.array(chunks[1][1]))
    assert right[1] == expected
    model = factory().partial_fit(TEXTS, LABELS, LABELS)
    assert not np.isnan(next(progressive(model, chunks))[1]), "a model that has learnt before"


# ---------------------------------------------------------------- files


def rows_of(path, **options):
    chunks = list(read_chunks(path, **options))
    return [pair for texts, labels in chunks for pair in zip(texts, labels, strict=True)]


ROWS = [("two\nlines, \"quoted\"", "1"), ("naïve", "2"), ("x" * 200_000, "1"), ("last", "2")]


def as_csv(rows, delimiter=","):
    quoted = ['"' + text.replace('"', '""') + '"' for text, _ in rows]
    lines = [f"{label}{delimiter}{text}" for text, (_, label) in zip(quoted, rows, strict=True)]
    return f"label{delimiter}text\n" + "\n".join(lines)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("delimiter", list(",;\t|"))
def test_encodings_and_separators(encoding, delimiter, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(as_csv(ROWS, delimiter).encode(encoding))
    for n in (1, 3, 100):
        assert rows_of(path, rows=n) == ROWS


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_blank_lines(end, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(end.join(["label,text", "1,a", "", "2,b", ""]).encode())
    assert rows_of(path) == [("a", "1"), ("b", "2")]


def test_json_lines_and_gzip(tmp_path, caplog):
    lines = [json.dumps({"label": int(c), "text": t}) for t, c in ROWS]
    lines += ["", '{"text": "no label"}', '{"label": 3, "text": " "}']
    for name, opened in (("rows.jsonl", open), ("rows.jsonl.gz", gzip.open)):
        with opened(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write("\n".join(lines))
        assert rows_of(tmp_path / name, rows=2) == ROWS
    assert "2 rows without text or label" in caplog.text
    with gzip.open(tmp_path / "rows.csv.gz", "wt", encoding="utf-8") as file:
        file.write(as_csv(ROWS))
    assert rows_of(tmp_path / "rows.csv.gz") == ROWS
    whole = (tmp_path / "rows.csv.gz").read_bytes()
    (tmp_path / "rows.csv.gz").write_bytes(whole[:-20])
    with pytest.raises(UserError, match="gzip"):
        rows_of(tmp_path / "rows.csv.gz")


def test_no_row_is_split_or_lost_beyond_the_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_SAMPLE", 64)
    rng = np.random.default_rng(0)
    rows = [("水\n,\"é" * int(rng.integers(1, 9)) + str(i), str(i % 3)) for i in range(999)]
    path = tmp_path / "rows.csv"
    for encoding in ("utf-8", "utf-16"):
        path.write_bytes(as_csv(rows).encode(encoding))
        for n in (1, 7, 998, 999, 5000):
            sizes = [len(texts) for texts, _ in read_chunks(path, rows=n)]
            assert max(sizes) <= n and all(size == n for size in sizes[:-1])
            assert rows_of(path, rows=n) == rows


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8",
                                      "gb18030"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_sample_is_not_cut_inside_a_line_end(encoding, end, tmp_path, monkeypatch):
    "Wherever the sample ends: in UTF-16 a line end has two bytes, and 上 holds the byte of one."
    rows = [("上海 in the rain " * 3 + str(i), str(i % 3)) for i in range(99)]
    lines = [json.dumps({"text": t, "label": c}, ensure_ascii=False) + end for t, c in rows]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("".join(lines).encode(encoding))
    for sample in range(400, 420):
        monkeypatch.setattr(stream, "_SAMPLE", sample)
        assert rows_of(path) == rows


def test_a_faultless_file_of_utf_16_above_a_megabyte(tmp_path):
    row = json.dumps({"text": "水泵 leaks", "label": "water"}, ensure_ascii=False) + "\n"
    path = tmp_path / "rows.jsonl"
    path.write_bytes((row * 20_000).encode("utf-16"))
    assert path.stat().st_size > stream._SAMPLE
    assert rows_of(path) == [("水泵 leaks", "water")] * 20_000
    first = json.dumps({"text": "x" * 2**21, "label": "water"}) + "\n"  # no line end in the sample
    path.write_bytes((first + row).encode())
    assert [len(text) for text, _ in rows_of(path)] == [2**21, 8]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "gb18030"])
@pytest.mark.parametrize("before", [0, 1, 500, 5000])
def test_a_damaged_byte_is_told_with_its_line(encoding, before, tmp_path):
    bad = {"utf-8": b"\xff", "gb18030": b"\xff"}.get(encoding, "\udc00".encode(
        "utf-16-be" if encoding == "utf-16-be" else "utf-16-le", "surrogatepass"))
    good = "label,text\n" + '1,"two\nlines 水"\n' * before
    path = tmp_path / "rows.csv"
    path.write_bytes(good.encode(encoding) + "2,".encode(encoding)[-4:] + bad)
    with pytest.raises(UserError, match=f"line {2 + 2 * before}: a byte"):
        rows_of(path, encoding=encoding)


BROKEN = {
    "wide row": ("rows.csv", b"label,text\n1,a\n2,b,c\n", "line 3: expected 2 fields, got 3"),
    "open quote": ("rows.csv", b'label,text\n1,"a\n2,b\n', "the row from line 2: .*doubled"),
    "zero bytes": ("rows.csv", b"label,text\n1,a\x00b\n", "line 2: zero bytes"),
    "late byte": ("rows.csv", b"label,text\n" + b"1,a\n" * 2**19 + b"2,\xe9\n",
                  "line 524290: .*errors='replace'"),
    "no column": ("rows.csv", b"a,b\n1,2\n", "which column"),
    "empty": ("rows.csv", b" \n", "empty"),
    "not JSON": ("rows.jsonl", b'{"text": "a", "label": 1}\n{"text"\n', "line 2"),
    "a list": ("rows.jsonl", b'{"text": "a", "label": 1}\n[1]\n', "line 2"),
    "spreadsheet": ("rows.xlsx", b"PK", "cannot be read in pieces"),
    "no gzip": ("rows.csv.gz", b"label,text\n", "gzip"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(case, tmp_path):
    name, content, message = BROKEN[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        rows_of(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_what_is_wrong_at_once_is_told_at_once(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"label,text\n1,a\n")
    for options in (dict(text="tex"), dict(rows=0), dict(encoding="no-such")):
        with pytest.raises(UserError):
            read_chunks(path, **options)  # before the first chunk is asked for
    with pytest.raises(UserError, match="no file"):
        read_chunks(tmp_path / "none.csv")
    with pytest.raises(UserError):
        read_chunks(tmp_path)


def test_damage_is_replaced_only_on_request(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"label,text\n" + "1,naïve\n".encode() * 99 + b"2,\xe9\n")
    with pytest.raises(UserError, match="errors='replace'"):
        rows_of(path)
    assert rows_of(path, errors="replace")[-1] == ("\ufffd", "2")


def test_an_open_quote_does_not_swallow_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "_LONGEST", 10_000)
    path = tmp_path / "rows.csv"
    path.write_bytes(b'label,text\n1,a\n1,"' + b"2,b\n" * 99_999)
    with pytest.raises(UserError, match="line 3: .*quote"):
        next(read_chunks(path))
    path.write_bytes(b"label,text\n1," + b"x" * 99_999)  # one line without an end
    with pytest.raises(UserError, match="10,000 characters"):
        next(read_chunks(path))


def test_a_quote_can_be_a_character(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_bytes(b'label\ttext\n1\t"a\n2\tb\n')
    assert rows_of(path, quoted=False) == [('"a', "1"), ("b", "2")]


# ---------------------------------------------------------------- a bar on real data


def test_one_pass_over_ag_news_is_as_good_as_a_batch_of_naive_bayes(mirror):
    from sklearn.naive_bayes import MultinomialNB

    from ftnb.data import load

    corpus = load("ag_news", subset="10k")
    train, valid = corpus.part("train"), corpus.part("valid")
    model = StreamClassifier(epochs=1, random_state=0).fit(train.texts, train.labels)
    counts = HashedNgrams().transform
    batch = MultinomialNB().fit(counts(train.texts), train.labels)
    theirs = np.mean(batch.predict(counts(valid.texts)) == valid.labels)
    assert model.score(valid.texts, valid.labels) > theirs - 0.01


@pytest.mark.parametrize("name", ["n_features", "dim", "epochs", "threads", "rate", "ngram_range"])
@pytest.mark.parametrize("bad", ["1", 1.5j, [1.5], ("1", "2")])
def test_settings_of_the_wrong_kind_are_refused(name, bad):
    for way in ("fit", "partial_fit"):
        model = StreamClassifier(**{"n_features": 16, name: bad})
        more = (["x", "y"],) if way == "partial_fit" else ()
        with pytest.raises(UserError, match=name) as told:
            getattr(model, way)(["a b", "b c"], ["x", "y"], *more)
        assert "\n" not in str(told.value)


def test_what_is_no_path_or_has_no_rows_is_refused(tmp_path):
    for bad in (None, 3, "", ["a.csv"]):
        for call in (read_chunks, StreamClassifier.from_pretrained):
            with pytest.raises(UserError, match="path"):
                call(bad)
    (tmp_path / "a.csv").write_text("text,label\n")
    with pytest.raises(UserError, match="no row"):
        list(read_chunks(tmp_path / "a.csv"))
    for wrong in (dict(rows="9"), dict(rows=1.5), dict(errors="klingon"), dict(encoding=5)):
        with pytest.raises(UserError):
            read_chunks(tmp_path / "a.csv", **wrong)
