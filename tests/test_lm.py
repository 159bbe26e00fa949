"""Language models: units, n-grams, the LSTM, ways of writing."""

import itertools
import re
import time
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ftnb.core import UserError
from ftnb.data import load
from ftnb.lm import (
    END,
    SMOOTHINGS,
    UNITS,
    CachedStep,
    CharLSTM,
    NGramModel,
    Units,
    Windows,
    beam_search,
    bits_per_byte,
    count_bytes,
    cut,
    discounts,
    draw,
    end_to_end,
    greedy,
    network_log2_probabilities,
    next_symbol_loss,
    nucleus,
    perplexity,
    sample,
    temperature,
    top_k,
)
from ftnb.train import fit

# ---------------------------------------------------------------- units and measures


def hostile_texts():
    rng = np.random.default_rng(0)
    code_points = rng.integers(1, 0x11000, (200, 30))
    mixed = ["".join(map(chr, row)) for row in code_points]
    return mixed + ["", " ", "\n\n\t ", "_", "a_b  c", "\ud800", "e\u0301", "🙂" * 99, "\x00",
                    "水水", " 水", "don't stop.", "۳٤", "ﬁ", "ab" * 5000, "\u3000x"]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("known", [(), hostile_texts()[::2]])
def test_nothing_is_lost(unit, known):
    units = Units.learn(known, unit, min_count=1)
    for text in hostile_texts():
        ids = units.encode(text)
        assert ids[0] == ids[-1] == END and END not in ids[1:-1] and max(ids) < len(units)
        assert units.decode(ids) == text.encode("utf-8", "replace").decode()
        if unit != "byte":
            assert "".join(cut(text, unit)) == text
    if unit == "byte":
        assert len(units) == 257 and count_bytes(["é\ud800"]) == len(units.encode("é\ud800")) - 2


def test_units_learn_what_is_frequent():
    units = Units.learn(["a cat, a cat", "a dog"], "word", min_count=2)
    assert units.pieces == [" cat", "a"] or sorted(units.pieces) == [" cat", "a"]
    assert [units.decode([i]) for i in units.encode("a cow")] == ["", "a", " ", "c", "o", "w", ""]
    assert Units.learn([], "char").pieces == [] and Units("word", ["x"]).encode("x")[1] == END + 1
    assert Units("byte").decode([0xE6, 0xB0]) == "\ufffd", "half a character"
    with pytest.raises(UserError, match="unit must be"):
        Units("letter")


def test_ten_megabytes_are_cut_in_seconds():
    text, began = "water 水, leaks\n" * 600_000, time.process_time()
    units = Units.learn([text], "word")
    assert len(units.encode(text)) == 5 * 600_000 + 2
    assert time.process_time() - began < 30


def test_measures_agree():
    log2p = np.log2(np.random.default_rng(0).uniform(0.1, 1, 50))
    assert np.isclose(bits_per_byte(log2p, 25), 2 * np.log2(perplexity(log2p)))
    assert perplexity(np.zeros(3)) == 1 and bits_per_byte(np.zeros(0), 7) == 0


# ---------------------------------------------------------------- n-grams


def reference(sequences, order, V, smoothing, k, D):
    "p(w | h) by the formulas, from tables of tuples."
    tables = [dict() for _ in range(order + 1)]  # by length: n-gram -> count
    lefts = [dict() for _ in range(order + 1)]  # by length: n-gram -> its left neighbours
    for j, s in enumerate(sequences):
        for end, m in itertools.product(range(1, len(s)), range(1, order + 1)):
            if end - m + 1 >= 0:
                gram = tuple(s[end - m + 1 : end + 1])
                tables[m][gram] = tables[m].get(gram, 0) + 1
                left = s[end - m] if end - m >= 0 else f"begin {j}"
                lefts[m].setdefault(gram, set()).add(left)
    use = list(tables)
    if smoothing == "kneser_ney":
        use[:order] = [{g: len(v) for g, v in table.items()} for table in lefts[:order]]

    def D_of(m, count):
        made = discounts(np.array(list(use[m].values()))) if D is None else [0, D, D, D]
        return made[min(count, 3)]

    def p(w, h):
        m = len(h) + 1
        counts = {v: use[m].get((*h, v), 0) for v in range(V)}
        total, shorter = sum(counts.values()), lambda v: p(v, h[1:]) if h else 1 / V
        if smoothing == "add_k":
            return (counts[w] + k) / (total + k * V)
        if not total:
            return shorter(w)
        free = sum(D_of(m, c) for c in counts.values()) / total
        own = (counts[w] - D_of(m, counts[w])) / total
        if smoothing == "kneser_ney":
            return own + free * shorter(w)
        if all(counts.values()):
            return counts[w] / total
        return own if counts[w] else free * shorter(w) / sum(
            shorter(v) for v, c in counts.items() if not c)

    return p


SEQUENCES = [np.random.default_rng(i).integers(0, 4, n).tolist()
             for i, n in enumerate((1, 2, 25, 9, 3))]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("settings", [
    dict(smoothing="add_k", k=0.2), dict(smoothing="backoff", discount=0.4),
    dict(smoothing="backoff"), dict(smoothing="kneser_ney", discount=0.9),
    dict(smoothing="kneser_ney")], ids=str)  # fmt: skip
def test_probabilities_are_those_of_the_formulas(order, settings):
    V, model = 5, NGramModel(order, **settings).fit(SEQUENCES, 5)
    p = reference(SEQUENCES, order, V, model.smoothing, model.k, model.discount)
    for n in range(order):
        for h in itertools.product(range(V), repeat=n):
            got = model.logits(np.array([h], np.int64).reshape(1, n)).exp().numpy()[0]
            np.testing.assert_allclose(got.sum(), 1)
            np.testing.assert_allclose(got, [p(w, h) for w in range(V)], rtol=1e-9)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("sequences, V", [
    ([[0]], 1), ([[0] * 40], 1), ([[0], [1]], 2), ([[0, 1]], 900), ([[3, 3, 3]] * 5, 4),
    ([list(range(300))], 300), ([[0, 1, 0, 0, 1, 1, 0, 0]], 2)], ids=lambda v: str(v)[:12])
def test_odd_texts(smoothing, sequences, V):
    model = NGramModel(5, smoothing).fit(sequences, V)
    log2p = model.log2_probabilities([[*s, V - 1] for s in sequences])
    assert np.isfinite(log2p).all() and (log2p <= 1e-9).all()
    for length in (0, 1, 7):
        rows = np.random.default_rng(0).integers(0, V, (3, length))
        np.testing.assert_allclose(model.logits(rows).exp().sum(1), 1)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_sequence_and_step_say_the_same(smoothing):
    rng = np.random.default_rng(1)
    model = NGramModel(4, smoothing).fit([rng.integers(0, 9, 500)], 9)
    for s in (rng.integers(0, 9, 30), rng.integers(0, 9, 2)):
        steps = [model.logits([s[:t]])[0, s[t]].item() / np.log(2) for t in range(1, len(s))]
        np.testing.assert_allclose(model.log2_probabilities([s]), steps)
    two = model.log2_probabilities([s, s[:1], s])
    np.testing.assert_allclose(two, np.tile(model.log2_probabilities([s]), 2))


def test_sequences_do_not_touch():
    one, other = [0, 1, 2, 3], [0, 4, 4, 4]
    a = NGramModel(3).fit([one, other], 5)
    b = NGramModel(3).fit([other, one], 5)
    np.testing.assert_allclose(a.log2_probabilities([one, other]),
                               np.concatenate([b.log2_probabilities([s]) for s in (one, other)]))


def test_discounts():
    counts = np.repeat([1, 2, 3, 4, 9], [40, 12, 6, 4, 3])
    y = 40 / (40 + 24)
    expected = [0, 1 - 2 * y * 12 / 40, 2 - 3 * y * 6 / 12, 3 - 4 * y * 4 / 6]
    np.testing.assert_allclose(discounts(counts), expected)
    assert discounts(np.array([1, 1, 2])).tolist() == [0, 0.5, 1, 1.5], "too few to tell"
    assert (discounts(np.repeat([1, 2, 3, 4], [1, 9, 90, 900]))[1:] >= 0.1).all()


def test_many_symbols_and_a_long_context_are_quick():
    rng, began = np.random.default_rng(0), time.process_time()
    s = rng.zipf(1.2, 200_000) % 100_000
    model = NGramModel(6).fit([s], 100_000)
    assert np.isfinite(model.log2_probabilities([s[:50_000]])).all()
    np.testing.assert_allclose(model.logits([s[:9]]).exp().sum(), 1)
    assert time.process_time() - began < 20


def tiny(*sequences, V=3):
    return NGramModel(2).fit(list(sequences), V)


@pytest.mark.parametrize("make, said", [
    (lambda: NGramModel(0), "order"), (lambda: NGramModel(2, "katz"), "no smoothing"),
    (lambda: NGramModel(2, "add_k", k=0), "k must"), (lambda: NGramModel(2, discount=1), "between"),
    (lambda: tiny(), "no sequences"), (lambda: tiny([0], []), "empty"),
    (lambda: tiny([0, 3]), "symbol 3"), (lambda: tiny([-1]), "symbol -1"),
    (lambda: tiny([0, 1]).log2_probabilities([[0, 3]]), "symbol 3"),
    (lambda: tiny([0, 1]).logits([[0, 4]]), "symbol 4"),
    (lambda: tiny([0, 1]).logits([0, 1]), "rows"),
])  # fmt: skip
def test_bad_input_of_ngrams(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_shakespeare(mirror):
    corpus = load("tiny_shakespeare")
    train, held = corpus.part("train").texts, corpus.part("valid").texts
    found = {}
    for unit, order, smoothing in (("word", 3, "backoff"), ("word", 3, "kneser_ney"),
                                   ("char", 5, "kneser_ney")):  # fmt: skip
        units = Units.learn(train, unit)
        a, b = ([units.encode(t) for t in part] for part in (train, held))
        model = NGramModel(order, smoothing).fit(a, len(units))
        found[unit, smoothing] = model.bits_per_byte(b, count_bytes(held))
    assert found["char", "kneser_ney"] < 2.35
    assert found["word", "kneser_ney"] < 2.55 and found["word", "backoff"] < 2.7


def shared_lines(train, texts):  # lines of a Tang poem; those of the training part
    cut_lines = partial(re.split, "[\\n，。？！；、]")
    known = {line for text in train for line in cut_lines(text)}
    return [[line in known for line in cut_lines(text) if len(line) > 4] for text in texts]


def test_what_notebook_20_says_of_its_public_texts(mirror):
    for part in ("valid", "test"):
        words = " ".join(load("wikitext2", part).texts).split()
        assert words.count("<unk>") > len(words) / 20 and "@-@" in words, "more than one in twenty"
    corpus = load("tang_poetry")
    train = corpus.part("train").texts
    ends = np.cumsum([count_bytes([text]) for text in train])
    train = train[: int((ends <= 600_000).sum())]  # as in the kept record
    for part in ("valid", "test"):
        found = shared_lines(train, corpus.part(part).texts)
        share = np.mean(np.concatenate(found))
        assert 0.04 < share < 0.07, f"about one line in twenty, not {share}"
        twins = [poem for poem in found if poem and np.mean(poem) >= 0.5]
        assert len(twins) < 50 and sum(map(sum, twins)) > 0.9 * sum(map(sum, found))


# ---------------------------------------------------------------- the LSTM


def net_of(V=7, layers=1, **settings):
    torch.manual_seed(0)
    return CharLSTM(V, 5, 6, layers, **settings).eval()


@pytest.mark.parametrize("n, length, warm", [(11, 3, 2), (2, 1, 0), (100, 7, 30), (64, 63, 1)])
def test_windows_predict_each_symbol_once(n, length, warm):
    stream = np.arange(1000, 1000 + n)
    data = Windows(stream, length, warm)
    before, x = data.batch(np.arange(len(data)))
    assert x[:, 1:].flatten().tolist() == stream[1 : 1 + len(data) * length].tolist()
    assert n - 1 - len(data) * length < length and before.shape == (len(data), warm)
    for b, row in zip(before, x, strict=True):
        assert torch.equal(torch.cat([b, row])[b.tolist().count(END) :],
                           torch.arange(max(1000, row[0] - warm), row[-1] + 1))


def test_windows_refuse_short_streams():
    for bad in (([1, 2, 3], 3, 0), ([1, 2], 0, 0), ([1, 2, 3], 1, -1), ([], 1, 0)):
        with pytest.raises(UserError, match="make no window"):
            Windows(*bad)


def test_end_to_end():
    assert end_to_end([[9, 1, 2, 9], [9, 9], [9, 3, 9]]).tolist() == [9, 1, 2, 9, 9, 3, 9]


@pytest.mark.parametrize("layers", [1, 2])
def test_slopes_stop_where_the_window_begins(layers):
    net, ids = net_of(layers=layers), torch.randint(0, 7, (3, 20))
    next_symbol_loss(net, (ids[:, :8], ids[:, 8:])).backward()
    got = {k: p.grad.clone() for k, p in net.named_parameters()}
    net.zero_grad()
    h, c = net.rnn(net.embedding(ids[:, :8]))[1]
    logits = net.head(net.rnn(net.embedding(ids[:, 8:-1]), (h.detach(), c.detach()))[0])
    F.cross_entropy(logits.transpose(1, 2), ids[:, 9:]).backward()
    for name, p in net.named_parameters():
        torch.testing.assert_close(got[name], p.grad)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_text_costs_the_same_however_it_is_read(layers):
    net = net_of(layers=layers)
    sequences = [torch.randint(0, 7, (n,)).tolist() for n in (5, 1, 40, 2, 17)]
    whole = net.log2_probabilities(sequences)
    assert whole.shape == (sum(map(len, sequences)) - 5,)
    for way in (dict(batch_size=1), dict(stretch=1), dict(batch_size=2, stretch=7)):
        again = network_log2_probabilities(net, sequences, **way)
        np.testing.assert_allclose(again, whole, atol=1e-5)
    with torch.no_grad():
        x = torch.tensor(sequences[2])
        p = net(x[None, :-1])[0][0].softmax(1)[range(39), x[1:]]
    np.testing.assert_allclose(2 ** whole[4:43], p, rtol=1e-4)
    assert np.isclose(net.bits_per_byte(sequences, 60), -whole.sum() / 60)
    assert network_log2_probabilities(net, [[0], [3]]).shape == (0,)


def test_it_learns_a_pattern_that_needs_memory():
    rng = np.random.default_rng(0)  # a symbol, two others, the first again
    rows = np.c_[a := rng.integers(0, 4, 5000), rng.integers(4, 8, (5000, 2)), a]
    torch.manual_seed(0)
    net = CharLSTM(8, 8, 24)
    fit(net, Windows(rows.ravel(), 32), next_symbol_loss, epochs=6, batch_size=16, lr=0.02, seed=0)
    cost = -np.append(0, net.log2_probabilities([rows[:500].ravel()])).reshape(-1, 4).mean(0)
    assert cost[3] < 0.5 < 1.8 < cost[1:3].min(), "remembered; the others drawn evenly from four"


def test_a_forget_gate_starts_open():
    net = net_of(layers=2)
    for layer in range(2):
        both = sum(getattr(net.rnn, f"bias_{k}_l{layer}") for k in ("ih", "hh"))
        assert both.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12


# ---------------------------------------------------------------- writing


def softmax(logits):
    return logits.softmax(-1)


def test_filters_keep_the_right_symbols():
    logits = torch.tensor([[0.1, 0.4, 0.4, 0.1], [0.25, 0.25, 0.25, 0.25]]).double().log()
    assert softmax(top_k(logits, 1)).tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]], "exactly one"
    assert torch.allclose(softmax(top_k(logits, 3))[0], torch.tensor([1, 4, 4, 0]).double() / 9)
    assert (nucleus(logits, 0.5) > -torch.inf).sum(1).tolist() == [2, 2], "0.4 + 0.4; two quarters"
    assert (nucleus(logits, 1e-9) > -torch.inf).sum(1).tolist() == [1, 1], "never none"
    assert torch.equal(nucleus(logits, 1.0), logits) and torch.equal(top_k(logits, 4), logits)
    cold = softmax(temperature(logits, 0.01))[0]
    torch.testing.assert_close(cold, torch.tensor([0, 0.5, 0.5, 0]).double())
    assert torch.allclose(softmax(temperature(logits, 1e6)), torch.full((2, 4), 0.25).double())


def test_filters_agree_with_each_other_on_any_shape_and_precision():
    logits = torch.randn(4, 50_000, generator=torch.Generator().manual_seed(0))
    for shifted in (logits, logits - 1000, logits.double() + 50):
        assert torch.equal(greedy(shifted), top_k(shifted, 1).argmax(-1))
        kept = nucleus(shifted, 0.5) > -torch.inf
        n = int(kept[0].sum())
        assert torch.equal(kept[0], (top_k(shifted, n) > -torch.inf)[0])
        assert softmax(shifted.double())[0][kept[0]].sum() >= 0.5
        assert softmax(shifted.double())[0].sort(descending=True)[0][: n - 1].sum() < 0.5
    already = top_k(logits, 3)
    assert (nucleus(already, 0.999999) > -torch.inf).sum(1).max() <= 3, "-inf stays out"


@pytest.mark.parametrize("call", [
    lambda x: temperature(x, 0), lambda x: temperature(x, -1), lambda x: temperature(x, np.nan),
    lambda x: top_k(x, 0), lambda x: nucleus(x, 0), lambda x: nucleus(x, 1.1),
    lambda x: sample(lambda ids: x, [0], 3), lambda x: sample(lambda ids: x, [[[0]]], 3),
    lambda x: beam_search(lambda ids: x, [[0], [1]], 3, 2),
    lambda x: beam_search(lambda ids: x, [[0]], 3, 0)])  # fmt: skip
def test_bad_input_of_writing(call):
    with pytest.raises(UserError):
        call(torch.zeros(1, 4))


def test_draws_follow_the_generator_and_the_probabilities():
    p = torch.tensor([0.0, 0.2, 0.5, 0.3]).log().expand(20_000, 4)
    first, second = (draw(p, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    share = torch.bincount(first, minlength=4) / len(first)
    torch.testing.assert_close(share, torch.tensor([0, 0.2, 0.5, 0.3]), atol=0.02, rtol=0)


def chain(table):  # next symbol by the last one alone
    table = torch.tensor(table, dtype=torch.float64).log()
    return lambda ids: table[ids[:, -1]]


def test_a_row_that_has_stopped_stays_stopped():
    step = chain([[1.0, 0, 0], [0, 0, 1], [1, 0, 0]])  # 1 -> 2 -> 0, which ends
    assert sample(step, [[1], [2]], 9, stop=0).tolist() == [[1, 2, 0], [2, 0, 0]]
    assert sample(step, [[1]], 4).tolist() == [[1, 2, 0, 0, 0]]
    assert sample(step, [[1]], 0).tolist() == [[1]]


def test_rows_of_a_batch_do_not_influence_each_other():
    model = NGramModel(3).fit([np.random.default_rng(0).integers(0, 6, 300)], 6)
    starts = [[0, 1], [2, 3], [4, 5]]
    together = sample(model.logits, starts, 20)
    for start, row in zip(starts, together, strict=True):
        assert torch.equal(sample(model.logits, [start], 20)[0], row)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_cached_step_writes_the_same(layers):
    net = net_of(layers=layers)
    plain = torch.no_grad()(lambda ids: net(ids)[0][:, -1])
    starts = torch.randint(0, 7, (4, 3))
    for filters in ([], [partial(top_k, k=3), partial(temperature, t=0.7)]):
        a, b = (sample(step, starts, 25, filters, torch.Generator().manual_seed(1))
                for step in (plain, CachedStep(net)))  # fmt: skip
        assert torch.equal(a, b)
    for stop in (None, 2):
        a, b = (beam_search(step, starts[:1], 12, 5, stop) for step in (plain, CachedStep(net)))
        assert torch.equal(a[0], b[0])
        torch.testing.assert_close(a[1], b[1], atol=1e-5, rtol=1e-5)


def test_a_cached_step_needs_evaluation_mode():
    with pytest.raises(UserError, match="eval"):
        CachedStep(net_of().train())


def scored(step, start, n, stop=None):
    "Log probabilities of all texts, none going on behind its end; and their lengths."
    V, found = step(torch.tensor([start])).shape[1], {}
    for rest in itertools.product(range(V), repeat=n):
        text, total, length = list(start), 0.0, 0
        for symbol in rest:
            if stop is not None and stop in text[len(start) :]:
                total += 0.0 if symbol == stop else -np.inf
            else:
                total += step(torch.tensor([text])).log_softmax(1)[0, symbol].item()
                length += 1
            text.append(symbol)
        if total > -np.inf:
            found[tuple(text)] = total, length
    return found


@pytest.mark.parametrize("stop", [None, 0])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_the_best_texts(seed, stop):
    rng = np.random.default_rng(seed)
    model = NGramModel(3).fit([rng.integers(0, 3, 40)], 3)
    texts = scored(model.logits, [1], 4, stop)
    ids, log_p = beam_search(model.logits, [[1]], 4, 81, stop)
    ranked = sorted(texts.values(), reverse=True)
    np.testing.assert_allclose(log_p, [score for score, _ in ranked], atol=1e-9)
    assert {tuple(row) for row in ids.tolist()} == set(texts)
    for row, score in zip(ids.tolist(), log_p.tolist(), strict=True):
        assert np.isclose(texts[tuple(row)][0], score)
    narrow = beam_search(model.logits, [[1]], 4, 2, stop)[1]
    assert len(narrow) == 2 and narrow[0] <= log_p[0] + 1e-9


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, 2.0])
def test_a_length_penalty_ranks_by_the_length_written(penalty):
    model = NGramModel(2).fit([[1, 2, 1, 0, 1, 2, 2, 0, 1, 1, 0]], 3)
    texts = scored(model.logits, [1], 4, stop=0)
    ids, _ = beam_search(model.logits, [[1]], 4, 81, 0, penalty)
    value = [texts[tuple(row)][0] / texts[tuple(row)][1] ** penalty for row in ids.tolist()]
    assert np.isclose(value[0], max(s / n**penalty for s, n in texts.values()))
    assert np.all(np.diff(value) <= 1e-9)


def test_a_beam_of_one_is_greedy():
    model = NGramModel(3).fit([np.random.default_rng(4).integers(0, 5, 200)], 5)
    for start in ([0], [3, 2]):
        found = beam_search(model.logits, [start], 15, 1)[0]
        assert torch.equal(found, sample(model.logits, [start], 15))
