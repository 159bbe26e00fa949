"What the notebook on text cannot show well: hostile sizes, read-only folders, types, determinism."

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ftnb import core, text
from ftnb.core import UserError


def spans_as_words(raw: bytes):
    buffer = np.frombuffer(raw, np.uint8)
    starts, ends, _ = text.word_spans(buffer, np.array([0, len(raw)]))
    return [raw[a:b].decode() for a, b in zip(starts, ends, strict=True)]


SINGLE = ["", " \n\t", "。，！", "\ud800", "\udc80a", "😀👍🏽", "e\u0301t\u0301", "\x00a\x00"]
SINGLE += ["İ", "ß", "ΑΣ", "々〇〆ー", "ｱｲｳ", "가나"]


@pytest.mark.parametrize("one", SINGLE)
def test_kernel_equals_regex_on_single_cases(one):
    assert text.tokenize_many([one]) == [text.tokenize(one)]


def test_kernel_equals_regex_on_ten_megabytes():
    rng = np.random.default_rng(0)
    words = np.array(["pump", "水", "，", " ", "Wasserwerk", "é", "\n", "😀"])
    big = "".join(words[rng.integers(len(words), size=3_000_000)])
    assert len(big.encode()) > 9_500_000
    assert text.tokenize_many(["", big, "end"]) == [[], text.tokenize(big), ["end"]]


def test_million_empty_texts():
    starts, ends, first = text.word_spans(*text.encode_lower([""] * 1_000_000))
    assert len(starts) == len(ends) == 0 and not first.any()


@pytest.mark.parametrize("seed", range(5))
def test_random_code_points(seed):
    rng = np.random.default_rng(seed)
    planes = np.array([0x80, 0x800, 0x10000, 0x30000, 0x110000])
    top = planes[rng.integers(len(planes), size=20_000)]
    one = "".join(map(chr, (rng.random(20_000) * top).astype(int)))
    assert text.tokenize_many([one]) == [text.tokenize(one)]


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_are_never_misread(seed):
    raw = np.random.default_rng(seed).integers(0, 256, 50_000).astype(np.uint8).tobytes()
    assert spans_as_words(raw) == text._token.findall(raw.decode("utf-8", "replace"))


@pytest.mark.parametrize("encoding", ["gb18030", "latin-1", "utf-16-le"])
def test_other_encodings_read_as_utf8_do_not_crash(encoding):
    raw = "Die Straße ist überschwemmt".encode(encoding)
    assert spans_as_words(raw) == text._token.findall(raw.decode("utf-8", "replace"))


def test_every_character_cut_short():
    for ch in ("é", "水", "😀"):
        for k in range(1, len(ch.encode())):
            assert spans_as_words(b"ab" + ch.encode()[:k]) == ["ab"]
            assert spans_as_words(ch.encode()[:k] + b"ab") == ["ab"]


ALONE = ("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH")
ALONE += ("HIRAGANA LETTER", "KATAKANA LETTER")


def test_ranges_cover_all_han_and_kana_letters():
    table = text.character_classes()
    for c in range(0x110000):
        name = unicodedata.name(chr(c), "")
        if name.startswith(ALONE):
            assert table[c] == 2, name
        if name.startswith(("HANGUL SYLLABLE", "LATIN", "CYRILLIC")) and chr(c).isalnum():
            assert table[c] == 1, name


def test_lower_casing_can_be_switched_off():
    buffer, offsets = text.encode_lower(["Ab É"], lowercase=False)
    assert bytes(buffer).decode() == "Ab É" and offsets.tolist() == [0, 5]


@pytest.mark.parametrize(
    "X, part",
    [
        ("a text", "wrap it"),
        (b"bytes", "wrap it"),
        (7, "not a int"),
        (None, "NoneType"),
        (["a", b"b"], "text 1"),
        (["a", None], "text 1 is None"),
        ([["a"], ["b"]], "text 0"),
        (np.array([["a"], ["b"]]), "one dimension"),
        (np.array("a"), "one dimension"),
        (pd.DataFrame({"a": ["x"]}), "one dimension"),
        (pd.Series(["x", None]), "text 1"),
        (pd.Series(["x", pd.NA], dtype="string"), "text 1"),
        (np.array([1.5, 2.5]), "text 0 is 1.5"),
        ([], "no texts"),
        (np.array([], object), "no texts"),
        ({"a", "b"}, "set"),
        (iter(["a"]), "iterator"),
    ],
)
def test_bad_texts_get_one_line(X, part):
    with pytest.raises(UserError) as caught:
        core.check_texts(X)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "y, part",
    [
        ([1, 1], "two or more classes"),
        (["x", "x"], "two or more classes"),
        ([1], "2 texts but 1 labels"),
        ([1, 2, 3], "2 texts but 3 labels"),
        (np.array([[1], [2]]), "one dimension"),
        (pd.DataFrame({"y": [1, 2]}), "one dimension"),
        ([1, None], "label 1"),
        (["a", None], "label 1"),
        (["a", float("nan")], "label 1 is NaN"),
        (pd.Series([1.0, np.nan]), "label 1 is NaN"),
        (pd.Series(["a", pd.NA], dtype="string"), "label 1"),
        ([0, "1"], "mix"),
        ([0.25, 0.5], "continuous"),
        ([float("inf"), 1.0], "continuous"),
        ([[0], [1]], "label 0"),
        ("ab", "not a str"),
        (None, "y"),
    ],
)
def test_bad_labels_get_one_line(y, part):
    with pytest.raises(UserError) as caught:
        core.check_texts_and_labels(["a", "b"], y)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_label_kinds_survive():
    for y, kind in (([1, 2], "i"), ([True, False], "b"), (["a", "b"], "U"), ([1.0, 2.0], "f")):
        assert core.check_texts_and_labels(["a", "b"], y)[1].dtype.kind == kind
    categories = pd.Series(["a", "b"], dtype="category", index=[7, 3])
    assert core.check_texts_and_labels(["x", "y"], categories)[1].tolist() == ["a", "b"]


TEXTS = ["The pump LEAKS again!", "水泵又漏水了，GPT说。", "", "  ", "😀"]
TEXTS += ["насос ы", "a 1 ß \ud800"]


@pytest.mark.parametrize("damage", [text.typos, text.nonce_words])
def test_damage_is_repeatable_and_leaves_the_rest_alone(damage):
    before = list(TEXTS)
    one = damage(TEXTS, 0.7, np.random.default_rng(1))
    assert one == damage(TEXTS, 0.7, np.random.default_rng(1))
    assert one != damage(TEXTS, 0.7, np.random.default_rng(2))
    assert TEXTS == before and len(one) == len(TEXTS)
    assert damage(TEXTS, 0.0, np.random.default_rng(1)) == TEXTS
    assert one[2:5] == ["", "  ", "😀"]
    keep = [text._token.sub("", t.lower()) for t in TEXTS]
    if damage is text.nonce_words:
        assert [text._token.sub("", t.lower()) for t in one] == keep


def test_damage_refuses_a_silly_rate():
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="rate"):
            text.typos(TEXTS, rate, np.random.default_rng(0))


def test_every_word_is_changed_at_rate_one():
    latin = ["pump leaks aa a 7 ßß"] * 50
    damaged = text.typos(latin, 1.0, np.random.default_rng(0))
    for old, new in zip(latin, damaged, strict=True):
        assert all(a != b and b for a, b in zip(old.split(), new.split(), strict=True))


def test_nonce_words_keep_case_and_are_new():
    known = set(text.tokenize(" ".join(TEXTS)))
    new = text.nonce_words(["The PUMP leaks"], 1.0, np.random.default_rng(0))[0].split()
    assert new[0].istitle() and new[1].isupper() and new[2].islower()
    assert not known & set(text.tokenize(" ".join(new)))


def test_works_where_numba_cannot_cache(tmp_path):
    "A copy of the package in a read-only folder, with no home folder to fall back to."
    package = tmp_path / "ftnb"
    package.mkdir()
    for name in ("__init__", "core", "text"):
        source = Path(text.__file__).with_name(f"{name}.py")
        (package / f"{name}.py").write_text(source.read_text())
    program = (
        "import numba.core.caching as c\n"
        "for locator in c.CacheImpl._locator_classes:\n"
        "    locator.ensure_cache_path = lambda self: (_ for _ in ()).throw(OSError('read-only'))\n"
        "from ftnb import text\n"
        "print(text.tokenize_many(['a 水b']))"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA")}
    env |= {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout.strip() == "[['a', '水', 'b']]"
