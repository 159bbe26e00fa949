"""What the benchmarks share: a case of two sides, the data, and how answers are compared."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ftnb.core import UserError

CORES = min(2, os.cpu_count() or 1)
SKLEARN = "scikit-learn"


@dataclass
class Case:
    "Two ways to do the same work."

    said: str  # what the data are
    data: tuple  # arguments of both sides
    small: tuple  # the same, small: a warm-up before memory is measured
    ours: Callable
    peer: Callable
    check: Callable  # (our answer, the peer's) -> one line; raises AssertionError if they differ
    retry: str = ""  # a peer's RuntimeError that begins so is noted, and the turn is repeated
    notes: list = field(default_factory=list)
    ceiling: Callable | None = None  # the matrix products of our side and nothing else


@dataclass
class Benchmark:
    make: Callable  # -> Case, in a process of its own
    bar: tuple  # the ratio of medians (peer / ours) should lie in it
    threads: int
    packages: str  # distributions of the peer, for their versions


def news():
    "AG News as (train texts, labels, test texts, labels), else documentation texts; and which."
    from ftnb.data import load

    try:
        corpus, said = load("ag_news", subset="10k"), "ag_news"
    except UserError:
        corpus, said = load("docstrings"), "docstrings (ag_news is not here: set FTNB_MIRROR)"
    test = corpus.split == "test"
    train, held = corpus.take(np.flatnonzero(~test)), corpus.take(np.flatnonzero(test))
    said += f", {len(train):,} train, {len(held):,} test"
    return (train.texts, train.labels, held.texts, held.labels), said


def texts_only(n=None):
    (texts, _, more, _), said = news()
    texts = (texts + more)[:n] if n is None else more[:n]
    mb = sum(len(t.encode()) for t in texts) / 1e6
    return texts, f"{said.split(',')[0]}, {len(texts):,} raw texts, {mb:.1f} MB"


def few(route, n=200):
    texts, labels, more, held = route
    return texts[:n], labels[:n], more[:n], held[:n]


def right(predicted, truth) -> float:
    return 100 * float(np.mean(np.asarray(predicted) == truth))


def same_matrix(a, b) -> str:
    a, b = a.tocsr().sorted_indices(), b.tocsr().sorted_indices()
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
    assert np.array_equal(a.indptr, b.indptr) and np.array_equal(a.indices, b.indices), "columns"
    np.testing.assert_allclose(a.data, b.data, rtol=1e-5, atol=1e-7)
    return f"same {a.nnz:,} entries"


def accuracies(holds, words):
    def check(ours, peer):
        said = f"accuracy {ours:.1f} against {peer:.1f}"
        assert holds(ours, peer), f"{said}: not {words}"
        return said

    return check
