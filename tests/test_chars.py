"""The character model: hostile texts, saved files, scikit-learn's contract."""

import time
import unicodedata

import numpy as np
import pytest
import torch
from estimator_checks import CHECKS, sklearn_checks
from saved_nets import LABELS, SPOILED, TEXTS, check_mixed_files, check_saving, check_spoiled_files

from ftnb.chars import (
    ALPHABET,
    POOL,
    CharClassifier,
    CharNet,
    Sequences,
    ZhangNet,
    _table_gradient,
    _table_gradient_by_torch,
    choose_symbols,
    encode,
    filter_windows,
    lookup,
    quantize,
    zhang2015,
)
from ftnb.core import UserError
from ftnb.data import load
from ftnb.study import nested_order


def tiny(unit="char", **more):
    settings = dict(dim=8, width=8, epochs=2, batch_size=4, random_state=0, threads=1) | more
    return CharClassifier(unit, **settings)


@pytest.mark.parametrize("unit", ["char", "byte"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_contract(check, unit):
    check(lambda: tiny(unit), TEXTS, LABELS)


@pytest.mark.parametrize("name, check", sklearn_checks(tiny()), ids=lambda x: str(x)[:60])
def test_scikit_learns_own(name, check):
    check()


@pytest.mark.parametrize("unit", ["char", "byte"])
@pytest.mark.parametrize("layers", [0, 1, 3])
def test_learns_and_survives_saving(tmp_path, unit, layers):
    model = tiny(unit, epochs=40, lr=0.02, layers=layers, dropout=0, noise=0).fit(TEXTS, LABELS)
    check_saving(model, tmp_path)


@pytest.mark.parametrize("labels", [[3] * 6 + [-1] * 6, [True] * 6 + [False] * 6, LABELS])
def test_kinds_of_labels_survive_saving(tmp_path, labels):
    model = tiny().fit(TEXTS, labels)
    model.save_pretrained(tmp_path)
    again = CharClassifier.from_pretrained(tmp_path)
    assert again.classes_.dtype.kind == model.classes_.dtype.kind
    assert again.predict(TEXTS).tolist() == model.predict(TEXTS).tolist()


def test_settings_from_numpy_survive_saving(tmp_path):
    model = tiny(dim=np.int64(8), lr=np.float32(0.004), random_state=np.int64(3)).fit(TEXTS, LABELS)
    model.save_pretrained(tmp_path)
    again = CharClassifier.from_pretrained(tmp_path)
    assert again.get_params() == model.get_params() and again.random_state == 3
    assert np.array_equal(again.predict_proba(TEXTS), model.predict_proba(TEXTS))


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    check_mixed_files(tiny(), tiny(random_state=1), tmp_path)


@pytest.mark.parametrize("spoil", SPOILED)
def test_spoiled_files_give_one_line(tmp_path, spoil):
    check_spoiled_files(tiny(), tmp_path, spoil)


def test_an_unfitted_model_is_not_saved(tmp_path):
    with pytest.raises(ValueError):
        tiny().save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("bad", [
    {"unit": "word"}, {"kernel": 0}, {"dim": 0}, {"epochs": 0}, {"n_symbols": 70_000},
    {"max_length": 0}, {"layers": -1}, {"dropout": 1}, {"noise": -0.1}, {"validation": 1},
    {"lr": 0}, {"batch_size": 0}, {"device": "abacus"}, {"dim": "8"}, {"width": 2.5},
    {"kernel": None}, {"n_symbols": "9"}, {"max_length": "3"}, {"layers": None}, {"epochs": "3"},
    {"dropout": "0.5"}, {"noise": None}, {"lr": "x"}, {"patience": 0}, {"threads": "2"},
])  # fmt: skip
def test_settings_that_cannot_work(bad):
    with pytest.raises(UserError) as e:
        tiny(**bad).fit(TEXTS, LABELS)
    assert next(iter(bad)) in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("unit", ["char", "byte"])
def test_ten_megabytes_cost_no_more_than_their_beginning(unit):
    model = tiny(unit).fit(TEXTS, LABELS)
    huge = "water 水 " * 1_250_000
    began = time.process_time()
    model.predict_proba([huge])
    model.fit([*TEXTS, huge], [*LABELS, "water"])
    assert time.process_time() - began < 5
    assert np.allclose(model.predict_proba([huge]), model.predict_proba([huge[:900]]))


@pytest.mark.parametrize("unit", ["char", "byte"])
def test_odd_texts(unit):
    odd = ["", " ", "\n\t", "a", "😀", "👩‍👩‍👧", "\ud800", "\x00", "İ" * 400, "ﷺ", "e\u0301" * 9]
    model = tiny(unit).fit(TEXTS + odd, LABELS + ["water"] * len(odd))
    together = model.predict_proba(odd + ["x" * 9999])
    alone = np.vstack([model.predict_proba([text]) for text in odd])
    np.testing.assert_allclose(together[:-1], alone, atol=1e-6)
    assert np.allclose(together.sum(1), 1)


def test_training_does_not_stop_on_the_first_plateau():
    "A thousand calls: for some passes the loss hardly moves, and then it falls."
    calls = load("hotline").part("train")
    rows = nested_order(calls.labels, np.random.default_rng(0))[:1000]
    texts = [calls.texts[i] for i in rows]
    model = CharClassifier("byte", random_state=0, threads=1).fit(texts, calls.labels[rows])
    losses = [v["loss"] for v in model.history_.validations]
    assert min(losses[:3]) > 2 and min(losses) < 1.8, "ln 12 = 2.5 is guessing"
    assert len(losses) > 12 and not min(losses[:4]) < losses[0] - 0.4


def test_texts_without_any_known_character():
    model = tiny().fit(["a", "b", "c", "d"], [0, 0, 1, 1])
    assert len(model.symbols_) == 0 and np.isfinite(model.predict_proba(["a", "z"])).all()


def test_encoding_keeps_what_fits():
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(0, 0xD7FF, rng.integers(0, 30)))) for _ in range(200)]
    symbols = choose_symbols(texts + texts, 65_000, lowercase=False)
    for kept in (1, 7, 30):
        flat, lengths = encode(texts, symbols, kept, lowercase=False)
        back = "".join(chr(symbols[s - 2]) for s in flat)
        assert back == "".join(t[:kept] for t in texts)
        assert lengths.tolist() == [min(kept, len(t)) for t in texts]
        flat, lengths = encode(texts, None, kept, lowercase=False)
        assert (flat - 1).astype(np.uint8).tobytes() == b"".join(t.encode()[:kept] for t in texts)


def test_lower_casing_that_lengthens_a_text_is_cut_again():
    assert len("İ".lower()) == 2
    assert encode(["İ" * 9], choose_symbols(["İİ"], 9), 9)[1].tolist() == [9]
    model = tiny().fit(TEXTS, LABELS)
    assert np.array_equal(model.predict_proba(["WATER"]), model.predict_proba(["water"]))
    cased = tiny(lowercase=False).fit(TEXTS, LABELS)
    assert not np.array_equal(cased.predict_proba(["WATER"]), cased.predict_proba(["water"]))


def test_rare_characters_are_unknown_and_the_frequent_ones_kept():
    symbols = choose_symbols(["aaabbc", "zzzz"], 2)
    assert "".join(map(chr, symbols)) == "za"
    assert unicodedata.name(chr(choose_symbols(["水水"], 9)[0])).startswith("CJK")


@pytest.mark.parametrize("kernel", [1, 2, 5, 8])
def test_lookup_gradient_by_finite_differences(kernel):
    x = torch.randint(4, (2, 6 + kernel - 1), dtype=torch.int32)
    table = torch.randn(kernel * 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: lookup(x, t, kernel), table)


@pytest.mark.parametrize("kernel", [1, 2, 3, 7, 8])
def test_each_text_alone_whatever_the_kernel(kernel):
    torch.manual_seed(0)
    net = CharNet(257, 2, 6, 6, kernel, 2, 0.1, 0.1).eval()
    data = Sequences(*encode(["", "ab", "abcdefg", "x" * 50], None), np.zeros(4), kernel)
    together = net(*data.batch(np.arange(4))[:2])
    alone = torch.cat([net(*data.batch(np.array([i]))[:2]) for i in range(4)])
    torch.testing.assert_close(together, alone)
    assert (data.batch(np.array([1]))[0].shape[1] - kernel + 1) % POOL == 0


def test_early_stopping_holds_rows_back_class_by_class():
    texts, labels = TEXTS * 20, LABELS * 20
    model = tiny(epochs=8, lr=0.02, validation=0.2, patience=2, batch_size=32).fit(texts, labels)
    said = model.history_.validations
    assert said and {"loss", "accuracy", "epoch"} <= set(said[0])
    assert model.history_.best == min(said, key=lambda v: v["loss"])
    assert not tiny(validation=0.2).fit(TEXTS, LABELS).history_.validations, "too few to hold back"


def test_the_callers_threads_and_random_state_are_left_alone():
    torch.set_num_threads(2)
    before = torch.get_rng_state()
    model = tiny(threads=1).fit(TEXTS, LABELS)
    model.predict(TEXTS)
    assert torch.get_num_threads() == 2 and torch.equal(torch.get_rng_state(), before)


def test_ten_thousand_classes():
    texts = [f"text number {i}" for i in range(10_000)]
    model = tiny(epochs=1, batch_size=500, dim=4, width=4).fit(texts, np.arange(10_000))
    assert model.predict_proba(texts[:3]).shape == (3, 10_000)


def test_windows_are_pieces_of_the_texts():
    for unit in ("char", "byte"):
        model = tiny(unit, kernel=3).fit(TEXTS, LABELS)
        found = filter_windows(model, ["water", "lamp"], which=2, n=4)
        assert len(found) == 4 and found == sorted(found, reverse=True)
        assert all(w.strip("·?") in "water lamp" for _, w in found)


@pytest.mark.parametrize("unit", ["char", "byte"])
def test_windows_are_the_highest_of_all_distinct_ones(unit):
    "Repeated windows, a space beside `_`, bytes that do not decode: counted by their symbols."
    texts = ["ababababababab", "a a_a a_a", "水灯水灯水", "_ _ _", "", "lamp lamp lamp"]
    model = tiny(unit, kernel=2).fit(TEXTS + texts * 2, LABELS + ["water"] * 12)
    data = Sequences(*encode(texts, model.symbols_), np.zeros(6, np.int64), 2)
    table, values = model.net_.table.detach()[:, 3:4], {}
    for i, n in enumerate(data.lengths):
        x = data.batch(np.array([i]))[0]
        for at, value in enumerate(lookup(x, table, 2)[0, : max(n, 1), 0].tolist()):
            values[tuple(x[0, at : at + 2].tolist())] = value
    right = sorted(values.values(), reverse=True)
    for n in (1, 5, 14, len(right), len(right) + 9):
        found = filter_windows(model, texts, which=3, n=n)
        np.testing.assert_allclose([v for v, _ in found], right[:n], rtol=1e-6)
        assert filter_windows(model, texts[::-1], which=3, n=n) == found
        assert len(filter_windows(model, texts[:1], which=3, n=n)) == min(n, 3), "ab, ba, b·"
    assert len({w for _, w in filter_windows(model, texts, 3, 99)}) < len(right), "some look alike"


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("B, L, S, D, k", [(1, 1, 1, 1, 1), (2, 9, 5, 3, 4), (7, 200, 71, 33, 7),
                                           (0, 5, 4, 3, 2), (8, 300, 9, 256, 7)])  # fmt: skip
def test_the_compiled_gradient_is_torchs_to_the_bit(kind, B, L, S, D, k):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(S, (B, L + k - 1), generator=g, dtype=torch.int32)
    grad = torch.randn(B, L, D, generator=g).to(kind)
    found = _table_gradient(x, grad, (S, k, D))
    assert found.dtype == kind
    turned = grad.transpose(1, 2).contiguous().transpose(1, 2)  # another order in memory
    assert torch.equal(_table_gradient(x, turned, (S, k, D)), found)
    if B:
        assert torch.equal(found, _table_gradient_by_torch(x, grad, (S, k, D)))


def test_a_symbol_outside_the_table_is_refused():
    with pytest.raises((IndexError, RuntimeError)):
        lookup(torch.full((1, 8), 99, dtype=torch.int32), torch.zeros(2 * 5, 3), 2)


def test_half_precision_takes_the_other_way():
    x = torch.randint(5, (2, 9), dtype=torch.int32)
    table = torch.randn(2 * 5, 4).requires_grad_()
    lookup(x, table, 2).sum().backward()
    half = table.detach().to(torch.float16).requires_grad_()
    lookup(x, half, 2).sum().backward()
    assert torch.equal(half.grad.float(), table.grad), "counts: exact in both"


def test_quantised_texts():
    odd = ["", "ABC", "水", "a\nb", "\ud800x", "İ" * 2000, "x" * 10**7, "a-b", "hello " * 400]
    x = quantize(odd)
    assert x.shape == (len(odd), 1014) and x.dtype == torch.int32
    assert 0 <= x.min() and x.max() <= len(ALPHABET)
    assert not x[0].any() and not x[2].any() and x[1, :4].tolist() == [3, 2, 1, 0]
    assert [ALPHABET[i - 1] for i in x[7, :3].tolist()] == ["b", "-", "a"]
    forward = quantize(odd, backward=False)
    for back, front, text in zip(x, forward, odd, strict=True):
        n = min(1014, len(text.lower()))
        assert back[:n].tolist() == front[:n].flip(0).tolist() and not front[n:].any()


class OneHotZhangNet(ZhangNet):
    "The first layer as it is usually written."

    def first(self, x):
        wide = torch.zeros(len(x), len(ALPHABET) + 1, x.shape[1], dtype=self.head.weight.dtype)
        h = self.convs[0](wide.scatter_(1, x.long()[:, None], 1.0)[:, 1:])
        return torch.nn.functional.max_pool1d(h.relu(), POOL)


@pytest.mark.parametrize("length", [123, 150, 1014])
def test_the_network_is_its_one_hot_twin(length):
    torch.manual_seed(0)
    kinds = (ZhangNet, OneHotZhangNet)
    ours, twin = (kind(4, 16, 24, length, 0.3).double().eval() for kind in kinds)
    for layer in ours.convs:
        torch.nn.init.normal_(layer.bias)
    twin.load_state_dict(ours.state_dict())
    x = torch.randint(0, 71, (3, length), dtype=torch.int32)
    x[2] = 0
    torch.testing.assert_close(ours(x), twin(x))
    assert (ours(x).std(0) > 0).all(), "the texts are told apart, so the comparison says something"
    for net in (ours, twin):
        net(x).square().sum().backward()
    for (name, p), q in zip(ours.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@pytest.mark.parametrize("size, width, dense", [("small", 256, 1024), ("large", 1024, 2048)])
def test_the_sizes_of_the_paper(size, width, dense):
    with torch.device("meta"):
        net = zhang2015(size, n_classes=14)
    assert [c.kernel_size[0] for c in net.convs] == [7, 7, 3, 3, 3, 3]
    assert [c.in_channels for c in net.convs] == [70] + [width] * 5
    assert [d.in_features for d in net.dense] == [(1014 - 96) // 27 * width, dense]
    assert (net.head.in_features, net.head.out_features) == (dense, 14)


def test_sizes_that_cannot_be():
    with pytest.raises(UserError, match="small"):
        zhang2015("medium")
    with pytest.raises(UserError, match="length"):
        zhang2015("small", length=122)
    assert zhang2015("small", length=123)(quantize(["a", ""], 123)).shape == (2, 4)


@pytest.mark.parametrize("call", [
    *(lambda f=f, x=x: f(x) for f in (encode, quantize, lambda x: choose_symbols(x, 9))
      for x in (None, 5, "abc", [1], [None], ["a", 2])),
    lambda: encode(["a"], None, 0),
    lambda: encode(["a"], None, "5"),
    lambda: quantize(["a"], -1),
    lambda: choose_symbols(["aa"], -1),
    lambda: zhang2015("small", n_classes=0),
    lambda: zhang2015("small", n_classes="4"),
    lambda: zhang2015("small", length="1014"),
    lambda: lookup(torch.zeros(2, 3, dtype=torch.int32), torch.ones(14, 3), 7),
    lambda: lookup(torch.zeros(2, 9, dtype=torch.int32), torch.ones(13, 3), 7),
    lambda: lookup(torch.zeros(9, dtype=torch.int32), torch.ones(14, 3), 7),
    lambda: lookup(torch.zeros(2, 9, dtype=torch.int32), torch.ones(14, 3), 0),
    lambda: filter_windows(tiny().fit(TEXTS, LABELS), ["a"], 8),
    lambda: filter_windows(tiny().fit(TEXTS, LABELS), ["a"], -1),
    lambda: filter_windows(tiny().fit(TEXTS, LABELS), ["a"], "0"),
])  # fmt: skip
def test_bad_input_of_functions_is_one_line(call):
    with pytest.raises(UserError) as e:
        call()
    assert "\n" not in str(e.value)


def test_no_texts_are_no_symbols():
    assert len(encode([])[0]) == 0 and quantize([], 9).shape == (0, 9)
    assert len(choose_symbols([], 9)) == 0
