"""Learning in one pass: from a file of labelled lines to predictions, against fastText."""

import atexit
import re
import tempfile
from pathlib import Path

import numpy as np

from benches.common import CORES, Benchmark, Case, accuracies, news, right

PREFIX = "__label__"


def words(text):
    "Lower case, punctuation apart: what fastText expects; it cuts at blanks alone."
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


def ours(path, more, held) -> float:
    from ftnb.stream import StreamClassifier

    lines = [line.split(" ", 1) for line in path.read_text("utf-8").splitlines()]
    labels = [int(label.removeprefix(PREFIX)) for label, _ in lines]
    model = StreamClassifier(threads=CORES, random_state=0)
    return right(model.fit([text for _, text in lines], labels).predict(more), held)


def fasttext_supervised(path, more, held) -> float:
    import fasttext

    model = fasttext.train_supervised(
        str(path), lr=0.5, wordNgrams=2, dim=10, epoch=5, thread=CORES, verbose=0
    )
    # with a list, predict works under NumPy 2; with one string it raises there
    predicted, _ = model.predict(more)
    return right([int(p[0].removeprefix(PREFIX)) for p in predicted], held)


def lines_file(folder, name, texts, labels):
    path = Path(folder) / name
    rows = zip(labels, map(words, texts), strict=True)
    path.write_text("".join(f"{PREFIX}{c} {text}\n" for c, text in rows), "utf-8")
    return path


def supervised(repeat):
    "Both sides read the same file, train five passes, and predict the test lines."
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    (texts, labels, more, held), said = news()
    path = lines_file(folder.name, "train.txt", texts * repeat, np.tile(labels, repeat))
    small = lines_file(folder.name, "small.txt", texts[:200], labels[:200])
    more = [words(text) for text in more]
    n = len(texts) * repeat
    tokens = sum(len(line.split()) for line in path.open(encoding="utf-8"))
    said = f"{said.split(',')[0]}, {n:,} lines, {tokens / 1e6:.1f} M words, 5 passes"
    check = accuracies(lambda ours, peer: ours >= peer - 0.3, "within 0.3")
    return Case(said, (path, more, held), (small, more[:200], held[:200]), ours,
                fasttext_supervised, check, retry="Encountered NaN")


BENCHMARKS = {
    "stream-fasttext-10k": Benchmark(lambda: supervised(1), (1.0, None), CORES, "fasttext"),
    "stream-fasttext-120k": Benchmark(lambda: supervised(12), (1.0, None), CORES, "fasttext"),
}
