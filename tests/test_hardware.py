"What the notebook on hardware cannot show well: hostile shapes and values, sizes, refusals."

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ftnb import hardware
from ftnb.bert import BertConfig
from ftnb.core import UserError

PRODUCTS = [hardware.matmul_serial, hardware.matmul_vectorised, hardware.matmul_blocked]
PRODUCTS += [lambda a, b, t=t: hardware.matmul_threads(a, b, t) for t in (1, 2, 7)]


def config(dropout=0.1, **other):
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "intermediate_size": 80, "max_position_embeddings": 40, "hidden_dropout_prob": dropout,
             "attention_probs_dropout_prob": dropout}
    return BertConfig(**sizes | other)


def loss(model, ids, mask=None, autocast=None):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast == "bf16"):
        return F.cross_entropy(model(ids, mask), torch.zeros(len(ids), dtype=torch.long))


@pytest.mark.parametrize("multiply", PRODUCTS)
def test_products_equal_blas(multiply):
    "Random shapes around the sizes of the panels; float64, lists and strided views are taken too."
    rng = np.random.default_rng(1)
    shapes = [(m, k, n) for m, k, n in rng.integers(0, 9, (60, 3))]
    shapes += [(3, 63, 1025), (2, 64, 1024), (5, 129, 2050), (1, 200, 1), (65, 1, 65)]
    for m, k, n in shapes:
        a, b = rng.standard_normal((m, 2 * k))[:, ::2], rng.standard_normal((n, k)).T
        bound = (k + 2) * 2.0**-23 * (np.abs(a) @ np.abs(b)) + 1e-30
        got = multiply(a, b)
        assert got.dtype == np.float32 and got.shape == (m, n)
        assert (np.abs(got - a @ b) <= bound).all(), (m, k, n)
    assert multiply([[1, 2]], [[3], [4]]).tolist() == [[11]]


@pytest.mark.parametrize("multiply", PRODUCTS)
def test_products_with_values_that_are_not_finite(multiply):
    a = np.array([[np.inf, 1.0], [np.nan, 0.0], [0.0, 3e38]], np.float32)
    b = np.array([[1.0, -1.0], [10.0, 10.0]], np.float32)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(multiply(a, b), a @ b)


@pytest.mark.parametrize("multiply", PRODUCTS)
@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((3,), (3, 2)), ((2, 3), (3,)),
                                    ((1, 2, 3), (3, 1))])
def test_products_that_do_not_fit(multiply, shapes):
    with pytest.raises(UserError, match="inner lengths"):
        multiply(*(np.ones(shape, np.float32) for shape in shapes))


def test_row_shares_cover_each_row_once_and_pass_errors_on():
    for rows in (0, 1, 5, 64):
        for threads in (1, 2, 3, 9):
            seen = []
            hardware.in_row_shares(lambda i, j, s=seen: s.extend(range(i, j)), rows, threads)
            assert sorted(seen) == list(range(rows))
    with pytest.raises(ZeroDivisionError):
        hardware.in_row_shares(lambda i, j: 1 / 0, 4, 2)
    with pytest.raises(UserError):
        hardware.in_row_shares(print, 4, 0)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e3, 3e37])
@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (7, 1), (33, 129)])
def test_rows_equal_torch(shape, scale):
    x = (np.random.default_rng(2).standard_normal(shape) * scale).astype(np.float32)
    out, tensor = np.full_like(x, 9), torch.from_numpy(x)
    hardware.softmax_rows(x, out)
    np.testing.assert_allclose(out, F.softmax(tensor, -1), 2e-5, 1e-7)
    hardware.layer_norm_rows(x, 1e-5, out)
    exact = F.layer_norm(tensor.double(), shape[1:])  # torch overflows in float32 at 3e37
    np.testing.assert_allclose(out, exact, 1e-4, 1e-5)


def test_sum_of_rows_equals_embedding_bag():
    rng = np.random.default_rng(3)
    table = rng.standard_normal((50, 12), np.float32)
    for shape in ((0, 3), (4, 0), (9, 1), (30, 20)):
        ids, out = rng.integers(0, 50, shape), np.zeros((shape[0], 12), np.float32)
        hardware.sum_of_rows(table, ids, out)
        np.testing.assert_allclose(out, table[ids].sum(1), 1e-4, 1e-5)


def test_roofline_has_its_edge_where_the_ceilings_meet():
    edge = 120e9 / 30e9
    assert hardware.attainable(edge, 120e9, 30e9) == 120e9
    assert hardware.attainable(edge / 2, 120e9, 30e9) == 60e9
    assert hardware.product_intensity(10**6, 10**6, 10**6) == pytest.approx(10**6 / 6)


def test_ceilings_are_positive_and_say_what_they_are_of():
    found = hardware.ceilings(threads=1, seconds=0.01)
    assert all(v > 0 and math.isfinite(v) for v in dataclasses.astuple(found)[:6])
    assert (found.device, found.threads) == ("cpu", 1)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("size", [(1, 1), (3, 7), (5, 40)])
@pytest.mark.parametrize("shape", [{}, {"num_hidden_layers": 0}, {"num_attention_heads": 1},
                                   {"hidden_act": "relu"}, {"hidden_act": "gelu_new"}])
def test_activations_to_the_byte(dropout, size, shape):
    c = config(dropout, **shape)
    model, ids = hardware.FirstTokenClassifier(c, 3).train(), torch.ones(size, dtype=torch.long)
    for autocast in (None, "bf16"):
        for mask in (None, torch.ones(size, dtype=torch.bool)):
            told = hardware.operations(c, *size, autocast=autocast, masked=mask is not None,
                                       n_classes=3)
            counted = hardware.saved_bytes(model, lambda m=mask, a=autocast: loss(model, ids, m, a))
            assert counted == sum(o.saved for o in told)
    assert sum(o.weights for o in told) == sum(p.numel() for p in model.parameters())


def test_one_kind_of_dropout_alone():
    for kind in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        c = config(0.0, **{kind: 0.2})
        model, told = hardware.FirstTokenClassifier(c).train(), hardware.operations(c, 3, 7)
        counted = hardware.saved_bytes(model, lambda m=model: loss(m, torch.ones(3, 7).long()))
        assert counted == sum(o.saved for o in told)


def test_evaluation_without_gradients_keeps_nothing():
    model = hardware.FirstTokenClassifier(config())
    with torch.no_grad():
        assert hardware.saved_bytes(model, lambda: model(torch.ones(2, 5, dtype=torch.long))) == 0


def test_flop_by_torchs_own_counter():
    from torch.utils.flop_counter import FlopCounterMode

    c = config(0.1)
    model, ids = hardware.FirstTokenClassifier(c).train(), torch.ones(4, 9, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        loss(model, ids).backward()
    told = hardware.estimate(c, 4, 9).flop
    assert counter.get_total_flops() == told


def test_parts_of_a_batch():
    ids, labels = torch.randint(0, 300, (7, 6)), torch.arange(7) % 2
    model = hardware.FirstTokenClassifier(config(0.0))
    grads = []
    for parts in (1, 2, 3, 7, 9):
        model.zero_grad()
        hardware.accumulate_gradients(model, ids, labels, parts)
        grads.append([p.grad for p in model.parameters()])
    for other in grads[1:]:
        for g, h in zip(grads[0], other, strict=True):
            torch.testing.assert_close(g, h, rtol=1e-3, atol=1e-6)


def test_checkpointing_gives_the_same_gradients_and_weights_keep_their_names():
    model, ids = hardware.FirstTokenClassifier(config(0.1)).train(), torch.ones(3, 5).long()
    names, grads = list(model.state_dict()), []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(4)
        loss(model, ids).backward()
        grads.append([p.grad.clone() for p in model.parameters()])
        hardware.checkpoint_layers(model.bert)
    assert all(torch.equal(g, h) for g, h in zip(*grads, strict=True))
    assert list(model.state_dict()) == names


def test_estimate_moves_as_it_should():
    c, roof = config(), hardware.Ceilings(1e11, 2e11, 1e10, 1e9, 1e8, 1e9)
    one = hardware.estimate(c, 8, 16, roof)
    assert one.step_seconds == pytest.approx(sum(one.seconds.values())) and one.step_seconds > 0
    assert one.peak >= one.weights + one.optimizer + max(one.gradients, one.activations)
    longer, more = hardware.estimate(c, 8, 32, roof), hardware.estimate(c, 16, 16, roof)
    assert longer.activations > 2 * one.activations > 0.99 * more.activations
    assert hardware.estimate(c, 8, 16, roof, optimizer="sgd").optimizer == 0
    again = hardware.estimate(c, 8, 16, roof, checkpointing=True)
    assert again.activations < one.activations and again.flop > one.flop
    assert again.step_seconds > one.step_seconds
    parts = hardware.estimate(c, 8, 16, roof, accumulate=4)
    assert parts.flop == one.flop and parts.activations < one.activations
    fast = hardware.estimate(c, 8, 16, dataclasses.replace(roof, randoms=1e12))
    assert fast.seconds["random numbers"] < one.seconds["random numbers"]
    assert hardware.estimate(c, 8, 16).seconds == {}


def test_memory_grows_with_each_input():
    for n in (1, 2, 5, 9):
        assert hardware.estimate(config(), n + 1, 8).peak >= hardware.estimate(config(), n, 8).peak
        assert hardware.estimate(config(), 2, n + 1).peak >= hardware.estimate(config(), 2, n).peak


def test_lines_say_whether_it_fits():
    found = hardware.estimate(config(), 8, 16)
    assert hardware.format_estimate(found, found.peak)[-1].startswith("fits")
    assert hardware.format_estimate(found, found.peak - 1)[-1].startswith("does not fit")
    assert not any("fit" in line for line in hardware.format_estimate(found))


@pytest.mark.parametrize("wrong", [
    {"batch": 0}, {"length": 0}, {"length": 41}, {"optimizer": "adam"}, {"autocast": "fp16"},
    {"accumulate": 0}, {"accumulate": 9}, {"n_classes": 0},
])
def test_refusals(wrong):
    with pytest.raises(UserError) as e:
        hardware.estimate(**{"config": config(), "batch": 8, "length": 16} | wrong)
    assert "\n" not in str(e.value)


def test_a_measured_step_in_a_fresh_process():
    "Large enough for the model's memory to stand out from the process's own."
    c = config(vocab_size=3000, hidden_size=192, intermediate_size=768, num_hidden_layers=3)
    seen = hardware.measure_step(c, 64, 40, steps=2)
    assert seen["seconds"] > 0 and seen["peak"] > 0
    if seen["given_back"]:
        assert 0.75 < hardware.estimate(c, 64, 40).peak / seen["peak"] < 1.25


def test_a_step_that_cannot_end_is_one_line():
    with pytest.raises(UserError, match="memory") as e:
        hardware.measure_step(config(vocab_size=2**40), 2, 4, steps=1)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("s", [0.0, 0.3, 1.0])
def test_laws_agree_with_a_schedule_counted_by_hand(s):
    for n in (1, 2, 5):
        assert hardware.amdahl(s, n) == pytest.approx(1 / (s + (1 - s) / n))
        assert 1 <= hardware.amdahl(s, n) <= hardware.gustafson(s, n) <= n
