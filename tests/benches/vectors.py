"""Word vectors: skip-gram with negative sampling, trained from texts.

    PYTHONPATH=tests .venv/bin/python -m benches.vectors

trains gensim on the texts of notebook 18 at its size `cpu`, puts it to the notebook's tests and
keeps the results in data/measured/18_similarity.gensim.json; the notebook shows them.
"""

import json
from datetime import datetime, timezone
from importlib.metadata import version

from benches.common import CORES, Benchmark, Case
from ftnb.core import environment, write_text
from ftnb.runs import find_notebook, parameters_of, size_parameters
from ftnb.text import tokenize_many

SETS = ("docstrings", "wikitext2", "ag_news_10k")
SHAPE = dict(window=5, min_count=5, epochs=2)


def mean_similarity(words, vectors) -> float:
    "Mean of Spearman's correlations on WordSim-353 and SimLex-999, with human judgements."
    from ftnb.similarity import similarity_pairs, spearman_similarity

    sets = [similarity_pairs(name) for name in ("wordsim353", "simlex999")]
    return sum(spearman_similarity(words, vectors, s)["spearman"] for s in sets) / len(sets)


def as_good(ours, peer) -> str:
    "The mean correlation of ours is at most 0.02 below that of the peer."
    a, b = (mean_similarity(*side) for side in (ours, peer))
    said = f"mean Spearman {a:.3f} against {b:.3f}"
    assert a >= b - 0.02, f"{said}: more than 0.02 below"
    return said


def skipgram(threads):
    "Ours from raw texts; gensim from lists of the same tokens, which it need not find itself."
    from gensim.models import Word2Vec

    from ftnb.similarity import texts_of
    from ftnb.vectors import SkipGram

    texts = texts_of(SETS)
    tokens = tokenize_many(texts)

    def ours(texts, tokens):
        model = SkipGram(dim=100, negatives=5, threads=threads, random_state=0, **SHAPE).fit(texts)
        return model.words, model.vectors

    def peer(texts, tokens):
        model = Word2Vec(tokens, sg=1, vector_size=100, negative=5, sample=1e-3, workers=threads,
                         seed=0, **SHAPE)
        return model.wv.index_to_key, model.wv.vectors

    said = f"{', '.join(SETS)}: {sum(map(len, tokens)):,} words, {SHAPE['epochs']} passes"
    return Case(said, (texts, tokens), (texts[:500], tokens[:500]), ours, peer, as_good)


BENCHMARKS = {
    "skipgram-1-thread": Benchmark(lambda: skipgram(1), (3.0, None), 1, "gensim"),
    "skipgram-2-threads": Benchmark(lambda: skipgram(CORES), (3.0, None), CORES, "gensim"),
}


# ---------------------------------------------------------------- the peer's side of notebook 18


def gensim_results(tokens, names, pairs, questions, values) -> list[dict]:
    "The notebook's tests of gensim's vectors, once for each seed."
    from gensim.models import Word2Vec

    from ftnb.similarity import decoded, word_tests

    # gensim leaves out what follows the first 10,000 words of a text
    tokens = [row[i : i + 10_000] for row in tokens for i in range(0, len(row), 10_000)]
    results = []
    for seed in values["seeds"]:
        model = Word2Vec(tokens, sg=1, vector_size=values["measured_dim"], window=values["window"],
                         negative=5, min_count=5, sample=1e-3, epochs=values["measured_epochs"],
                         workers=CORES, seed=seed)
        words = model.wv.index_to_key
        words = decoded(words, names) if names else words
        results.append(word_tests(words, model.wv.vectors, pairs, questions))
    return results


def keep_gensim():
    "Measure and write data/measured/18_similarity.gensim.json."
    from ftnb.similarity import analogy_questions, chinese_words, coded, similarity_pairs, texts_of

    notebook = find_notebook("18_similarity")
    values = parameters_of(notebook) | size_parameters(notebook, "cpu")
    ca8 = {name: analogy_questions(name) for name in ("semantic", "morphological")}
    texts, names = coded(chinese_words(texts_of(values["measured_zh"])))
    chinese = gensim_results(tokenize_many(texts), names, {}, ca8, values)
    pairs = {name: similarity_pairs(name) for name in ("wordsim353", "simlex999", "men")}
    google = {"google": analogy_questions("google")}
    tokens = tokenize_many(texts_of(values["measured_en"]))
    english = gensim_results(tokens, None, pairs, google, values)
    record = dict(parameters=values, seeds=values["seeds"], gensim=version("gensim"),
                  metrics=dict(english={"gensim": english}, chinese={"gensim": chinese}),
                  environment=environment(), finished=datetime.now(timezone.utc).isoformat())
    target = notebook.parent.parent / "data" / "measured" / "18_similarity.gensim.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    keep_gensim()
