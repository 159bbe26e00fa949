"What the notebook on characters cannot show well: hostile bytes, hostile sizes, the real texts."

import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import regex

from ftnb import unicode
from ftnb.core import UserError

DECODE = ["strict", "ignore", "replace", "backslashreplace", "surrogateescape"]
SPECIAL = list(bytes.fromhex("002F417F808F909FA0BFC0C1C2DFE0E1ECEDEEEFF0F1F3F4F5F7F8FCFEFF"))
HOSTILE = [b"", b"\x00", b"\x80", b"\xc0\x80", b"\xc0\xaf", b"\xe0\x80\xaf", b"\xf0\x80\x80\xaf"]
HOSTILE += [b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xed\xa0\x80\xed\xb0\x80", b"\xf4\x90\x80\x80"]
HOSTILE += [b"\xf4\x8f\xbf\xbf", b"\xf5\x80\x80\x80", b"\xfe\xff", b"\xef\xbb\xbf", b"\xf0\x9f\x98"]
HOSTILE += [b"\xe6", b"\xe6\xb0", b"\xe6\xb0\x41", b"\xf0\x90\x41", b"\xe0\x9f\xbf", b"\xe0\xa0"]
HOSTILE += [b"\xff" * 300, b"\x80" * 300, b"\xf0\x9f" * 300, b"\xe6\xb0\xb4" * 300 + b"\xe6"]


def outcome(function, *arguments):
    "The answer, or everything that the exception says."
    try:
        return function(*arguments)
    except UnicodeError as e:
        return type(e), e.encoding, e.object, e.start, e.end, e.reason


def special_bytes(rng):
    return bytes(rng.choice(SPECIAL, rng.integers(12)).tolist())


@pytest.mark.parametrize("errors", DECODE)
def test_decode_equals_python_on_hostile_bytes(errors):
    rng = np.random.default_rng(len(errors))
    raws = HOSTILE + [special_bytes(rng) for _ in range(20_000)]
    raws += [rng.bytes(int(rng.integers(40))) for _ in range(500)]
    for raw in raws:
        theirs = outcome(raw.decode, "utf-8", errors)
        assert outcome(unicode.utf8_decode, raw, errors) == theirs, raw


def test_decode_equals_python_on_every_start_of_three_bytes():
    for first in range(0xC0, 0x100):
        for second in range(0x70, 0x100):
            for rest in (b"", b"\x80", b"\xbf\x80", b"a", b"\x80\x80\x80"):
                raw = bytes([first, second]) + rest
                theirs = outcome(raw.decode, "utf-8", "strict")
                assert outcome(unicode.utf8_decode, raw) == theirs, raw
                assert unicode.utf8_decode(raw, "replace") == raw.decode("utf-8", "replace"), raw


def test_decode_takes_bytearray_and_memoryview():
    raw = "水é".encode()
    assert unicode.utf8_decode(bytearray(raw)) == unicode.utf8_decode(memoryview(raw)) == "水é"
    with pytest.raises(UnicodeDecodeError):
        unicode.utf8_decode(memoryview(raw[:-1]))


@pytest.mark.parametrize("errors", DECODE)
def test_encode_equals_python_with_lone_surrogates(errors):
    rng = np.random.default_rng(5)
    edges = [0, 65, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDC7F, 0xDC80,
             0xDCFF, 0xDD00, 0xDFFF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]
    for _ in range(10_000):
        text = "".join(map(chr, rng.choice(edges, rng.integers(10)).tolist()))
        theirs = outcome(text.encode, "utf-8", errors)
        assert outcome(unicode.utf8_encode, text, errors) == theirs, ascii(text)


def test_any_bytes_survive_surrogateescape():
    rng = np.random.default_rng(6)
    for raw in HOSTILE + [special_bytes(rng) for _ in range(5_000)]:
        text = unicode.utf8_decode(raw, "surrogateescape")
        assert unicode.utf8_encode(text, "surrogateescape") == raw


def test_code_points_there_and_back():
    for code in [*range(0x11000), *range(0x11000, 0x110000, 31)]:
        if code not in unicode.SURROGATES:
            raw = unicode.utf8_bytes(code)
            assert raw == chr(code).encode() and unicode.utf8_next(raw, 0) == (code, len(raw), "")


def test_the_compiled_decoder_agrees():
    "text.decode_at takes one byte at a time where nothing valid begins; both find the same."
    from ftnb.text import decode_at

    rng = np.random.default_rng(7)
    for raw in HOSTILE[1:] + [special_bytes(rng) + b"a" for _ in range(5_000)]:
        buffer = np.frombuffer(raw, np.uint8)
        for i in range(len(raw)):
            code, width = decode_at(buffer, i, len(raw))
            ours, n, _ = unicode.utf8_next(raw, i)
            assert code == ours and (width == n if ours >= 0 else width == 1), raw


def test_utf16():
    rng = np.random.default_rng(8)
    for _ in range(2_000):
        text = "".join(map(chr, rng.integers(0x110000, size=8).tolist()))
        for order, codec in (("little", "utf-16-le"), ("big", "utf-16-be")):
            theirs = outcome(text.encode, codec)
            ours = outcome(unicode.utf16_encode, text, order)
            assert ours == theirs if isinstance(theirs, bytes) else ours[3] == theirs[3]
    assert unicode.surrogate_pair(0x10FFFF) == (0xDBFF, 0xDFFF)


def test_byte_roles_cover_every_byte():
    rng = np.random.default_rng(9)
    for raw in HOSTILE + [special_bytes(rng) for _ in range(3_000)]:
        roles = unicode.byte_roles(raw)
        assert len(roles) == len(raw)
        good = bytes(b for b, role in zip(raw, roles, strict=True) if role != "wrong")
        assert good.decode() == raw.decode("utf-8", "ignore")


def test_hangul():
    rng = np.random.default_rng(10)
    codes = [0x10FF, 0x1100, 0x1112, 0x1113, 0x1160, 0x1161, 0x1175, 0x1176, 0x11A7, 0x11A8,
             0x11C2, 0x11C3, 0xABFF, 0xAC00, 0xAC01, 0xAC1C, 0xD7A3, 0xD7A4, 0x41]
    for _ in range(20_000):
        text = "".join(map(chr, rng.choice(codes, rng.integers(7)).tolist()))
        assert unicode.compose_hangul(text) == unicodedata.normalize("NFC", text)
        assert unicode.decompose_hangul(text) == unicodedata.normalize("NFD", text)


@pytest.mark.parametrize("seed", range(3))
def test_graphemes_equal_the_library(seed):
    rng = np.random.default_rng(seed)
    pool = [*range(0x300, 0x308), 0x200C, 0x200D, 0xFE0F, *range(0x1F1E6, 0x1F1EA), 0x1F469,
            0x1F3FD, 0x2764, 0x0D, 0x0A, 0x1B, 0x61, 0x0915, 0x0937, 0x094D, 0x093C, 0x093F,
            0x0903, 0x1100, 0x1161, 0x11A8, 0xAC00, 0xAC01, 0x0600, 0x110BD, 0x1CF5, 0x11A3A,
            0x1B44, 0x1B13, 0x0E33, 0xA9C0, 0xD800, 0xE0020, 0xE007F, 0x10FFFF]
    for _ in range(5_000):
        codes = rng.choice(pool, rng.integers(15)) if rng.random() < 0.8 else \
            rng.integers(0x110000, size=10)
        text = "".join(map(chr, codes.tolist()))
        ours = unicode.graphemes(text)
        assert ours == regex.findall(r"\X", text) and "".join(ours) == text, ascii(text)


@pytest.mark.parametrize("unit", ["\u0301", "\u094d", "\u094d\u0301", "\u200d", "\u0600", "\u1100",
                                  "🇩", "😀\u200d", "क\u094d", "\r", "a"])
def test_graphemes_of_long_texts(unit):
    "A quarter of a million units; an expression that tried every way to cut would not end."
    text = "\u0915" + unit * 250_000
    assert "".join(unicode.graphemes(text)) == text


def test_fold():
    assert unicode.fold("Iİıi", turkish=True) == "ıiıi"
    assert unicode.fold("ẞ") == unicode.fold("ß") == "ss"
    assert unicode.fold("I\u0307", turkish=True) == "i", "a dot that follows counts as well"
    assert unicode.fold("") == ""


def test_fold_joins_the_cases_of_every_code_point():
    "All but the dotless i, whose capital is the common I; once more changes nothing."
    apart = set()
    for c in map(chr, range(0x110000)):
        forms = {c, c.upper(), c.lower(), c.title(), c.swapcase(), c.casefold()}
        folded = set(map(unicode.fold, forms))
        apart |= {c} if len(folded) > 1 else set()
        assert folded == set(map(unicode.fold, folded)), ascii(c)
    assert apart == {"ı"}


ODD = ["", "\ud800", "\udce6a", "\x00", "<script>&\"'", "a" * 10_000, "\u0301", "\r\n"]


@pytest.mark.parametrize("text", ODD)
def test_describe_text_is_safe(text):
    told = unicode.describe_text(text)
    assert "<script" not in told and told.count("<tr>") == min(len(text), 60) + 1
    assert told.count("<table>") == told.count("</table>") == 1
    assert told.encode().decode() == told, "the page can be written"


def test_explorer_follows_what_is_typed():
    explorer = unicode.text_explorer("a")
    explorer.children[0].value = "水"
    assert "U+6C34" in explorer.children[1].value


def test_what_is_not_shown_is_counted():
    assert "440 more code points" in unicode.describe_text("a" * 500)
    assert "more code points" not in unicode.describe_text("a" * 60)


@pytest.mark.parametrize("text", ["", "\ud800", "<script>", "\0\r\n\u202e", "e\u0301" * 200])
def test_explorer_takes_what_is_pasted(text):
    box = unicode.text_explorer("a")
    box.children[0].value = text
    assert box.children[1].value == unicode.describe_text(text)
    assert "<script>" not in box.children[1].value


def test_main_script():
    assert unicode.main_script("Καλημέρα ok") == "GREEK"
    assert unicode.main_script("12 !") == unicode.main_script("") == ""
    assert unicode.main_script("水水 a") == "CJK"


@pytest.mark.parametrize("call", [
    lambda: unicode.utf8_bytes(0xD800),
    lambda: unicode.utf8_bytes(-1),
    lambda: unicode.utf8_bytes(0x110000),
    lambda: unicode.utf8_decode(b"", "xmlcharrefreplace"),
    lambda: unicode.utf8_encode("a", "surrogatepass"),
    lambda: unicode.surrogate_pair(0xFFFF),
    lambda: unicode.surrogate_pair(0x110000),
    *(lambda f=f, x=x: f(x) for x in (None, 3, b"a", ["a"], {}) for f in (
        unicode.utf8_encode, unicode.utf16_encode, unicode.decompose_hangul,
        unicode.compose_hangul, unicode.graphemes, unicode.fold, unicode.describe_text,
        unicode.encoded_sizes, unicode.main_script, unicode.text_explorer)),
    *(lambda f=f, x=x: f(x) for x in (None, 3, "a", [97], {}) for f in (
        unicode.utf8_decode, unicode.byte_roles)),
    *(lambda f=f, x=x: f(x) for x in (None, 3.5, "a", []) for f in (
        unicode.utf8_bytes, unicode.surrogate_pair)),
    lambda: unicode.utf8_next("a", 0),
    lambda: unicode.utf8_next(b"a", 1),
    lambda: unicode.utf8_next(b"a", -1),
    lambda: unicode.utf8_decode(b"", ["strict"]),
    lambda: unicode.utf16_encode("a", "middle"),
])
def test_refusals_are_one_line(call):
    with pytest.raises(UserError) as told:
        call()
    assert "\n" not in str(told.value)


def test_import_is_light():
    "No widgets, no torch before somebody asks."
    code = "import sys, ftnb.unicode; print('ipywidgets' in sys.modules, 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


def test_the_declaration_of_human_rights(mirror):
    "On 30 of the languages: both directions, clusters, and the figures that the notebook tells."
    from ftnb.data import load

    corpus = load("udhr2")
    texts = dict(zip(corpus.extra["code"], corpus.texts, strict=True))
    for code in [*list(texts)[::13], "hin", "tam", "kor", "cmn_hans", "mya", "khm"]:
        text = texts[code]
        raw = text.encode()
        assert unicode.utf8_encode(text) == raw and unicode.utf8_decode(raw) == text
        assert unicode.graphemes(text) == regex.findall(r"\X", text)
        assert unicode.compose_hangul(unicode.decompose_hangul(text)) == text
    per = {}
    for code in ("eng", "cmn_hans", "hin", "rus"):
        sizes = unicode.encoded_sizes(" ".join(texts[code].split()))
        per[code] = {k: n / sizes["code points"] for k, n in sizes.items()}
    assert per["eng"]["UTF-8"] < 1.01 and 2.7 < per["cmn_hans"]["UTF-8"] < 3
    assert per["cmn_hans"]["GB18030"] < 2 < per["hin"]["UTF-8"] < per["hin"]["GB18030"]
    assert unicode.main_script(texts["rus"]) == "CYRILLIC"


def test_the_kept_record_is_of_the_declaration(mirror):
    "The kept figures are those of the set as it is."
    from ftnb.data import load
    from ftnb.runs import measured

    kept, corpus = measured("09_unicode.cpu"), load("udhr2")
    assert kept["data"] == {"udhr2": corpus.digest} and kept["parameters"]["corpus"] == "udhr2"
    texts = dict(zip(corpus.extra["code"], corpus.texts, strict=True))
    for code in ("eng", "cmn_hans", "tha"):
        text = " ".join(texts[code].split())
        sizes = list(unicode.encoded_sizes(text).values())
        assert list(map(int, kept["metrics"]["lengths"][code].split()[:6])) == sizes
