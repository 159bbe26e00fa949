"What the notebook on preprocessing cannot show well: hostile texts, bad input, the widget."

import subprocess
import sys

import numpy as np
import pytest

from ftnb import preprocess as pp
from ftnb.bow import BagOfWordsClassifier
from ftnb.core import UserError
from ftnb.data import load
from ftnb.metrics import accuracy
from ftnb.text import tokenize

HOSTILE = ["", " \r\n\t\u3000", "。，！…", "\ud800a\udc80", "😀👍🏽", "e\u0301t", "\x00a\x00",
           "İSTANBUL", "ß ΑΣ ŉ", "々〇〆ー", "ｱｲｳ 가나", "a_b-c.d 3.5% #x", "<b>&amp;</b>",
           "ˣ61 ˣ", "水" * 300, "x" * 100_000, "1" * 10_000, "'" * 10_000, "don't\u2028WON'T"]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_pass_through_everything(text):
    assert "".join(pp.jieba_words(text)) == text
    for kind in pp.UNITS:
        tokens, = pp.units([text], kind)
        assert all(isinstance(token, str) and token for token in tokens)
        assert len(tokenize(pp.as_words(tokens))) == len(tokens)
        assert pp.units([text], kind) == [tokens], "cut twice, cut alike"
    for language in ("en", "zh"):
        for name in pp.STEPS:
            once, = pp.apply_steps([text], [name], language)
            assert isinstance(once, str)


@pytest.mark.parametrize("seed", range(3))
def test_random_code_points(seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, [0x80, 0x3000, 0x10000, 0x110000], size=(2_000, 4)).ravel()
    text = "".join(map(chr, codes.tolist()))
    assert "".join(pp.jieba_words(text)) == text
    tokens, = pp.units([text], "token")
    spelled = tokenize(pp.as_words(tokens))
    assert len(spelled) == len(tokens) and len(set(spelled)) == len(set(tokens)), "one to one"
    grams = pp.char_ngrams(text, 3)
    assert len(grams) == len(text) - 2 and "".join(g[0] for g in grams) + text[-2:] == text
    raw = bytes.fromhex("".join(pp.units([text], "byte")[0]))
    assert raw == text.lower().encode("utf-8", "replace")


def test_jieba_is_our_own_and_silent():
    "Words added to jieba's shared tokenizer change nothing; nothing is written to stderr."
    code = ("import jieba, logging; jieba.setLogLevel(logging.ERROR); jieba.add_word('坏了我打');"
            "from ftnb.preprocess import jieba_words; print(jieba_words('路灯又坏了我打电话'))")
    ran = subprocess.run([sys.executable, "-X", "utf8", "-c", code], capture_output=True,
                         encoding="utf-8")
    assert ran.stdout.strip() == str(pp.jieba_words("路灯又坏了我打电话"))
    alone = "from ftnb.preprocess import jieba_words; jieba_words('水泵')"
    ran = subprocess.run([sys.executable, "-W", "error::DeprecationWarning", "-c", alone],
                         capture_output=True, text=True)
    assert ran.returncode == 0 and not ran.stderr


def test_jieba_equals_the_library():
    import jieba

    jieba.setLogLevel(60)
    rows = load("hotline", n=200).texts
    assert [pp.jieba_words(text) for text in rows] == [jieba.lcut(text) for text in rows]


def test_importing_the_module_loads_neither_jieba_nor_widgets():
    code = "import sys, ftnb.preprocess; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jieba", "snowballstemmer", "ipywidgets", "torch"} & set(ran.stdout.split())


@pytest.mark.parametrize("name", [n for n in pp.STEPS if n != "stems"])
def test_a_step_applied_twice_is_applied_once(name):
    texts = ["The lamps weren't ON, not 3,5 or ３ times! ﬁx", "路灯没有坏了，不行"]
    for text, language in zip(texts, ("en", "zh"), strict=True):
        once = pp.apply_steps([text], [name], language)
        assert pp.apply_steps(once, [name], language) == once


def test_stems_are_those_of_the_library_and_keep_capitals():
    import snowballstemmer

    words = "running easily Generalizations FLIES dying skies"
    expected = snowballstemmer.stemmer("english").stemWords(words.lower().split())
    assert pp.stem(words).lower().split() == expected
    assert pp.stem("FLIES Flies flies") == "FLI Fli fli"


def test_stop_words():
    assert pp.NEGATIONS["en"] <= pp.stop_words("en") and pp.NEGATIONS["zh"] <= pp.stop_words("zh")
    assert pp.remove_stop_words("Not the end, NEVER knot").split() == ["end,", "knot"]
    assert pp.keep_negation("Not the end").split() == ["Not", "end"]
    assert pp.remove_stop_words("A pump was never  good.\n") == "pump good.", "no blanks tell of it"
    assert pp.keep_negation("我没有打电话", "zh") == "没有打电话"
    assert pp.remove_stop_words("我没有打电话", "zh") == "打电话"


@pytest.mark.parametrize(("call", "words"), [
    (lambda: pp.units(["a"], "lemma"), "kind"),
    (lambda: pp.units("a text", "word"), "list"),
    (lambda: pp.units([1], "word"), "not a string"),
    (lambda: pp.units([], "char"), "no texts"),
    (lambda: pp.char_ngrams("abc", 0), "1 or more"),
    (lambda: pp.apply_steps(["a"], ["lemmas"]), "lemmas"),
    (lambda: pp.apply_steps(["a"], ["stop words"], "fr"), "language"),
    (lambda: pp.fit_vocabulary([["a"]], 2), "3 or more"),
    (lambda: pp.unseen_share([["a"]], [[]], [1]), "no units"),
    (lambda: pp.apply_steps(["a"], "lower"), "list"),
    (lambda: pp.apply_steps(["a"], None), "list"),
    (lambda: pp.apply_steps(["a"], ["lower"], "fr"), "language"),
    (lambda: pp.stem("a", "fr"), "language"),
    (lambda: pp.arms_of("fr"), "language"),
    (lambda: pp.stop_words(["en"]), "language"),
    (lambda: pp.char_ngrams("abc", "2"), "whole number"),
    (lambda: pp.fit_vocabulary([["a"]], "9"), "3 or more"),
    (lambda: pp.encode(["a"], {"a": 2}, -1), "0 or more"),
    (lambda: pp.encode(["a"], {"a": 2}, 1.5), "whole number"),
    (lambda: pp.log_spaced(float("nan")), "whole number"),
    *((lambda x=x, y=y: pp.power_law(x, y), "positive") for x, y in (
        ([], []), ([1], [1]), ([0, 1], [1, 2]), ([1, 2], [1]), (["a", "b"], [1, 2]),
        ([2, 2], [1, 3]), (None, None), ([1, float("nan")], [1, 2]))),
    *((lambda f=f, x=x: f(x), "text is needed") for x in (None, 3, b"a", ["a"]) for f in (
        *pp.STEPS.values(), pp.jieba_words, lambda x: pp.char_ngrams(x, 2))),
    *((lambda f=f, x=x: f(x), "of units") for x in (None, 3, "a text", b"a") for f in (
        pp.as_words, pp.tokens_html, pp.fit_vocabulary, pp.rank_frequency, pp.vocabulary_growth,
        lambda x: pp.encode(x, {}), lambda x: pp.unseen_share(x, [["a"]], [1]))),
    (lambda: pp.fit_vocabulary(["texts", "not cut"]), "units()"),
    (lambda: pp.rank_frequency(["texts", "not cut"]), "units()"),
])
def test_bad_input_is_one_line(call, words):
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_vocabulary():
    vocabulary = pp.fit_vocabulary([["b", "a"], [], ["b", "c"]])
    assert vocabulary == {"b": 2, "a": 3, "c": 4} and pp.fit_vocabulary([]) == {}
    assert pp.encode([], vocabulary, 2) == [0, 0] and pp.encode(["x", "b"], vocabulary) == [1, 2]
    for size in (3, 4, 5, 99):
        ids = pp.fit_vocabulary([["b", "a"], ["b", "c"]], size).values()
        assert len(ids) <= size - 2 and max(ids) < size


def test_growth_and_unseen_share_equal_the_slow_way():
    rng = np.random.default_rng(0)
    lists = [list(map(str, rng.zipf(1.5, rng.integers(0, 30)))) for _ in range(200)]
    flat = [token for tokens in lists for token in tokens]
    read, different = pp.vocabulary_growth(lists)
    assert different.tolist() == [len(set(flat[:n])) for n in read]
    sizes = [0, 1, 10, 100]
    test = [token for tokens in lists[100:] for token in tokens]
    for n, share in zip(sizes, pp.unseen_share(lists[:100], lists[100:], sizes), strict=True):
        seen = {token for tokens in lists[:n] for token in tokens}
        assert np.isclose(share, np.mean([token not in seen for token in test]))


def test_the_bag_of_words_sees_what_it_saw_before():
    "Spelled words give the classifier the same features as the text itself."
    texts, labels = ["good lamp 水泵", "bad lamp", "good bus", "bad 水"] * 3, [1, 0, 1, 0] * 3
    spelled = [pp.as_words(words) for words in pp.units(texts, "word")]
    margins = [BagOfWordsClassifier(random_state=0).fit(t, labels).decision_function(t)
               for t in (texts, spelled)]
    np.testing.assert_array_equal(*margins)


def test_widget_follows_and_escapes():
    box = pp.step_explorer("<script>NOT</script> bad")
    assert "<script>" not in box.shown.value and "&lt;" in box.shown.value
    assert "NOT" in box.shown.value
    box.ticks["lower"].value = True
    assert "NOT" not in box.shown.value and "not" in box.shown.value
    box.ticks["stop words"].value = True
    assert "not" not in box.shown.value
    box.area.value = ""
    assert "0 units" in box.shown.value


def test_widget_takes_any_text_language_and_unit():
    box = pp.step_explorer()
    language, kind = box.children[1].children
    for tick in box.ticks.values():
        tick.value = True
    for text in ("", "\ud800", "\0\r\n\u202e", "<b>", "路灯又坏了", "\u0130\ufb01" * 300):
        box.area.value = text
        for code in ("en", "zh"):
            language.value = code
            for unit in pp.UNITS:
                kind.value = unit
                cut = pp.units(pp.apply_steps([text], list(pp.STEPS), code), unit)[0]
                assert box.shown.value == pp.tokens_html(cut)


def test_characters_are_no_worse_than_jieba_words(mirror):
    "On validation rows of Chinese hotel reviews: the test rows are for the record."
    corpus = load("chnsenticorp")
    train, valid = corpus.part("train"), corpus.part("valid")
    scores = {}
    for kind in ("word", "jieba"):
        bags = [[pp.as_words(tokens) for tokens in pp.units(part.texts, kind)]
                for part in (train, valid)]
        model = BagOfWordsClassifier(C=0.3, random_state=0).fit(bags[0], train.labels)
        scores[kind] = accuracy(valid.labels, model.predict(bags[1]))
    assert scores["word"] >= scores["jieba"] - 0.005 and scores["word"] > 0.85
