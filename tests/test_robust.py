"""Damage at a known rate that leaves the rest alone, and systems compared on the same damage."""

import unicodedata

import numpy as np
import pytest
import scipy.sparse as sp

from ftnb.bow import HashedNgrams
from ftnb.core import UserError
from ftnb.data import load
from ftnb.metrics import bootstrap_interval
from ftnb.robust import (
    COMMON_HAN,
    FAMILIES,
    KINDS,
    LOOKALIKES,
    MIXED,
    damage,
    destroyed,
    family,
    kept_share,
    make_forms,
    natural_kind,
    reach,
    read_forms,
    spread,
    surviving,
    with_noise,
)
from ftnb.text import KEYBOARD, tokenize

ENGLISH = ["Please, mend the broken lamps (22) near Market Street; boxes lie about!"] * 60
CHINESE = ["公园路的水管坏了，请尽快修理。"] * 60
HOSTILE = ["", " \t\n", "，。!?—", "a", "水", "\ud800 odd \udfff", "İstanbul ß ſ K", "e\u0301tude",
           "\x00\x01", "word " * 3, "x" * 3000, "👍🏽 ok", "ａｂｃ １２"]


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("kind", [*KINDS, *MIXED])
def test_hostile_texts_come_back_one_for_one(kind):
    out = damage(HOSTILE, kind, 1.0, rng())
    assert len(out) == len(HOSTILE) and all(isinstance(t, str) for t in out)
    assert out[:3] == HOSTILE[:3], "no words, nothing to damage"
    assert damage(HOSTILE, kind, 0.0, rng()) == HOSTILE
    assert damage([], kind, 0.5, rng()) == []


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("texts", [ENGLISH, CHINESE], ids=["en", "zh"])
def test_rate_one_changes_every_word_within_reach(kind, texts):
    if not reach(texts, kind):
        assert damage(texts, kind, 1.0, rng()) == texts
        return
    places, edit = KINDS[kind]
    for word in {w for t in texts for w in tokenize(t)}:
        for i in places(word):
            for v in (0.0, 0.5, 0.999):
                assert edit(word, i, v) != word, f"{kind} left {word} as it was"


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_not_a_word_stays(kind):
    words = "Market lamps boxes near".split() * 100
    words = COMMON_HAN[:400] if kind == "wrong character" else words
    text = " | ".join(words)
    out = damage([text], kind, 0.3, rng())[0].split(" | ")
    assert len(out) == len(words)
    changed = np.mean([a != b for a, b in zip(words, out, strict=True)])
    assert abs(changed - 0.3) < 4 * (0.21 / len(words)) ** 0.5


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_higher_rate_hits_the_same_words_and_more(kind):
    words = COMMON_HAN[:300] if kind == "wrong character" else ["lamps", "Boxes", "tea"] * 100
    few, many = (damage([" | ".join(words)], kind, r, rng(3))[0].split(" | ") for r in (0.1, 0.5))
    for word, a, b in zip(words, few, many, strict=True):
        assert a == word or a == b


@pytest.mark.parametrize("kind", list(MIXED))
def test_the_mixed_kinds_draw_anew_for_each_rate(kind):
    words = ["lamps", "boxes", "teapot"] * 400
    texts = [" | ".join(words)] * 2
    few, many = (damage(texts, kind, r, rng(3)) for r in (0.2, 0.4))
    hit = [[np.array(words) != np.array(t.split(" | ")) for t in some] for some in (few, many)]
    assert hit[1][0][hit[0][0]].all(), "nothing was changed before the first text"
    hit = [second for _, second in hit]
    assert abs(hit[1][hit[0]].mean() - 0.4) < 4 * (0.24 / hit[0].sum()) ** 0.5


def test_kinds_do_what_their_names_say():
    word = "Street"
    made = {k: {edit(word, i, v) for i in places(word) for v in np.linspace(0, 0.99, 50)}
            for k, (places, edit) in KINDS.items()}
    assert all(len(w) == 6 for w in made["neighbour key"] | made["swapped"] | made["look-alike"])
    assert made["lost letter"] == {"treet", "Sreet", "Steet", "Stret", "Stree"}
    assert all(sorted(w) == sorted(word) for w in made["swapped"])
    assert made["capitals"] == {"STREET"} and not made["wrong character"]
    assert {unicodedata.normalize("NFKC", w) for w in made["full width"]} == {word}
    assert all(w.startswith(word) and len(w) == 7 for w in made["emoji"])
    for w in made["neighbour key"]:
        (i,) = [i for i in range(6) if w[i] != word[i]]
        assert w[i].lower() in KEYBOARD[word[i].lower()] and w[i].isupper() == word[i].isupper()
    assert all("CYRILLIC" in unicodedata.name(c) for c in LOOKALIKES.values())


def test_natural_misspellings():
    kind = natural_kind({"street": ["stret"], "odd": ["odd"], "none": []})
    assert damage(["odd street, none"], kind, 1, rng()) == ["odd stret, none"]
    assert reach(["odd street none x"], kind) == 0.25 and reach(["..."], kind) == 0


@pytest.mark.parametrize("call", [
    lambda: damage(["a"], "rain", 0.1, rng()),
    lambda: damage(["a"], "swapped", 1.1, rng()),
    lambda: damage(["a"], "typos", -0.1, rng()),
    lambda: damage(["a"], "swapped", float("nan"), rng()),
    lambda: damage(["a"], "swapped", "0.2", rng()),
    lambda: damage(["a"], None, 0.2, rng()),
    lambda: damage(["a"], ["swapped"], 0.2, rng()),
    lambda: damage(["a"], "swapped", 0.2, 7),
    *(lambda texts=texts, kind=kind: damage(texts, kind, 0.2, rng())
      for texts in (None, "one text", [1], ["a", None]) for kind in ("swapped", "typos")),
    lambda: reach(["a"], "typos"),
    lambda: reach("one text", "swapped"),
    lambda: reach(None, "swapped"),
    lambda: surviving(1.5, 2, 6),
    lambda: surviving(0.2, 2, 0),
    lambda: spread([0, 1, 1]),
    lambda: spread(np.empty((0, 3))),
    lambda: with_noise(["a", "b"], [1], rng()),
    lambda: natural_kind({"here": "hear"}),
    lambda: family("oracle", 0),
])  # fmt: skip
def test_bad_input_is_one_line(call):
    with pytest.raises(UserError) as e:
        call()
    assert "\n" not in str(e.value)


def test_no_texts_no_damage():
    assert damage([], "swapped", 0.2, rng()) == damage([], "typos", 0.2, rng()) == []


def test_destroyed_counts_windows():
    dice = rng(1)
    for _ in range(300):
        length = int(dice.integers(1, 30))
        at = int(dice.integers(length))
        width = int(dice.integers(1, length - at + 1))
        n = int(dice.integers(1, 12))
        before, after = (list(range(length)) for _ in range(2))
        after[at : at + width] = [-1] * width
        grams = [[tuple(x[i : i + n]) for i in range(length - n + 1)] for x in (before, after)]
        lost = sum(a != b for a, b in zip(*grams, strict=True))
        assert destroyed(length, at, width, n) == lost
    assert surviving(0.0, 5, 3) == 1 and surviving(1.0, 3, 1) == 0


def test_kept_share():
    v = HashedNgrams((1, 1), 2**18)
    a, b = v.transform(["one two two", "three"]), v.transform(["two five", "four"])
    assert kept_share(a, a) == 1 and kept_share(a, b) == pytest.approx((1 / 3 + 0) / 2)
    empty = sp.csr_matrix(a.shape, dtype=np.float32)
    assert kept_share(a, empty) == 0


def test_spread_of_one_seed_is_the_bootstrap():
    right = rng(2).random((1, 500)) < 0.8
    mean, low, high = spread(right)
    expected = bootstrap_interval(np.ones(500, int), right[0].astype(int))
    assert mean == right.mean() and np.allclose((low, high), expected, atol=0.01)


def test_spread_pairs_and_counts_seeds():
    a = rng(3).random((3, 400)) < 0.7
    assert spread(a.astype(int) - a) == (0, 0, 0)
    apart = np.repeat([[0.0], [0.5], [1.0]], 400, axis=1)  # the seeds decide everything
    mean, low, high = spread(apart)
    assert mean == 0.5 and high - low > 0.5
    mean, low, high = spread(a)
    assert low < mean < high and spread(a) == (mean, low, high)
    wide = spread(a, rng=1)
    assert abs(wide[1] - low) < 0.02


def test_forms_are_the_same_for_all_and_repeat():
    wanted = [[("typos", 0.2), ("own", 0.5)], [("typos", 0.2)]]
    own = {"own": natural_kind({"lamps": ["lampps"]})}
    one, two = (make_forms(ENGLISH, wanted, own) for _ in range(2))
    assert one == two and list(one[0]) == [("none", 0.0), ("typos", 0.2), ("own", 0.5)]
    assert one[0]["none", 0.0] == ENGLISH and one[0]["typos", 0.2] != one[1]["typos", 0.2]
    assert "lampps" in "".join(one[0]["own", 0.5])


def test_read_forms():
    texts, labels = ["red apple pie", "blue ocean wave"] * 30, [0, 1] * 30
    forms = make_forms(texts[:6], [[("unseen", 1.0)], []])
    truth, seen = np.array([0, 1] * 3), []

    def change(some, y, dice):
        seen.append(len(some))
        return with_noise(some, y, dice)

    found = read_forms("words", texts, labels, forms, truth, 20, change)
    assert seen == [20, 20] and found["none", 0.0].all() and found["none", 0.0].shape == (2, 6)
    assert found["unseen", 1.0].shape == (1, 6) and found["unseen", 1.0].mean() < 1


def test_with_noise_keeps_the_clean_rows_and_the_labels():
    texts, labels = with_noise(ENGLISH[:3], ["x", "y", "z"], rng(), rate=0.5, copies=2)
    assert texts[:3] == ENGLISH[:3] and labels.tolist() == ["x", "y", "z"] * 3
    assert len(texts) == 9 and all(t not in ENGLISH for t in texts[3:])


@pytest.mark.parametrize("name", list(FAMILIES))
def test_families_carry_their_seed(name):
    assert family(name, 5).get_params()["random_state"] == 5


def test_bytes_above_words_under_a_fifth_of_typos():
    "The bar: English, 20 % typos, paired over texts and seeds, the interval without zero."
    calls = load("hotline", n=12_000)
    calls = calls.take(np.array(calls.extra["language"]) == "en")
    pool, test = calls.take(calls.split != "test"), calls.part("test")
    forms = make_forms(test.texts, [[("typos", 0.2)]] * 3)
    words, raw = (read_forms(f, pool.texts, pool.labels, forms, test.labels, 1000)["typos", 0.2]
                  for f in ("words", "byte n-grams"))
    gap, low, high = spread(raw.astype(int) - words)
    assert gap > 0 and low > 0, f"{100 * gap:.1f} ({100 * low:.1f} to {100 * high:.1f})"
