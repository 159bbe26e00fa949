"Measures: bad input, scikit-learn on many random cases, repeatable and frugal resampling."

import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as peer

from ftnb import metrics
from ftnb.core import UserError

HALF = [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: metrics.accuracy([1, 2], [1]), "2 true labels but 1 predictions"),
        (lambda: metrics.accuracy([], []), "non-empty"),
        (lambda: metrics.accuracy([[1, 2]], [[1, 2]]), "shape (1, 2)"),
        (lambda: metrics.accuracy(5, 5), "shape ()"),
        (lambda: metrics.accuracy([1, 2], ["1", "2"]), "convert one"),
        (lambda: metrics.accuracy([1, math.nan], [1, 1]), "missing labels"),
        (lambda: metrics.accuracy(["a", math.nan], ["a", "b"]), "missing labels"),
        (lambda: metrics.accuracy(["a", None], ["a", "b"]), "missing labels"),
        (lambda: metrics.accuracy([1, math.inf], [1, 1]), "missing labels"),
        (lambda: metrics.accuracy([1, 0.5], [1, 1]), "whole numbers"),
        (lambda: metrics.accuracy([1, "a"], ["1", "a"]), "found int, str"),
        (lambda: metrics.accuracy(np.array([0.2, 0.8]), np.array([0, 1])), "whole numbers"),
        (lambda: metrics.precision_recall_f1([1], [1], "weighted"), "'weighted'"),
        (lambda: metrics.confusion([0, 3], [0, 1], 3), "unknown label 3"),
        (lambda: metrics.confusion([0, 1], [0, -1], 3), "unknown label -1"),
        (lambda: metrics.confusion(["a"], ["b"], 2), "strings"),
        (lambda: metrics.log_loss([0, 1], [[math.nan, 1], [0.5, 0.5]]), "row 0"),
        (lambda: metrics.log_loss([0, 1], [[0.5, 0.5], [-0.5, 1.5]]), "row 1"),
        (lambda: metrics.log_loss([0, 1], [[1.0, 2.0], [0.5, 0.5]]), "softmax"),
        (lambda: metrics.log_loss([0, 1], [0.5, 0.5]), "shape (2, classes)"),
        (lambda: metrics.log_loss([0, 1, 1], HALF), "shape (3, classes)"),
        (lambda: metrics.log_loss([0, 2], HALF), "label 2 has no column"),
        (lambda: metrics.log_loss(["a", "b"], HALF), "pass classes="),
        (lambda: metrics.log_loss(["a", "b"], HALF, classes=["a", "a"]), "1 different classes"),
        (lambda: metrics.brier_score([0, 5], HALF), "label 5"),
        (lambda: metrics.calibration_error([0, 1], HALF, bins=0), "bins"),
        (lambda: metrics.bootstrap_interval([1], [1], n=0), "n=0"),
        (lambda: metrics.bootstrap_interval([1], [1], level=95), "level=95"),
        (lambda: metrics.paired_bootstrap([1, 2], [1, 2], [1]), "2 true labels but 1"),
        (lambda: metrics.mcnemar([1, 2], [1], [1, 2]), "2 true labels but 1"),
        (lambda: metrics.seed_interval([0.9]), "two or more"),
        (lambda: metrics.seed_interval([0.9, math.nan]), "two or more"),
        (lambda: metrics.holm([0.1, math.nan]), "between 0 and 1"),
        (lambda: metrics.holm([0.1, 1.1]), "between 0 and 1"),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [int, str, object, "series", "category", "float", "list", "bool"])
def test_labels_of_every_kind(kind):
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 2, (2, 50))
    make = {
        "series": lambda v: pd.Series(v, index=range(9, 59)),
        "category": lambda v: pd.Series(v.astype(str)).astype("category"),
        "float": lambda v: v.astype(float),
        "list": lambda v: v.tolist(),
        "bool": lambda v: v.astype(bool),
        object: lambda v: np.array([f"c{x}" for x in v], dtype=object),
    }.get(kind, lambda v: v.astype(kind))
    assert metrics.accuracy(make(y), make(p)) == np.mean(y == p)
    assert metrics.macro_f1(make(y), make(p)) == metrics.macro_f1(y, p)
    assert metrics.bootstrap_interval(make(y), make(p)) == metrics.bootstrap_interval(y, p)
    assert metrics.mcnemar(make(y), make(p), make(y)) == metrics.mcnemar(y, p, y)
    assert metrics.confusion(make(y), make(p)).tolist() == metrics.confusion(y, p).tolist()


@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_equal_to_scikit_learn(k):
    rng = np.random.default_rng(k)
    for n in (1, 3, 200):
        y, p = rng.integers(0, k, (2, n))
        for average in ("macro", "micro", None):
            want = peer.precision_recall_fscore_support(y, p, average=average, zero_division=0)
            np.testing.assert_allclose(metrics.precision_recall_f1(y, p, average), want[:3])
        want = peer.confusion_matrix(y, p, labels=range(k))
        assert metrics.confusion(y, p, k).tolist() == want.tolist()
        unsigned = (labels.astype(np.uint64) for labels in (y, p))
        assert metrics.confusion(*unsigned, k).tolist() == want.tolist()
        for dtype in (np.float32, np.float64):
            proba = rng.dirichlet(np.full(k, 0.2), n).astype(dtype)
            want = peer.log_loss(y, proba, labels=range(k)) if k > 1 else 0
            np.testing.assert_allclose(metrics.log_loss(y, proba), want, rtol=1e-5, atol=1e-6)


def test_classes_name_the_columns():
    y, proba = ["b", "a", "c"], np.array([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4], [1, 0, 0]])
    by_name = metrics.log_loss(y, proba, classes=["c", "b", "a"])
    assert by_name == metrics.log_loss([1, 2, 0], proba)
    assert math.isclose(by_name, -(math.log(0.7) + math.log(0.4)) / 3)


def test_confidence_on_a_bin_edge_belongs_to_the_lower_bin():
    table = metrics.reliability([0, 0, 0], [[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]], bins=4)
    assert table["count"].tolist() == [0, 1, 1, 1]
    assert math.isclose(metrics.calibration_error([0, 0, 0], [[0.75, 0.25]] * 3), 0.25)


def test_resampling_repeats_and_follows_its_generator():
    rng = np.random.default_rng(1)
    y, p, other = rng.integers(0, 4, (3, 300))
    for metric in (metrics.accuracy, metrics.macro_f1, lambda a, b: float(np.mean(a == b))):
        draws = [metrics.bootstrap_interval(y, p, metric, n=50, rng=seed) for seed in (5, 5, 6)]
        assert draws[0] == draws[1] != draws[2]
        pair = [metrics.paired_bootstrap(y, p, other, metric, n=50, rng=s) for s in (5, 5, 6)]
        assert pair[0] == pair[1] != pair[2]
    generator = np.random.default_rng(5)
    first = metrics.bootstrap_interval(y, p, n=50, rng=generator)
    assert first != metrics.bootstrap_interval(y, p, n=50, rng=generator)


def test_paired_bootstrap_is_antisymmetric_and_knows_no_difference():
    rng = np.random.default_rng(2)
    y, p, other = rng.integers(0, 3, (3, 400))
    for metric in (metrics.accuracy, metrics.macro_f1):
        there = metrics.paired_bootstrap(y, p, other, metric, n=2000, rng=0)
        back = metrics.paired_bootstrap(y, other, p, metric, n=2000, rng=1)
        assert math.isclose(there["difference"], -back["difference"])
        assert abs(there["low"] + back["high"]) < 0.02
        same = metrics.paired_bootstrap(y, p, p, metric, n=200)
        assert same == dict(difference=0.0, low=0.0, high=0.0, p_value=1.0)


def test_tests_hold_their_level_where_nothing_differs():
    rng, n = np.random.default_rng(3), 400
    alarms = []
    for _ in range(300):
        y = np.ones(n, int)
        p, other = (rng.random((2, n)) < 0.8).astype(int)
        pair = metrics.paired_bootstrap(y, p, other, n=400, rng=rng)
        alarms.append((pair["p_value"] < 0.05, metrics.mcnemar(y, p, other)["p_value"] < 0.05))
    bootstrap, mcnemar = np.mean(alarms, axis=0)
    assert 0.01 < bootstrap < 0.10 and mcnemar < 0.08  # 5 %, with 1.3 points of standard error


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.macro_f1])
@pytest.mark.parametrize("k", [9, 2_000])
def test_a_large_test_set_needs_little_memory(metric, k):
    rng = np.random.default_rng(4)
    y = rng.integers(0, k, 62_774)
    p = np.where(rng.random(len(y)) < 0.8, y, rng.integers(0, k, len(y)))
    other = np.where(rng.random(len(y)) < 0.9, p, y)
    tracemalloc.start()
    metrics.paired_bootstrap(y, p, other, metric, n=1000 if k < 10 else 60)
    low, high = metrics.bootstrap_interval(y, p, metric, n=1000 if k < 10 else 60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert low < metric(y, p) < high or metric is metrics.macro_f1
    assert peak < 60e6, f"{peak / 1e6:.0f} MB"


def test_a_class_that_a_resample_misses_is_left_out_of_its_macro_f1():
    y, p = np.array([0] * 30 + [1]), np.array([0] * 31)
    _, high = metrics.bootstrap_interval(y, p, metrics.macro_f1, n=500)
    assert high == 1.0  # resamples without the lone item of class 1 are all right


def test_holm_is_in_the_given_order_and_never_smaller():
    p = np.array([0.04, 0.001, 0.5, 0.02])
    np.testing.assert_allclose(metrics.holm(p), [0.08, 0.004, 0.5, 0.06])
    assert metrics.holm([]).tolist() == [] and metrics.holm([0.7, 0.9]).tolist() == [1.0, 1.0]


def test_import_is_light():
    code = "import sys, ftnb.metrics; print([m for m in ('sklearn', 'torch') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
