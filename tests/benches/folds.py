"""Cross-validation of three models: counting once against a vocabulary for every fold."""

import numpy as np

from benches.common import Benchmark, Case

ROWS, FOLDS, RANGES = 1_200, 10, ((1, 1), (1, 2))  # of each set, so that one turn takes seconds


def sets():
    "Film reviews (two classes, three sets) and questions (six), else calls; drawn once; and which."
    from ftnb.core import UserError
    from ftnb.data import load

    try:
        films = [load(name) for name in ("sentence_polarity", "subjectivity", "sst2")]
        corpora, said = [*films, load("trec6", split="train")], ""
    except UserError:
        corpora, said = [load("hotline")], " (the public sets are not here: set FTNB_MIRROR)"
    drawn = [c.take(np.random.default_rng(0).permutation(len(c))[:ROWS]) for c in corpora]
    names = ", ".join(c.name for c in drawn)
    data = [(c.texts, c.labels) for c in drawn]
    return data, f"{ROWS:,} rows each of {names}, {FOLDS} folds, uni- and bigrams{said}"


def refit(texts, labels, fold):
    "Predictions by scikit-learn, with a new CountVectorizer for every model and fold."
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.svm import LinearSVC

    from ftnb.bow import ratio_model
    from ftnb.text import TOKEN_PATTERN

    texts, k, found = np.array(texts, object), len(np.unique(labels)), {}
    for grams in RANGES:
        for name in ("nb", "svm", "nbsvm"):
            guess = found[name, grams] = np.empty(len(texts), int)
            for f in range(FOLDS):
                train, test = fold != f, fold == f
                count = CountVectorizer(ngram_range=grams, binary=True, dtype=np.float32,
                                        token_pattern=TOKEN_PATTERN)
                X, Z = count.fit_transform(texts[train]), count.transform(texts[test])
                if name == "nbsvm":  # no library has it: LinearSVC on log-count ratios
                    coef, intercept = ratio_model(X, labels[train], k)
                    scores = Z @ coef.T + intercept
                    guess[test] = scores[:, 0] > 0 if k == 2 else scores.argmax(1)
                else:
                    model = MultinomialNB() if name == "nb" else LinearSVC(tol=0.01, random_state=0)
                    guess[test] = model.fit(X, labels[train]).predict(Z)
    return found


def grid():
    from ftnb.linear import cross_validate_counts, fold_numbers

    def ours(*sets):
        return [cross_validate_counts(texts, labels, ngram_ranges=RANGES,
                                      folds=fold_numbers(labels, FOLDS))[0]
                for texts, labels in sets]

    def peer(*sets):
        return [refit(texts, labels, fold_numbers(labels, FOLDS)) for texts, labels in sets]

    def check(ours, peer):
        worst, total = 0, 0
        for (_, labels), a, b in zip(data, ours, peer, strict=True):
            fold = fold_numbers(labels, FOLDS)
            assert a.keys() == b.keys()
            for key in a:
                right = [np.bincount(fold, guess == labels, FOLDS) for guess in (a[key], b[key])]
                worst = max(worst, int(np.abs(right[0] - right[1]).max()))
                total += FOLDS
        assert worst <= 1, f"a fold differs by {worst} right answers"
        return f"{total} fold accuracies, " + ("all equal" if not worst else "within one answer")

    data, said = sets()
    small = [(texts[:120], labels[:120]) for texts, labels in data]
    return Case(said, tuple(data), tuple(small), ours, peer, check)


BENCHMARKS = {"folds": Benchmark(grid, (5.0, None), 1, "scikit-learn")}
