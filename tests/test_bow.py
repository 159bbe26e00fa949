"What the notebook on bags cannot show well: hostile input, threads, contracts, bars on real data."

import subprocess
import sys
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from estimator_checks import CHECKS, NUMERIC, sklearn_checks
from sklearn.base import clone
from sklearn.feature_extraction.text import HashingVectorizer, TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from ftnb import bow, data
from ftnb.bow import BagOfWordsClassifier, HashedNgrams
from ftnb.core import UserError
from ftnb.metrics import accuracy
from ftnb.text import TOKEN_PATTERN

ALPHABET = list("abAB_9 \t\n\r.,-'éßİΣς\u0301") + list("水泵あーァ・々가٣Ⅷ²😀𠀀ﬁ")
ALPHABET += ["\u3000", "\u200b", "\x00"]
HOSTILE = ["", " ", "\n\t ", "。，", "a", "水", "a水b", "a水" * 99, "w" * 9999, "é" * 7, "\x00"]
HOSTILE += ["a " * 999]


def random_texts(seed, n=300):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(ALPHABET, size=rng.integers(0, 80))) for _ in range(n)] + HOSTILE


def assert_equal(ours, theirs):
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    ours.sort_indices()
    theirs.sort_indices()
    np.testing.assert_array_equal(ours.indptr, theirs.indptr)
    np.testing.assert_array_equal(ours.indices, theirs.indices)
    np.testing.assert_allclose(ours.data, theirs.data, rtol=1e-6)


OPTIONS = [
    dict(ngram_range=(1, 2)),
    dict(ngram_range=(1, 1), n_features=5),
    dict(ngram_range=(2, 4), n_features=1),
    dict(ngram_range=(3, 3), alternate_sign=True, n_features=1000),
    dict(ngram_range=(1, 2), lowercase=False, binary=True),
    dict(ngram_range=(1, 9), norm="l2", n_features=2**20),
    dict(ngram_range=(1, 2), norm="l1", alternate_sign=True),
    dict(ngram_range=(1, 2), n_features=2**31 - 1),
    dict(ngram_range=(1, 3), analyzer="char"),
    dict(ngram_range=(4, 6), analyzer="char", alternate_sign=True, n_features=777, norm="l2"),
    dict(ngram_range=(1, 2), analyzer="char", lowercase=False, binary=True),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_features_equal_scikit_learns(options):
    texts = random_texts(len(str(options)))
    reference = dict(norm=None, alternate_sign=False, n_features=2**18) | options
    theirs = HashingVectorizer(token_pattern=TOKEN_PATTERN, dtype=np.float32, **reference)
    assert_equal(HashedNgrams(**options).transform(texts), theirs.transform(texts))


def test_ngrams_of_every_length_around_the_vector_kernel_s_limit():
    "Up to 19 bytes an n-gram is hashed with others, from 20 bytes on alone."
    words = ["x" * n for n in range(1, 50)] + ["é" * n for n in range(1, 25)]
    texts = [f"{a} {b}" for a in words for b in words[::7]] + words
    ours, theirs = HashedNgrams((1, 3)), HashingVectorizer(
        token_pattern=TOKEN_PATTERN, dtype=np.float32, norm=None, alternate_sign=False,
        n_features=2**18, ngram_range=(1, 3))
    assert_equal(ours.transform(texts), theirs.transform(texts))


@pytest.mark.parametrize("low, high", [(1, 1), (2, 3), (1, 6)])
def test_byte_ngrams_equal_scikit_learns(low, high):
    def slices(text):
        raw = text.lower().encode()
        return [raw[s : s + n] for n in range(low, high + 1) for s in range(len(raw) - n + 1)]

    theirs = HashingVectorizer(analyzer=slices, n_features=2**18, norm=None, alternate_sign=False,
                               dtype=np.float32)
    texts = random_texts(low + high)
    ours = HashedNgrams((low, high), analyzer="byte")
    assert_equal(ours.transform(texts), theirs.transform(texts))


def test_lone_surrogates_separate_words():
    ours = HashedNgrams().transform(["a\ud800b", "\udfff"])
    assert_equal(ours, HashedNgrams().transform(["a b", ""]))


def test_ten_megabytes_in_one_text_and_a_million_words():
    words = [f"w{i}" for i in range(1_000_000)]
    one = " ".join(words)
    ours = HashedNgrams((1, 1), n_features=2**31 - 1).transform(["", one + " w0 w1" * 400_000, "x"])
    assert ours.sum() == 1_800_001 and ours[1].max() == 400_001
    assert 0 <= 1_000_000 - ours[1].nnz < 1_000, "birthday: about 230 pairs collide"


def test_threads_and_chunks_change_nothing(monkeypatch):
    texts = random_texts(3, 2000)
    one = HashedNgrams().transform(texts)
    monkeypatch.setattr(bow, "_CHUNK", 1000)
    chunks = list(bow._chunks(texts, 0, len(texts)))
    assert len(chunks) > 20 and sum((chunk for chunk, _ in chunks), []) == texts
    assert all(sizes.sum() <= 1000 or len(sizes) == 1 for _, sizes in chunks)
    assert bow._shares(["", ""], 2)[0] == [0, 2], "nothing to share"
    for threads in (1, 2, 5):
        assert_equal(HashedNgrams(threads=threads).transform(texts), one)


def test_a_first_share_without_words_and_a_giant_among_many():
    texts = ["!!!"] * 1000 + ["a b"] * 1000
    assert_equal(HashedNgrams(threads=2).transform(texts), HashedNgrams().transform(texts))
    texts = ["w" * 2_000_000] + ["a b"] * 100_000  # the giant is among those whose length is asked
    bounds, places = bow._shares(texts, 2)
    assert bounds[0] == 0 < bounds[1] < bounds[2] == len(texts)
    assert places[-1] < 1_000_000, "room for 200 giants would not fit into memory"


def test_texts_longer_than_a_tile_and_more_entries_than_guessed():
    long = [" ".join(random_texts(seed, 2000)) for seed in (5, 6)]
    texts = ["", long[0], *random_texts(7, 300), long[1], "x", ""]
    for analyzer, ngrams in (("word", (1, 6)), ("char", (1, 5)), ("byte", (2, 6))):
        ours = HashedNgrams(ngrams, analyzer=analyzer)
        whole = ours.transform(texts)
        assert whole.nnz > sum(map(len, texts)), "far more than were guessed: the rows had to grow"
        assert_equal(whole, sp.vstack([ours.transform([text]) for text in texts]).tocsr())
        assert_equal(whole, ours.set_params(threads=3).transform(texts))


def test_memory_is_bounded_by_the_result():
    import tracemalloc

    texts = ["the pump in the cellar leaks again"] * 100_000
    HashedNgrams().transform(texts[:10])
    tracemalloc.start()
    result = HashedNgrams().transform(texts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    kept = sum(a.nbytes for a in (result.data, result.indices, result.indptr))
    assert peak < 3 * kept + 20e6, (peak, kept)


def test_does_not_depend_on_the_company_of_other_texts():
    texts = random_texts(4)
    whole = HashedNgrams().transform(texts)
    single = sp.vstack([HashedNgrams().transform([text]) for text in texts]).tocsr()
    assert_equal(whole, single)


def test_transformer_contract():
    one = HashedNgrams(ngram_range=(1, 3), n_features=64)
    assert clone(one).get_params() == one.get_params()
    assert one.fit(["a"]) is one and sorted(vars(one)) == sorted(one.get_params())
    assert not hasattr(one, "get_feature_names_out")
    assert_equal(one.transform(["a b"]), one.fit_transform(["a b"]))
    piped = make_pipeline(HashedNgrams(), LinearSVC()).fit(["a b", "c d"], [0, 1])
    assert piped.predict(["b", "d"]).tolist() == [0, 1]
    for _, check in sklearn_checks(one):
        check()


@pytest.mark.parametrize(
    "options, part",
    [
        (dict(ngram_range=(2, 1)), "ngram_range"),
        (dict(ngram_range=(0, 1)), "ngram_range"),
        (dict(ngram_range=2), "ngram_range"),
        (dict(n_features=0), "n_features"),
        (dict(n_features=2**31), "n_features"),
        (dict(analyzer="words"), "analyzer"),
        (dict(threads=0), "threads"),
        (dict(norm="max"), "norm"),
    ],
)
def test_bad_parameters_of_the_transformer(options, part):
    with pytest.raises(UserError, match=part):
        HashedNgrams(**options).transform(["a"])


@pytest.mark.parametrize(
    "options, part",
    [
        (dict(head="tree"), "head"),
        (dict(weighting="bm25"), "weighting"),
        (dict(head="nbsvm", weighting="tfidf"), "auto"),
        (dict(head="nb", weighting="nb"), "auto"),
        (dict(C=0), "C"),
        (dict(alpha=0.0), "alpha"),
        (dict(beta=1.5), "beta"),
        (dict(calibration="isotonic"), "calibration"),
        (dict(analyzer="x"), "analyzer"),
    ],
)
def test_bad_parameters_of_the_classifier(options, part):
    with pytest.raises(UserError, match=part):
        BagOfWordsClassifier(**options).fit(["a", "b"], [0, 1])


WORDS = {"water": "pump tap leak pipe 水 泵", "light": "lamp dark street bulb 灯 泡",
         "bus": "late stop line driver 车 站"}


def small(n=36, seed=0):
    rng = np.random.default_rng(seed)
    labels = list(WORDS) * (n // 3)
    shared = "the a is in my 的 了".split()
    texts = [" ".join(rng.choice(WORDS[c].split() + shared, size=8)) for c in labels]
    return texts, labels


FACTORIES = {
    "svm": lambda: BagOfWordsClassifier(random_state=0),
    "logreg": lambda: BagOfWordsClassifier(head="logreg", random_state=0),
    "nb": lambda: BagOfWordsClassifier(head="nb", random_state=0),
    "nbsvm": lambda: BagOfWordsClassifier(head="nbsvm", random_state=0),
    "calibrated": lambda: BagOfWordsClassifier(calibration="temperature", random_state=0),
    "char": lambda: BagOfWordsClassifier((1, 3), analyzer="char", threads=2, random_state=0),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", FACTORIES)
def test_estimator_contract(kind, check):
    texts, labels = small()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(FACTORIES[kind], texts, labels)


@pytest.mark.parametrize("kind", FACTORIES)
def test_scikit_learns_own_checks(kind):
    checks = dict(sklearn_checks(FACTORIES[kind]()))
    assert len(checks) >= 9 and not set(checks) & set(NUMERIC)
    for check in checks.values():
        check()


@pytest.mark.parametrize("head, weighting", [(h, w) for h in ("svm", "logreg", "nb", "nbsvm")
                                             for w in ("tfidf", "count", "binary", "nb")
                                             if (h == "nbsvm") <= (w == "nb")
                                             and (h, w) != ("nb", "nb")])
def test_every_head_with_every_weighting_learns(head, weighting):
    texts, labels = small(90)
    for y in (labels, [label == "bus" for label in labels]):
        model = BagOfWordsClassifier(head=head, weighting=weighting, random_state=0)
        model.fit(texts[:60], y[:60])
        assert model.score(texts[60:], y[60:]) > 0.8
        assert len(model.coef_) == (3 if len(model.classes_) == 3 else 1)


def test_equals_scikit_learns_pipeline():
    texts, labels = small(90)
    ours = BagOfWordsClassifier(n_features=2**24, C=1.0, sublinear=False, random_state=0)
    theirs = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), token_pattern=TOKEN_PATTERN),
                           LinearSVC(C=1.0, random_state=0))
    a = ours.fit(texts[:60], labels[:60]).decision_function(texts[60:])
    b = theirs.fit(texts[:60], labels[:60]).decision_function(texts[60:])
    np.testing.assert_allclose(a, b, atol=0.1)
    assert (ours.classes_[a.argmax(1)] == theirs.classes_[b.argmax(1)]).all()


def test_intercept_of_nb_svm_is_interpolated_too():
    "The unscaled intercept would drown the rare class."
    texts, labels = small(300)
    y = np.array([label == "bus" for label in labels]).astype(int)
    rare = np.flatnonzero((y == 0) | (np.arange(len(y)) % 8 == 0))
    counts = HashedNgrams().transform([" ".join(t.split()[:2]) for t in texts])
    X = bow.weigh(bow._keep_columns(counts, bow._used_columns(counts)), "binary")
    (w1,), (b1,) = bow.ratio_model(X[rare], y[rare], 2, beta=1.0)
    (w,), (b,) = bow.ratio_model(X[rare], y[rare], 2, beta=0.25)
    assert np.isclose(b, 0.25 * b1) and b1 < 0

    def found(intercept):
        return np.mean(X[y == 1] @ w + intercept > 0)

    assert found(b) > found(b1) + 0.05


def test_empty_texts_only():
    with pytest.raises(UserError, match="no n-grams"):
        BagOfWordsClassifier().fit(["", "。。"], [0, 1])
    model = BagOfWordsClassifier(random_state=0).fit(["a b", "", "c d", " "], [0, 1, 0, 1])
    assert model.predict(["", "a"]).tolist() == [1, 0]


def test_one_example_per_class():
    model = BagOfWordsClassifier(random_state=0).fit(["a pump", "a lamp", "a bus"], ["p", "l", "b"])
    assert model.predict(["lamp", "bus"]).tolist() == ["l", "b"]
    with pytest.raises(UserError, match="two texts"):
        BagOfWordsClassifier(calibration="temperature").fit(["a", "b"], [0, 1])


def test_too_many_classes_for_the_memory():
    texts = [f"word{i} of{i} class{i} x{i} y{i} z{i} u{i} v{i} w{i} k{i}" for i in range(10_000)]
    with pytest.raises(UserError, match="10,000 classes"):
        BagOfWordsClassifier().fit(texts, range(10_000))
    few = BagOfWordsClassifier(n_features=1000, head="nb", ngram_range=(1, 1))
    assert few.fit(texts, range(10_000)).score(texts[:50], range(50)) > 0.5


def test_temperature_changes_confidence_only():
    texts, labels = small(90)
    plain, tuned = FACTORIES["svm"](), FACTORIES["calibrated"]()
    a, b = (m.fit(texts, labels).predict_proba(texts) for m in (plain, tuned))
    assert (a.argmax(1) == b.argmax(1)).all() and not np.allclose(a, b)
    assert plain.temperature_ == 1.0 != tuned.temperature_
    again = clone(tuned).fit(texts, labels)
    assert again.temperature_ == tuned.temperature_


def test_top_ngrams_name_the_words_and_the_collisions():
    texts, labels = small(90)
    top = BagOfWordsClassifier(random_state=0).fit(texts, labels).top_ngrams(texts, k=5)
    assert list(top) == sorted(WORDS)
    for label, best in top.items():
        assert len(best) == 5 and best[0][1] >= best[-1][1]
        assert any(set(ngram.split()) & set(WORDS[label].split()) for ngram, _ in best)
    crowded = BagOfWordsClassifier(n_features=4, random_state=0).fit(texts, labels)
    assert all(" / " in ngram for ngram, _ in crowded.top_ngrams(texts, k=1)["bus"])
    two = [label == "bus" for label in labels]
    top = BagOfWordsClassifier(random_state=0).fit(texts, two).top_ngrams(texts, k=3)
    assert top[True][0][1] > 0 and top[False][0][1] > 0 and list(top) == [False, True]
    only = BagOfWordsClassifier(random_state=0).fit(texts, labels).top_ngrams(["lamp", "zzz"])
    assert [ngram for ngram, _ in only["light"]] == ["lamp"]


def test_size_says_what_a_file_takes(tmp_path):
    import joblib

    texts, labels = small(90)
    model = BagOfWordsClassifier(random_state=0).fit(texts, labels)
    file = tmp_path / "model.joblib"
    joblib.dump(model, file)
    assert model.size_bytes_ <= file.stat().st_size < model.size_bytes_ + 5_000


def test_first_use_in_a_fresh_process():
    code = ("from ftnb.bow import BagOfWordsClassifier as B\n"
            "print(B(random_state=0).fit(['a', 'b'], [0, 1]).predict(['b']))")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout.strip() == "[1]", ran.stderr[-500:]


BARS = {"ag_news": 0.883, "banking77": 0.88, "chnsenticorp": 0.88}


@pytest.mark.parametrize("name", BARS)
def test_accuracy_on_real_data(mirror, name):
    corpus = data.load(name)
    fit = np.isin(corpus.split, ["train", "valid"])
    texts = [text for text, keep in zip(corpus.texts, fit, strict=True) if keep]
    model = BagOfWordsClassifier(random_state=0).fit(texts, corpus.labels[fit])
    test = corpus.part("test")
    assert accuracy(test.labels, model.predict(test.texts)) >= BARS[name]


def test_identical_features_on_ag_news(mirror):
    texts = data.load("ag_news", split="test").texts
    theirs = HashingVectorizer(ngram_range=(1, 2), n_features=2**18, norm=None,
                               alternate_sign=False, token_pattern=TOKEN_PATTERN, dtype=np.float32)
    assert_equal(HashedNgrams().transform(texts), theirs.transform(texts))
