"""Word vectors: the compiled kernel, hostile input, saving, and scikit-learn's contract."""

import csv
import json

import numpy as np
import pytest
from estimator_checks import CHECKS, sklearn_checks
from sklearn.base import clone

from ftnb.core import UserError
from ftnb.text import tokenize
from ftnb.vectors import (
    BagDataset,
    SkipGram,
    WordVectorClassifier,
    bag_loss,
    below,
    count_words,
    embedding_bag,
    idf_weights,
    keep_probability,
    negative_table,
    next_random,
    text_vectors,
    train_epoch,
    uniform,
    with_bigrams,
    word_ids,
)

TEXTS = [f"{a} {b} {c}" for a, c in (("good", "bon"), ("bad", "mal"), ("水", "火"))
         for b in ("film day", "play night", "book", "song, song", "")]
LABELS = [label for label in ("plus", "minus", "other") for _ in range(5)]
WAYS = {
    "skipgram": lambda: WordVectorClassifier("skipgram", dim=8, epochs=3, random_state=0),
    "mean": lambda: WordVectorClassifier(dim=4, epochs=2, pooling="mean", random_state=0),
    "joint": lambda: WordVectorClassifier("joint", dim=8, epochs=4, random_state=0),
    "bigrams": lambda: WordVectorClassifier("joint", dim=4, epochs=2, n_buckets=7, random_state=0),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("way", ["skipgram", "bigrams"])
def test_contract(way, check):
    check(WAYS[way], list(TEXTS), list(LABELS))


def test_sklearn_s_own_checks():
    for name, check in sklearn_checks(WAYS["joint"]()):
        try:
            check()
        except Exception as e:
            raise AssertionError(name) from e


def slow_epoch(ids, offsets, v, u, table, keep, window, negatives, lr, lr_end, state):
    "Skip-gram with the kernel's draws, in the order of the kernel, in float64."
    done = 0
    for d in range(len(offsets) - 1):
        text = [w for w in ids[offsets[d] : offsets[d + 1]] if uniform(state) < keep[w]]
        rate = lr + (lr_end - lr) * done / max(1, len(ids))
        done += offsets[d + 1] - offsets[d]
        for p in range(len(text)):
            reach = 1 + below(state, window)
            targets = [text[p], *[table[below(state, len(table))] for _ in range(negatives)]]
            near = [q for q in range(max(0, p - reach), min(len(text), p + reach + 1)) if q != p]
            dv, du = np.zeros_like(v), np.zeros_like(u)  # of all pairs, from the rows as they are
            for q in near:
                for k, t in enumerate(targets):
                    if k and t == text[p]:
                        continue
                    error = 1 / (1 + np.exp(-(u[t] @ v[text[q]]))) - (k == 0)
                    dv[text[q]] += error * u[t]
                    du[t] += error * v[text[q]]
            v -= rate * dv
            u -= rate * du


@pytest.mark.parametrize("case", range(12))
def test_kernel_equals_the_slow_loop(case):
    g = np.random.default_rng(case)
    lengths = [[0], [1], [0, 1, 2], *(g.integers(0, 15, 12) for _ in range(9))][case]
    n_words, dim = int(g.integers(1, 9)), int(g.integers(1, 40))
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = g.integers(0, n_words, offsets[-1]).astype(np.int32)
    v, u = g.normal(size=(2, n_words, dim)).astype(np.float32)
    counts = np.bincount(ids, minlength=n_words) + 1
    rest = negative_table(counts), keep_probability(counts, 0.1)
    rest += int(g.integers(1, 6)), int(g.integers(0, 9)), 0.1, 0.02
    vs, us, state, states = v.astype(float), u.astype(float), *np.full((2, 1), case + 1, np.uint64)
    train_epoch(ids, offsets, v, u, *rest, state)
    slow_epoch(ids, offsets, vs, us, *rest, states)
    assert state == states
    np.testing.assert_allclose(v, vs, atol=1e-4)
    np.testing.assert_allclose(u, us, atol=1e-4)


def test_a_step_follows_the_gradient_of_the_loss():
    "Two words, one text, no negatives or one: the change is -lr times the finite differences."
    g = np.random.default_rng(0)
    v0, u0 = g.normal(size=(2, 2, 5)).astype(np.float32)
    ids, offsets = np.array([0, 1], np.int32), np.array([0, 2], np.int64)
    table, keep = np.array([0, 0], np.int32), np.ones(2, np.float32)

    def loss(v, u):  # word 1 sees target 0, whose drawn negative is itself; word 0 sees 1 and not 0
        scores = [-(u[0] @ v[1]), -(u[1] @ v[0]), u[0] @ v[0]]
        return np.logaddexp(0, scores).sum()

    v, u, lr, h = v0.copy(), u0.copy(), 1e-3, 1e-6
    train_epoch(ids, offsets, v, u, table, keep, 1, 1, lr, lr, np.array([3], np.uint64))
    for new, old, place in ((v, v0, 0), (u, u0, 1)):
        for i in np.ndindex(old.shape):
            up, down = ([v0.astype(float), u0.astype(float)] for _ in range(2))
            up[place][i] += h
            down[place][i] -= h
            slope = (loss(*up) - loss(*down)) / (2 * h)
            assert (new - old)[i] == pytest.approx(-lr * slope, abs=1e-5)


def test_generator_is_the_published_one():
    "xorshift64*: the recurrence in Python's unbounded integers."
    x, mask, state = 12345, 2**64 - 1, np.array([12345], np.uint64)
    for _ in range(100):
        x ^= x >> 12
        x ^= x << 25 & mask
        x ^= x >> 27
        assert int(next_random(state)) == x * 0x2545F4914F6CDD1D & mask


def test_words_are_numbered_as_a_dictionary_would():
    g = np.random.default_rng(0)
    alphabet = list("aAbß İé水あ_7-.\ud800\x00😀 ")
    texts = ["".join(g.choice(alphabet, g.integers(0, 40))) for _ in range(300)]
    texts += ["", " ", " ".join(f"w{i}" for i in range(30_000))]  # the table must grow
    ids, offsets, words = count_words(texts)
    number, expected = {}, []
    for text in texts:
        for word in tokenize(text.encode("utf-8", "replace").decode()):
            expected.append(number.setdefault(word, len(number)))
    assert words == list(number) and ids.tolist() == expected
    assert offsets[-1] == len(ids) and (np.diff(offsets) >= 0).all()
    again, again_offsets = word_ids(texts, words[:50])
    assert again.tolist() == [i if i < 50 else -1 for i in expected]
    np.testing.assert_array_equal(again_offsets, offsets)


def test_bigrams_equal_a_plain_loop():
    g = np.random.default_rng(1)
    ids, offsets = g.integers(-1, 5, 60).astype(np.int32), np.array([0, 0, 7, 7, 30, 60, 60])
    found, found_offsets = with_bigrams(ids, offsets, 5, 11)
    for d in range(len(offsets) - 1):
        text = ids[offsets[d] : offsets[d + 1]].tolist()
        pairs = [(a, b) for a, b in zip(text, text[1:], strict=False) if min(a, b) >= 0]
        hashed = [5 + (((a * 5 + b) * 0x9E3779B97F4A7C15 & 2**64 - 1) >> 32) % 11 for a, b in pairs]
        own = found[found_offsets[d] : found_offsets[d + 1]].tolist()
        assert own == [a for a in text if a >= 0] + hashed


def test_batches_hold_their_texts():
    ids, offsets = np.arange(10), np.array([0, 3, 3, 7, 10])
    data = BagDataset(ids, offsets, np.arange(4))
    got, starts, y = (t.tolist() for t in data.batch([3, 1, 0]))
    assert (got, starts, y) == ([7, 8, 9, 0, 1, 2], [0, 3, 3], [3, 1, 0])
    net = embedding_bag(10, 4, 4, seed=0)
    assert bag_loss(net, data.batch([1])).isfinite(), "a text without words"


def test_text_vectors_do_not_change_their_arguments():
    ids, offsets = np.array([1, 0, 1], np.int32), np.array([0, 3, 3])
    vectors, weights = np.eye(2, dtype=np.float32), np.array([1, 2], np.float32)
    got = text_vectors(ids, offsets, vectors, weights)
    assert ids.tolist() == [1, 0, 1] and offsets.tolist() == [0, 3, 3]
    np.testing.assert_allclose(got, [[0.2, 0.8], [0, 0]])
    expected = [np.log(1.5) + 1, np.log(1.5) + 1, np.log(3) + 1]
    np.testing.assert_allclose(idf_weights(ids, offsets, 3), expected, rtol=1e-6)


def test_one_thread_repeats_and_two_threads_train():
    texts = TEXTS * 20

    def trained(random_state=5, threads=1):
        fixed = dict(dim=8, epochs=3, min_count=1, lr=0.1)
        return SkipGram(**fixed, threads=threads, random_state=random_state).fit(texts)

    a, b, c, other = trained(), trained(), trained(threads=2), trained(random_state=6)
    np.testing.assert_array_equal(a.vectors, b.vectors)
    assert not np.array_equal(a.vectors, other.vectors)
    assert c.words == a.words and np.isfinite(c.vectors).all()
    assert abs(c.contexts).min(axis=1).max() > 0, "both threads have worked"
    many = SkipGram(4, epochs=1, min_count=1, threads=9, random_state=0).fit(["one text", "two"])
    assert np.isfinite(many.vectors).all(), "more threads than texts"


def test_neighbours_are_those_of_the_text():
    "Two worlds that never meet: a word's nearest neighbours are of its own."
    g = np.random.default_rng(0)
    worlds = [[f"a{i}" for i in range(6)], [f"b{i}" for i in range(6)]]
    texts = [" ".join(g.choice(worlds[i % 2], 8)) for i in range(400)]
    model = SkipGram(10, epochs=10, min_count=1, subsample=0, lr=0.05, random_state=0).fit(texts)
    for word in model.words:
        assert all(w[0] == word[0] for w, _ in model.most_similar(word, 5)), word


@pytest.mark.parametrize("texts", [["word " * 500] * 3, ["a"], ["水"], ["a b", "", "   "]])
def test_poor_texts_give_finite_vectors(texts):
    model = SkipGram(dim=4, min_count=1, epochs=2, random_state=0).fit(texts)
    assert np.isfinite(model.vectors).all() and model.vectors.dtype == np.float32
    assert len(model.most_similar(model.words[0])) == len(model.words) - 1


@pytest.mark.parametrize("texts", [[""], ["...", " "], ["each word once"]])
def test_texts_without_enough_words_are_refused(texts):
    with pytest.raises(UserError, match="min_count"):
        SkipGram(min_count=2).fit(texts)


def test_bad_settings_are_refused_in_one_line():
    for bad in (dict(dim=0), dict(window=0), dict(epochs=0), dict(lr=-1), dict(threads=0),
                dict(dim="5"), dict(dim=2.5), dict(min_count=None), dict(subsample=float("nan"))):
        with pytest.raises(UserError, match=next(iter(bad))):
            SkipGram(**{"min_count": 1, **bad}).fit(["a b"])
    for bad in (dict(pooling="max"), dict(C=0), dict(validation=1.0), dict(dim=-1), dict(epochs=0),
                dict(C="1"), dict(C=None), dict(validation="x"), dict(lr="fast"), dict(epochs="5")):
        with pytest.raises(UserError, match=next(iter(bad))) as caught:
            WordVectorClassifier(**bad).fit(TEXTS, LABELS)
        assert "\n" not in str(caught.value)
    for vectors in ("skipgramm", 3, None):
        with pytest.raises(UserError):
            WordVectorClassifier(vectors).fit(TEXTS, LABELS)
    with pytest.raises(UserError, match="not trained"):
        SkipGram().most_similar("a")
    with pytest.raises(UserError, match="no vector"):
        SkipGram(min_count=1, dim=2, epochs=1).fit(["a b"]).most_similar("c")


@pytest.mark.parametrize("way", WAYS)
def test_texts_without_known_words_still_get_probabilities(way):
    model = WAYS[way]().fit(TEXTS, LABELS)
    proba = model.predict_proba(["", "unseen words only", "?!"])
    np.testing.assert_array_equal(proba[0], proba[1])
    np.testing.assert_allclose(proba, np.full((3, 3), 1 / 3), err_msg="the shares of the classes")
    more = WAYS[way]().fit([*TEXTS, *TEXTS[:5]], [*LABELS, *LABELS[:5]])  # "plus" twice
    shares = [LABELS.count(c) + 5 * (c == "plus") for c in more.classes_]
    np.testing.assert_allclose(more.predict_proba([""])[0], np.array(shares) / 20)


@pytest.mark.parametrize("way", WAYS)
def test_texts_without_any_word_are_refused_or_learnt_from_the_rest(way):
    with pytest.raises(UserError):
        WAYS[way]().fit(["", " ", "..."], [0, 1, 0])
    assert WAYS[way]().fit([*TEXTS, ""], [*LABELS, "plus"]).classes_.tolist() == sorted(set(LABELS))


@pytest.mark.parametrize("way", WAYS)
def test_saved_and_read_back(way, tmp_path):
    model = WAYS[way]().fit(TEXTS, LABELS)
    model.save_pretrained(tmp_path)
    back = WordVectorClassifier.from_pretrained(tmp_path)
    np.testing.assert_array_equal(back.predict_proba(TEXTS), model.predict_proba(TEXTS))
    assert back.get_params() == model.get_params() and back.n_parameters_ == model.n_parameters_
    stored = sum(p.stat().st_size for p in tmp_path.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert 0 <= stored - back.size_bytes_ < 1000, "the header of safetensors is all that is beside"


def test_skipgram_saved_given_and_cloned(tmp_path):
    given = SkipGram(dim=6, min_count=1, epochs=2, random_state=np.random.RandomState(0)).fit(TEXTS)
    given.save_pretrained(tmp_path)
    back = SkipGram.from_pretrained(tmp_path)
    np.testing.assert_array_equal(back.vectors, given.vectors)
    assert back.words == given.words and back.most_similar("good") == given.most_similar("good")
    results = []
    for vectors in (given, tmp_path, str(tmp_path)):
        model = clone(WordVectorClassifier(vectors)).fit(TEXTS, LABELS)
        np.testing.assert_array_equal(model.vectors_, given.vectors)
        results.append(model.predict_proba(TEXTS))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_damaged_folders_are_refused_in_one_line(tmp_path):
    model = WAYS["joint"]().fit(TEXTS, LABELS)

    def refused():
        with pytest.raises(UserError) as caught:
            WordVectorClassifier.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)

    refused()  # nothing there
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError):
        SkipGram.from_pretrained(tmp_path)  # of another kind
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    no_settings = {k: v for k, v in config.items() if k != "settings"}
    unknown = {**config, "settings": {"no_such": 1}}
    no_shares = {k: v for k, v in config.items() if k != "shares"}
    broken_ones = ({**config, "rows": 3}, {"words": []}, [], no_settings, no_shares, unknown,
                   {**config, "settings": None}, {**no_settings, "settings": []})
    for broken in broken_ones:
        (tmp_path / "config.json").write_text(json.dumps(broken), "utf-8")
        refused()
    for content in (b"{", b"\xff\xfe", b"", b"\xe9"):
        (tmp_path / "config.json").write_bytes(content)
        refused()
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 40)
    refused()


def test_damaged_skipgrams_are_refused_in_one_line(tmp_path):
    given = SkipGram(dim=3, min_count=1, epochs=1, random_state=0).fit(TEXTS)
    given.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    no_settings = {k: v for k, v in config.items() if k != "settings"}
    contents = [json.dumps(no_settings).encode(), b"\xff\xfe", b"{", b"[]",
                json.dumps({**config, "settings": {"no_such": 1}}).encode()]
    for content in contents:
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(UserError, match="cannot read a SkipGram") as caught:
            SkipGram.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)


def test_joint_stops_by_held_out_texts_and_gives_the_same_twice():
    texts, labels = TEXTS * 8, LABELS * 8  # sixty are held out, which is enough to stop by
    fixed = dict(dim=8, validation=0.5, random_state=1)
    make = lambda: WordVectorClassifier("joint", **fixed)  # noqa: E731
    a, b = make().fit(texts, labels), make().fit(texts, labels)
    np.testing.assert_array_equal(a.vectors_, b.vectors_)
    assert a.score(texts, labels) == 1


def ag_news(mirror, n):
    with open(mirror / "ag_news_10k" / "samples10000valMed.csv", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    order = np.random.default_rng(0).permutation(len(rows))[: n + 1000]
    return [rows[i]["text"] for i in order], np.array([int(rows[i]["gt"]) for i in order])


@pytest.mark.parametrize("way, least", [("joint", 0.80), ("skipgram", 0.74)])
def test_news(mirror, way, least):
    "Two thousand texts of ag_news_10k against a thousand others."
    texts, y = ag_news(mirror, 2000)
    model = WordVectorClassifier(way, dim=50, epochs=12, random_state=0).fit(texts[:2000], y[:2000])
    assert model.score(texts[2000:], y[2000:]) > least
