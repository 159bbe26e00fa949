"What the notebook on linear models cannot show well: hostile input, equality at large, real data."

import warnings
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.svm import LinearSVC

from ftnb import data
from ftnb.bow import naive_bayes, ratio_model
from ftnb.core import UserError
from ftnb.linear import (
    cross_validate_counts,
    dual_descent,
    expected_collisions,
    fold_numbers,
    interpolate,
    linear_svm,
    logistic_loss,
    logistic_regression,
    nb_svm,
    softmax_loss,
    squared_hinge_loss,
)
from ftnb.text import TOKEN_PATTERN

HOSTILE = ["", " ", "\n\t ", "。，", "a", "水", "\x00", "a\ud800b", "😀", "w" * 9999, "a " * 5000]


def table(seed, n=80, m=30, k=2):
    "Random sparse counts with an empty row and an empty column, and classes that depend on them."
    rng = np.random.default_rng(seed)
    X = rng.poisson(0.3, (n, m)).astype(np.float32)
    X[0], X[:, 1] = 0, 0
    codes = (X @ rng.normal(size=(m, k)) + 0.5 * rng.normal(size=(n, k))).argmax(1)
    codes[:k] = range(k)
    return sp.csr_matrix(X), codes


def hotline(n, label="sentiment"):
    calls = data.load("hotline", n=n)
    if label == "topic":
        return calls.texts, calls.labels
    return calls.texts, np.array([s == "negative" for s in calls.extra["sentiment"]]).astype(int)


@pytest.mark.parametrize("loss", [logistic_loss, squared_hinge_loss])
@pytest.mark.parametrize("dense", [True, False])
def test_gradients_equal_finite_differences(loss, dense):
    X, codes = table(1)
    X, sign = (X.toarray() if dense else X), np.where(codes == 1, 1, -1)
    w = np.random.default_rng(2).normal(size=X.shape[1] + 1)
    steps = 1e-6 * np.eye(len(w))
    slopes = [(loss(w + d, X, sign, 3.0)[0] - loss(w - d, X, sign, 3.0)[0]) / 2e-6 for d in steps]
    np.testing.assert_allclose(loss(w, X, sign, 3.0)[1], slopes, rtol=1e-5, atol=1e-5)


def test_two_class_softmax_is_logistic_with_half_the_penalty():
    X, codes = table(3)
    coef, intercept = logistic_regression(X, codes, 2, C=0.5, tol=1e-6)
    w = np.hstack([[-0.5], [0.5]] * np.append(coef, [intercept], axis=1))
    loss, gradient = softmax_loss(w.ravel(), X, codes, 2, C=0.25)
    assert np.abs(gradient).max() < 1e-4 and np.isfinite(loss)


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("C", [0.01, 1.0, 10.0])
def test_logistic_regression_equals_scikit_learns(k, C):
    X, codes = table(k, k=k)
    X = X.astype(np.float64)
    theirs = LogisticRegression(C=C, tol=1e-10, max_iter=5000).fit(X, codes)
    coef, intercept = logistic_regression(X, codes, k, C, tol=1e-6)
    np.testing.assert_allclose(coef, theirs.coef_, atol=2e-4)
    level = theirs.intercept_.mean() - intercept.mean() if k > 2 else 0  # only differences count
    np.testing.assert_allclose(intercept + level, theirs.intercept_, atol=2e-4)


@pytest.mark.parametrize("k", [2, 3, 7])
@pytest.mark.parametrize("C", [0.01, 1.0, 10.0])
def test_svm_equals_linear_svc(k, C):
    X, codes = table(k + 10, k=k)
    theirs = LinearSVC(C=C, tol=1e-9, max_iter=200_000).fit(X, codes)
    coef, intercept = linear_svm(X, codes, k, C, tol=1e-9)
    np.testing.assert_allclose(coef, theirs.coef_, atol=1e-6)
    np.testing.assert_allclose(intercept, theirs.intercept_, atol=1e-6)


def test_the_dual_gap_closes_and_the_seed_only_orders():
    X, codes = table(4)
    sign = np.where(codes == 1, 1, -1)
    w, alpha, _ = dual_descent(X, sign, 2.0, tol=1e-10)
    gap = squared_hinge_loss(w, X, sign, 2.0)[0] - (alpha.sum() - w @ w / 2 - alpha @ alpha / 8)
    assert abs(gap) < 1e-8 and (alpha >= 0).all()
    short = np.maximum(0, 1 - sign * (X @ w[:-1] + w[-1]))
    np.testing.assert_allclose(alpha, 2 * 2.0 * short, atol=1e-7)  # gradient zero
    for seed in (1, 2**31, 2**32 - 1, -1):
        np.testing.assert_allclose(dual_descent(X, sign, 2.0, 1e-10, seed=seed)[0], w, atol=1e-7)
    first, second = (dual_descent(X, sign, 2.0, 0.1, seed=5)[0] for _ in range(2))
    assert (first == second).all()


def test_svm_on_odd_tables():
    empty = sp.csr_matrix((4, 3), dtype=np.float32)
    w, alpha, _ = dual_descent(empty, np.array([1, 1, 1, -1]))
    assert (w[:-1] == 0).all() and w[-1] > 0, "only the intercept can be learnt"
    big = sp.csr_matrix(np.array([[1e6], [-1e6]], np.float32))
    w, _, _ = dual_descent(big, np.array([1, -1]), tol=1e-6)
    assert np.isfinite(w).all() and w[0] > 0
    wide = sp.csr_matrix((np.ones(2, np.float32), ([0, 1], [0, 999_999])), shape=(2, 10**6))
    assert dual_descent(wide, np.array([1, -1]))[0].shape == (10**6 + 1,)


def test_an_svm_that_stops_early_says_so():
    X, codes = table(5)
    with pytest.warns(ConvergenceWarning, match="raise most"):
        dual_descent(X, np.where(codes == 1, 1, -1), 1.0, 1e-12, most=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dual_descent(X, np.where(codes == 1, 1, -1))


@pytest.mark.parametrize("bad", [dict(C=0), dict(C=-1), dict(C=np.nan), dict(tol=0), dict(most=0)])
def test_bad_numbers_are_refused(bad):
    X, codes = table(6)
    with pytest.raises(UserError, match=next(iter(bad))):
        dual_descent(X, np.where(codes == 1, 1, -1), **bad)
    with pytest.raises(UserError, match="rows but"):
        dual_descent(X, np.ones(3))


@pytest.mark.parametrize("bad", [None, "1", [1], np.nan, 0, -1])
def test_a_number_that_is_none_is_refused(bad):
    X, codes = table(7)
    for call in (lambda: logistic_regression(X, codes, 2, C=bad),
                 lambda: nb_svm(X, codes, 2, C=bad), lambda: nb_svm(X, codes, 2, alpha=bad),
                 lambda: linear_svm(X, codes, bad), lambda: fold_numbers(codes, bad)):
        with pytest.raises(UserError) as told:
            call()
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("fit", [logistic_regression, linear_svm, nb_svm])
def test_codes_that_no_solver_could_use_are_refused(fit):
    "They used to give a model of the intercept alone, without a word."
    X, codes = table(8)
    for bad in (None, [], codes[:-1], codes + 1, codes - 1, codes.astype(str), codes + 0.5):
        with pytest.raises(UserError, match="codes"):
            fit(X, bad, 2)
    holed = X.astype(float).toarray()
    holed[0, 0] = np.nan
    for bad in (None, "abc", holed, [["a"]]):
        with pytest.raises(UserError, match="X "):
            fit(bad, codes, 2)
    np.testing.assert_allclose(fit(X.toarray(), codes, 2)[0], fit(X, codes, 2)[0], atol=1e-2)


def test_signs_and_beta_are_checked():
    X, codes = table(9)
    with pytest.raises(UserError, match="-1 or 1"):
        dual_descent(X, codes)
    for bad in (None, "1", -0.1, 1.1, np.nan):
        with pytest.raises(UserError, match="beta"):
            interpolate(np.ones(3), 1.0, bad)
    for n, m in ((None, 4), ("1", 4), (-1, 4), (1, 0), (1, "4"), (np.nan, 4), (1, [4, 0])):
        with pytest.raises(UserError, match="numbers from 0"):
            expected_collisions(n, m)


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_nb_svm_equals_ratio_model(k, beta):
    X, codes = table(k + 20, n=200, k=k)
    X.data.fill(1)
    ours = nb_svm(X, codes, k, 0.5, 0.7, beta, tol=1e-6)
    theirs = ratio_model(X, codes, k, C=0.5, alpha=0.7, beta=beta)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=0.01)


def test_the_raw_intercept_drowns_the_rare_class():
    "Two texts show it, and 3 % of positives lose most of what is found."
    X = sp.csr_matrix(np.array([[1, 1], [1, 0]], np.float32))
    (w,), (b,) = nb_svm(X, np.array([1, 0]), 2, tol=1e-9)
    (_,), (raw,) = nb_svm(X, np.array([1, 0]), 2, beta=1.0, tol=1e-9)
    assert np.isclose(b, raw / 4)
    good, bad = X @ w + b, X @ w + raw
    assert good[0] > 0 > good[1] and not bad[0] > 0 > bad[1]
    w, b = interpolate(np.array([-2.0, 0.0]), -3.0, 0.5)
    assert w.tolist() == [-0.5, 0.5] and b == -1.5


def test_expected_collisions():
    rng = np.random.default_rng(0)
    for n, m in ((50, 100), (300, 100), (10, 10**6)):
        measured = [n - len(np.unique(rng.integers(m, size=n))) for _ in range(2000)]
        error = np.std(measured) / 2000**0.5
        assert abs(expected_collisions(n, m) - np.mean(measured)) < 4 * error + 1e-3
    assert expected_collisions(5, 1) == 4
    assert np.allclose(expected_collisions(np.array([1, 2]), 4), [0, 0.25])


@pytest.mark.parametrize("folds", [2, 3, 10])
def test_folds_are_even(folds):
    labels = np.random.default_rng(folds).choice(["a", "b", "c"], p=[0.7, 0.25, 0.05], size=203)
    fold = fold_numbers(labels, folds, 1)
    assert np.ptp(np.bincount(fold, minlength=folds)) <= 1
    for c in "abc":
        assert np.ptp(np.bincount(fold[labels == c], minlength=folds)) <= 1
    assert (fold != fold_numbers(labels, folds, 2)).any()
    for bad in (0, 1, 204):
        with pytest.raises(UserError, match="folds"):
            fold_numbers(labels, bad)


def refit(texts, labels, fold, grams, make, binary=True, pattern=TOKEN_PATTERN):
    texts, guess = np.array(texts, object), np.empty(len(texts), labels.dtype)
    for f in np.unique(fold):
        count = CountVectorizer(ngram_range=grams, binary=binary, token_pattern=pattern)
        X = count.fit_transform(texts[fold != f]).astype(np.float64)
        model = make().fit(X, labels[fold != f])
        guess[fold == f] = model.predict(count.transform(texts[fold == f]))
    return guess


@pytest.mark.parametrize("label", ["sentiment", "topic"])
@pytest.mark.parametrize("binary", [True, False])
def test_the_grid_equals_a_vocabulary_for_every_fold(label, binary):
    texts, labels = hotline(400, label)
    texts, labels = texts + HOSTILE, np.append(labels, labels[: len(HOSTILE)])
    fold = fold_numbers(labels, 4, 3)
    models = {"nb": naive_bayes, "svm": partial(linear_svm, tol=1e-4)}
    ours, same = cross_validate_counts(texts, labels, models, fold, binary=binary)
    assert (same == fold).all() and len(ours) == 4
    peers = {"nb": MultinomialNB, "svm": partial(LinearSVC, tol=1e-4, max_iter=20_000)}
    for (name, grams), guess in ours.items():
        theirs = refit(texts, labels, fold, grams, peers[name], binary)
        assert (guess != theirs).sum() <= (0 if name == "nb" else 1), (name, grams)


def test_threads_and_strings_change_nothing():
    texts, labels = hotline(300)
    names = np.array(["calm", "angry"])[labels]
    one, fold = cross_validate_counts(texts, names, folds=3)
    two, _ = cross_validate_counts(texts, names, folds=fold, threads=3)
    assert all((one[key] == two[key]).all() for key in one)
    assert set(one["nb", (1, 1)].tolist()) <= {"calm", "angry"}


def test_held_out_words_are_not_known_to_the_fold():
    "A word that only held-out rows use changes nothing about the others' predictions."
    texts, labels = hotline(200)
    fold = fold_numbers(labels, 4)
    plain, _ = cross_validate_counts(texts, labels, folds=fold)
    rare = [text + " zyxwv" * int(f == 0) for text, f in zip(texts, fold, strict=True)]
    changed, _ = cross_validate_counts(rare, labels, folds=fold)
    for key in plain:
        assert (plain[key] == changed[key])[fold == 0].all(), key


def test_another_stateless_vectorizer():
    texts, labels = hotline(200)
    white = HashingVectorizer(token_pattern=r"\S+", n_features=2**31 - 1, norm=None,
                              alternate_sign=False)
    fold = fold_numbers(labels, 4)
    ours, _ = cross_validate_counts(texts, labels, ["nb"], fold, ((1, 2),), vectorizer=white)
    theirs = refit(texts, labels, fold, (1, 2), MultinomialNB, pattern=r"\S+")
    assert (ours["nb", (1, 2)] == theirs).all()


@pytest.mark.parametrize("change, said", [
    (dict(models=["knn"]), "models must be"),
    (dict(models="nb"), "models must be"),
    (dict(folds=1), "folds must be"),
    (dict(folds=np.zeros(6, int)), "two or more folds"),
    (dict(folds=np.arange(5)), "two or more folds"),
    (dict(folds=np.array([0, 0, 0, 1, 1, 1])), "in one fold only"),
    (dict(texts=[" "] * 6), "no n-grams"),
    (dict(texts="one text"), "list of texts"),
    (dict(labels=[1] * 6), "two or more classes"),
    (dict(ngram_ranges=((2, 1),)), "ngram_range"),
    (dict(threads=0), "threads"),
])
def test_bad_input_is_one_line(change, said):
    given = dict(texts=["a b", "b c", "c d", "d e", "e f", "f g"], labels=[0, 0, 0, 1, 1, 1],
                 folds=3) | change
    with pytest.raises(UserError, match=said) as told:
        cross_validate_counts(**given)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name, published", [("sentence_polarity", 79.4), ("subjectivity", 93.2)])
def test_nb_svm_is_near_the_published_number(mirror, name, published):
    "Wang and Manning 2012, table 2: ten folds, words and pairs, what stands between blanks."
    corpus = data.load(name)
    white = HashingVectorizer(token_pattern=r"\S+", n_features=2**31 - 1, norm=None,
                              alternate_sign=False)
    found, _ = cross_validate_counts(corpus.texts, corpus.labels, ["nbsvm"], 10, ((1, 2),),
                                     vectorizer=white)
    assert abs(100 * np.mean(found["nbsvm", (1, 2)] == corpus.labels) - published) < 0.5
