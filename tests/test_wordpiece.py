"What the notebook on pieces cannot show well: every code point, hostile sizes, files, faults."

import itertools
import json
import os
import pickle
import unicodedata
from collections import Counter

import numpy as np
import pytest
from tokenizers import (
    BertWordPieceTokenizer,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from ftnb import wordpiece
from ftnb.core import UserError
from ftnb.data import load
from ftnb.text import encode_lower
from ftnb.wordpiece import BPE, SPECIAL, WordPiece, english_vocabulary, learn_pieces, split_words

os.environ["TOKENIZERS_PARALLELISM"] = "false"
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]


@pytest.fixture(scope="module")
def ours():
    return WordPiece.from_vocab(english_vocabulary())


@pytest.fixture(scope="module")
def theirs():
    return BertWordPieceTokenizer(str(english_vocabulary()), lowercase=True)


def differing(ours, theirs, texts, special=False, threads=1):
    "The texts whose numbers are not the library's; it gets ? for half a surrogate pair."
    clean = [t.encode("utf-8", "replace").decode() for t in texts]
    expected = theirs._tokenizer.encode_batch_fast(clean, add_special_tokens=special)
    ids, first = ours.encode_batch(texts, threads=threads, special=special)
    assert ids.dtype == np.int32 and first.dtype == np.int64 and len(first) == len(texts) + 1
    spans = zip(texts, expected, itertools.pairwise(first.tolist()), strict=True)
    return [ascii(t[:100]) for t, e, (a, b) in spans if e.ids != ids[a:b].tolist()]


def library_words(text, lowercase):
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text))
    return [word for word, _ in split]


# ---------------------------------------------------------------- the same numbers

HOSTILE = ["", " \t\r\n\u2028\u3000", "\x00\x1f\ufffd\u200b\ufeff", "e\u0301\u0327e\u0327\u0301",
           "가각힣 ᄒ\u1161", "\ud800", "a\udc80b", "[MASK]", "a[MASK]b[UNK][SEP][CLS][PAD]",
           "[mask] [MASK", "[[MASK]]", "[MA\u200bSK]", "\u200b[SEP]\u0301x", "x" * 99, "x" * 100,
           "x" * 101, "x" * 511, "x" * 513, "é" * 100, "é" * 101, "水" * 101, "가" * 34, "가" * 33,
           "𠀀𪛖\U00030000\U0002f800\uf900", "ΑΣ ΣΑΣ İı ß ǅ Ⅷ Ⓐ", "1\u302e\u1b44\u302f\u1b44",
           "\U0001d160\U0001d165\U0001d15e\U0001d16d\U0001d165", "🎉👍🏽", "##ing # ##", "a\u00adb",
           "don't!? ... a.b.c", "\u037e\u1fef\u2260", "x" * 100_000, "a " * 1_000, "-" * 1_000]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_hostile_texts(ours, theirs, special, threads):
    assert not differing(ours, theirs, HOSTILE, special, threads)
    assert not differing(ours, theirs, ["".join(HOSTILE), " ".join(HOSTILE[::-1])], special)


def test_cased(theirs):
    cased = BertWordPieceTokenizer(str(english_vocabulary()), lowercase=False)
    own = WordPiece.from_vocab(english_vocabulary(), lowercase=False)
    assert not differing(own, cased, HOSTILE + ["The Pump", "résumé RÉSUMÉ"])


def test_two_thousand_docstrings_and_the_hotline(ours, theirs):
    texts = load("docstrings", limit=2_000).texts + load("hotline", n=2_000).texts
    assert not differing(ours, theirs, texts, threads=2)


@pytest.mark.parametrize("top", [0x80, 0x250, 0x3000, 0x20000, 0x110000])
def test_random_code_points(ours, theirs, top):
    rng = np.random.default_rng(top)
    extra = ["[MASK]", "[SEP]", " ", " ", "the", "##", "ing", "\ud83d"]
    texts = ["".join(chr(c) if rng.random() < 0.7 else extra[c % 8] for c in row if c not in range(
        0xD800, 0xE000)) for row in rng.integers(0, top, (500, 30)).tolist()]
    assert not differing(ours, theirs, texts)


def test_every_code_point_alone_in_a_word_and_after_an_accent(ours, theirs):
    texts = ["\n".join(f"{chr(c)} a{chr(c)}b e\u0301{chr(c)}" for c in POINTS[i : i + 256])
             for i in range(0, 0x20000, 256)]
    assert not differing(ours, theirs, texts)


@pytest.mark.parametrize("lowercase", [True, False])
def test_words_of_every_code_point(lowercase):
    some = POINTS[:0x20000] + POINTS[0x20000::97]
    for i in range(0, len(some), 2**14):
        text = "\n".join(f"q{chr(c)}q" for c in some[i : i + 2**14])
        assert split_words(text, lowercase) == library_words(text, lowercase)


def test_marks_in_any_order(ours, theirs):
    rng = np.random.default_rng(3)
    _, kept, notes = wordpiece._moving()
    marks = [chr(c) for c in POINTS if unicodedata.combining(chr(c))]
    heaps = [sorted(kept), marks, [*map(chr, notes)], list("ab é水가\u200b\u00ad\u034f\uf900[")]
    texts = ["".join(str(rng.choice(heaps[rng.integers(4)])) for _ in range(8)) for _ in range(400)]
    assert not differing(ours, theirs, texts)
    for text in texts:
        assert split_words(text) == library_words(text, True), ascii(text)


def test_ten_megabytes_in_one_text(ours, theirs):
    rng = np.random.default_rng(0)
    words = np.array(["pump", "水", "，", " ", "Wasser ", "é", "\n", "😀", "[MASK]", " the", "in"])
    big = "".join(words[rng.integers(len(words), size=3_200_000)])
    assert len(big.encode()) > 9_500_000
    cut = big.rfind(" the", 0, 200_000)  # the library is slow: it gets a part
    assert not differing(ours, theirs, ["", big[:cut], "end"])
    ids, first = ours.encode_batch(["", big, "end"])
    parts, _ = ours.encode_batch([big[:cut], big[cut:]])
    assert np.array_equal(ids[first[1] : first[2]], parts)


def test_very_many_distinct_words_fill_and_overwrite_the_cache(ours, theirs):
    rng = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, size=n)) for n in rng.integers(1, 19, 20_000)]
    text = " ".join(words + words[::-1])
    assert not differing(ours, theirs, [text, text[::-1]])


def test_words_that_fall_on_the_same_slot_of_the_cache(ours, monkeypatch):
    texts = load("hotline", n=200).texts
    expected = ours.encode_batch(texts)
    monkeypatch.setattr(wordpiece, "_BITS", 1)  # two slots: nearly every look-up meets another word
    assert all(map(np.array_equal, ours.encode_batch(texts), expected))


@pytest.mark.parametrize("seed", range(3))
def test_bytes_that_are_no_utf8_are_dropped(ours, seed):
    raw = np.random.default_rng(seed).integers(0, 256, 20_000).astype(np.uint8)
    marks = ours.number["[UNK]"], -1, -1
    ids, _, disorder = wordpiece._encode(raw, np.array([0, len(raw)]), wordpiece._tables(True),
                                         ours._trie, ours._names, marks, 14)
    text = raw.tobytes().decode("utf-8", "replace")
    if not disorder.any():
        assert np.array_equal(ids, ours.encode_batch([text])[0])


def test_the_output_never_needs_more_room_than_bytes():
    for lowercase in (True, False):
        for c in POINTS:
            new = wordpiece._basic(c, lowercase) if c < 0x30000 else ""
            assert len(new.strip()) <= len(chr(c).encode())


def test_hundred_thousand_real_texts(mirror, ours, theirs):
    "Every labelled set that is quick to read, English and Chinese; at most 150 characters of each."
    texts = load("docstrings").texts
    for name in ("sst2", "banking77", "chnsenticorp", "online_shopping", "tang_poetry", "ag_news"):
        texts = texts + load(name).texts
    texts = [text[:150] for text in texts[:: max(1, len(texts) // 100_000)]][:100_000]
    assert len(texts) > 90_000
    assert not differing(ours, theirs, texts, threads=2)


# ---------------------------------------------------------------- threads, batches, objects


def test_threads_and_batches_change_nothing(ours):
    texts = load("hotline", n=300).texts + ["", "x" * 5_000]
    expected = ours.encode_batch(texts)
    for threads in (2, 3, 16, 1_000):
        assert all(map(np.array_equal, ours.encode_batch(texts, threads=threads), expected))
    alone = [ours.encode_batch([t])[0] for t in texts]
    assert np.array_equal(np.concatenate(alone), expected[0])


def test_nothing_and_a_million_empty_texts(ours):
    for none in ([], ()):
        ids, first = ours.encode_batch(none)
        assert len(ids) == 0 and first.tolist() == [0]
    ids, first = ours.encode_batch([""] * 1_000_000, threads=2)
    assert len(ids) == 0 and len(first) == 1_000_001 and not first.any()
    ids, first = ours.encode_batch(["", ""], special=True)
    assert ids.tolist() == [101, 102] * 2 and first.tolist() == [0, 2, 4]


def test_pickled_and_saved(ours, tmp_path):
    texts = HOSTILE
    ours.save(tmp_path / "vocab.txt")
    assert (tmp_path / "vocab.txt").read_bytes() == english_vocabulary().read_bytes()
    for again in (pickle.loads(pickle.dumps(ours)), WordPiece.from_vocab(tmp_path)):
        assert all(map(np.array_equal, again.encode_batch(texts), ours.encode_batch(texts)))


def test_decode_as_the_library(ours, theirs):
    rng = np.random.default_rng(2)
    rows = [ours.encode_batch([t], special=True)[0].tolist() for t in HOSTILE]
    rows += rng.integers(0, len(ours.pieces), (200, 12)).tolist()
    for row in rows:
        assert ours.decode(row) == theirs.decode(row)
        assert ours.decode(row, skip_special=False) == theirs.decode(row, skip_special_tokens=False)


def test_decode_glues_what_the_library_glues():
    pieces = ["[UNK]", "a", "##b", "...", "?!", "n't", "'s", "'re", "'m", "'ve", "'", "not", "#"]
    own, peer = WordPiece(pieces), Tokenizer(models.WordPiece(
        {piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    peer.decoder = decoders.WordPiece()
    for ids in itertools.product(range(1, len(pieces)), repeat=3):
        assert own.decode(ids) == peer.decode(ids, skip_special_tokens=False), ids


# ---------------------------------------------------------------- learning


def library_bpe(counts, size, **options):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, **options)
    made.train_from_iterator((" ".join([w] * n) for w, n in counts.items()), trainer)
    merges = json.loads(made.to_str())["model"]["merges"]
    return sorted(made.get_vocab(), key=made.get_vocab().get), [tuple(m) for m in merges]


@pytest.mark.parametrize("seed", range(20))
def test_merges_equal_the_library_where_everything_ties(seed):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 8, 15).tolist()
    words = ["".join(rng.choice(list("abcd"), size=n)) for n in lengths]
    counts = Counter({word: int(rng.integers(1, 3)) for word in words})
    assert learn_pieces(counts, 40) == library_bpe(counts, 40)


def test_merges_equal_the_library_on_documentation():
    counts = wordpiece.count_words(load("docstrings", limit=1_500).texts)
    pieces, merges = learn_pieces(counts, 3_000)
    assert (pieces, merges) == library_bpe(counts, 3_000)
    assert learn_pieces(counts, 10**6, min_frequency=50) == library_bpe(
        counts, 10**6, min_frequency=50)


def test_learnt_vocabulary_has_no_unknown_on_its_own_texts(tmp_path):
    texts = load("hotline", n=400).texts
    own = WordPiece.train(texts, 900)
    assert own.pieces[:5] == list(SPECIAL) and len(set(own.pieces)) == len(own.pieces) == 900
    assert not (own.encode_batch(texts)[0] == own.number["[UNK]"]).any()
    own.save(tmp_path / "v.txt")
    again = BertWordPieceTokenizer(str(tmp_path / "v.txt"))
    assert not differing(own, again, texts + HOSTILE)
    assert WordPiece.train(texts, 900).pieces == own.pieces


def test_learning_stops_when_nothing_is_left_to_merge():
    pieces, merges = learn_pieces({"abab": 2, "c": 1}, 100)
    assert pieces == ["a", "b", "c", "ab", "abab"] and merges == [("a", "b"), ("ab", "ab")]
    assert learn_pieces({}, 10) == ([], []) and learn_pieces({"a": 1}, 10) == (["a"], [])


def test_bpe_round_trip_and_unknowns():
    texts = load("hotline", n=200).texts
    bpe = BPE.train(texts, 700)
    for text in texts[:50]:
        assert bpe.decode(bpe.encode(text)) == " ".join(split_words(text))
        assert 0 not in bpe.encode(text)
    assert bpe.encode("\u16a0")[0] == 0 and bpe.encode("") == []


# ---------------------------------------------------------------- faults


def test_bad_input_is_one_line_with_the_remedy(ours, tmp_path):
    (tmp_path / "no_unk.txt").write_text("a\nb\n")
    (tmp_path / "latin.txt").write_bytes("[UNK]\né\n".encode("latin-1"))
    faults = [
        lambda: WordPiece.from_vocab(tmp_path / "absent.txt"),
        lambda: WordPiece.from_vocab(tmp_path / "no_unk.txt"),
        lambda: WordPiece.from_vocab(tmp_path / "latin.txt"),
        lambda: ours.encode_batch("one string"),
        lambda: ours.encode_batch(""),
        lambda: ours.encode_batch(["a", None]),
        lambda: ours.encode_batch(["a"], threads=0),
        lambda: WordPiece(["[UNK]", "a"]).encode_batch(["a"], special=True),
        lambda: WordPiece.train([], 100),
        lambda: WordPiece.train(["a"], 1.5),
        lambda: BPE.train(["a"], 0),
        lambda: ours.encode_batch(["a"], threads="2"),
        lambda: ours.encode_batch(["a"], threads=1.5),
        *(lambda x=x: ours.decode(x) for x in (None, "", [-1], [10**6], [1.5], ["a"], [[1, 2]])),
        *(lambda x=x: BPE.train(["a b"], 12).decode(x) for x in (None, [-1], [99])),
        *(lambda x=x: BPE.train(["a b"], 12).encode(x) for x in (None, 3, b"a", ["a"])),
        *(lambda x=x: WordPiece(x) for x in (None, 3, "[UNK]", ["[UNK]", 3])),
        *(lambda x=x: WordPiece.from_vocab(x) for x in (None, 3, b"x", "a\0b", tmp_path)),
        *(lambda x=x: WordPiece.train(["a"], x) for x in (None, "", "50", [], float("nan"), -1)),
        *(lambda x=x: wordpiece.count_words(x) for x in (None, "abc", [], [1])),
        *(lambda x=x: wordpiece.learn_pieces(x, 20) for x in (
            None, "ab", ["ab"], {"": 1}, {3: 1}, {"ab": "x"}, {"ab": -1}, {"ab": 0.5})),
        lambda: wordpiece.learn_pieces({"ab": 1}, "20"),
        *(lambda x=x: wordpiece.split_words(x) for x in (None, 3, b"a", ["a"])),
    ]
    for fault in faults:
        with pytest.raises(UserError) as raised:
            fault()
        assert "\n" not in str(raised.value)


def test_a_small_vocabulary_with_repeated_and_empty_lines(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[UNK]\na\n\n##b \na\n[MASK]\n", "utf-8")
    own, peer = WordPiece.from_vocab(path), Tokenizer(models.WordPiece.from_file(str(path)))
    assert own.number["a"] == 4 == peer.token_to_id("a") and own.pieces[3] == "##b"
    assert own.encode_batch(["ab a[MASK]c"])[0].tolist() == [4, 3, 4, 5, 0]


def test_encode_lower_keeps_its_promise_to_the_kernel():
    buffer, offsets = encode_lower(["A\ud800", "é"], lowercase=False)
    assert bytes(buffer) == b"A?\xc3\xa9" and offsets.tolist() == [0, 2, 4]
