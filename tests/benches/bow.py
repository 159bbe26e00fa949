"""Bags of words: hashed features, and whole routes from raw texts to predictions."""

import re
import tempfile
from pathlib import Path

import numpy as np

from benches.common import (
    CORES,
    SKLEARN,
    Benchmark,
    Case,
    accuracies,
    few,
    news,
    right,
    same_matrix,
    texts_only,
)


def control():
    "The same work on both sides: how far from 1 the ratio lies is the noise of this machine."
    from sklearn.feature_extraction.text import HashingVectorizer

    texts, said = texts_only(2_000)
    work = lambda texts: HashingVectorizer(n_features=2**18).transform(texts)  # noqa: E731
    return Case(said, (texts,), (texts[:100],), work, work, same_matrix)


def features(threads, ordered=False):
    "Hashed counts of words and pairs of words. Ours lie in order of appearance, theirs by column."
    from sklearn.feature_extraction.text import HashingVectorizer

    from ftnb.bow import HashedNgrams
    from ftnb.text import TOKEN_PATTERN

    texts, said = texts_only()
    plain = r"(?u)\w+"  # scikit-learn is faster with it; taken where it finds the same words
    lowered = [text.lower() for text in texts]
    alike = all(re.findall(plain, t) == re.findall(TOKEN_PATTERN, t) for t in lowered)
    both = dict(ngram_range=(1, 2), n_features=2**18, norm=None, alternate_sign=False)
    pattern = plain if alike else TOKEN_PATTERN
    theirs = HashingVectorizer(**both, dtype=np.float32, token_pattern=pattern)
    own = HashedNgrams(**both, threads=threads)

    def ours(texts):
        counts = own.transform(texts)
        if ordered:
            counts.sort_indices()
        return counts

    return Case(said, (texts,), (texts[:100],), ours, theirs.transform, same_matrix)


def bag_of_words(texts, labels, more, held) -> float:
    "Our whole route: raw texts to the accuracy of predictions."
    from ftnb.bow import BagOfWordsClassifier

    model = BagOfWordsClassifier(threads=CORES, random_state=0).fit(texts, labels)
    return right(model.predict(more), held)


def route_fasttext(threads):
    import fasttext

    def words(text):
        return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))

    def peer(texts, labels, more, held):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.txt"
            rows = zip(labels, texts, strict=True)
            path.write_text("".join(f"__label__{c} {words(t)}\n" for c, t in rows))
            model = fasttext.train_supervised(
                str(path), lr=0.5, wordNgrams=2, dim=10, epoch=5, thread=threads, verbose=0
            )
        # with a list, predict works under NumPy 2; with one string it raises there
        predicted, _ = model.predict([words(t) for t in more])
        return right([int(p[0].removeprefix("__label__")) for p in predicted], held)

    data, said = news()
    check = accuracies(lambda ours, peer: ours >= peer + 1.5, "1.5 points above")
    return Case(said, data, few(data), bag_of_words, peer, check, retry="Encountered NaN")


def route_sklearn():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    def peer(texts, labels, more, held):
        model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LinearSVC(random_state=0))
        return right(model.fit(texts, labels).predict(more), held)

    data, said = news()
    check = accuracies(lambda ours, peer: ours >= peer - 0.3, "within 0.3")
    return Case(said, data, few(data), bag_of_words, peer, check)


BENCHMARKS = {
    "control": Benchmark(control, (0.8, 1.25), 1, SKLEARN),
    "features": Benchmark(lambda: features(1), (25.0, None), 1, SKLEARN),
    "features-2-threads": Benchmark(lambda: features(CORES), (40.0, None), CORES, SKLEARN),
    "features-sorted": Benchmark(lambda: features(1, ordered=True), (1.0, None), 1, SKLEARN),
    "route-fasttext": Benchmark(lambda: route_fasttext(CORES), (1.0, None), CORES, "fasttext"),
    "route-sklearn": Benchmark(route_sklearn, (3.0, None), CORES, SKLEARN),
}
