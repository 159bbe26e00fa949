"""attention: PyTorch's numbers, masks, causality, positions, the cache; inputs that do not fit."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ftnb.attention import (
    KeyValueCache,
    MultiHeadAttention,
    allowed_pairs,
    attention_weights,
    sinusoidal_positions,
)
from ftnb.core import UserError

MASKS = ("none", "padding", "left padding", "table", "one for each head")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def make_mask(kind, B, H, T):
    if kind == "none":
        return None
    if "padding" in kind:
        lengths = torch.randint(1, T + 1, (B,))
        mask = torch.arange(T) < lengths[:, None]
        return mask.flip(1) if "left" in kind else mask
    shape = (B, H if "head" in kind else 1, T, T)
    return (torch.rand(shape) < 0.6) | torch.eye(T, dtype=torch.bool)


def layer(dim=24, heads=4, dtype=torch.float64, **options):
    module = MultiHeadAttention(dim, heads, **options).to(dtype)
    for p in module.parameters():
        nn.init.normal_(p, std=0.4)
    return module.eval()


def slow(module, x, mask, causal):
    "One text, head and query at a time, over the keys that may be seen, and no others."
    B, T, D = x.shape
    q, k, v = (t.reshape(B, T, module.n_heads, -1) for t in module.qkv(x).chunk(3, -1))
    allowed = torch.ones(B, module.n_heads, T, T, dtype=torch.bool)
    if mask is not None:
        allowed = allowed & (mask[:, None, None] if mask.ndim == 2 else mask)
    out = torch.zeros_like(q)
    for b, h, t in itertools.product(range(B), range(module.n_heads), range(T)):
        seen = [s for s in range(T) if allowed[b, h, t, s] and (s <= t or not causal)]
        if seen:
            a = (k[b, seen, h] @ q[b, t, h] / math.sqrt(q.shape[-1])).softmax(0)
            out[b, t, h] = a @ v[b, seen, h]
    return module.out(out.reshape(B, T, D))


# --- the same numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("causal", [False, True])
def test_outputs_and_gradients_are_those_of_the_slow_formula(kind, causal):
    module, x = layer(), torch.randn(3, 7, 24, dtype=torch.float64, requires_grad=True)
    mask, weight = make_mask(kind, 3, 4, 7), torch.randn(3, 7, 24, dtype=torch.float64)
    a, b = module(x, mask, causal), slow(module, x, mask, causal)
    torch.testing.assert_close(a, b)
    wanted = [x, *module.parameters()]
    ours = torch.autograd.grad((a * weight).sum(), wanted, retain_graph=True)
    theirs = torch.autograd.grad((b * weight).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("heads", [1, 3, 24])
@pytest.mark.parametrize("T", [1, 2, 65])
def test_pytorch_s_module_with_the_same_weights(heads, T):
    ours, x = layer(24, heads), torch.randn(2, T, 24, dtype=torch.float64)
    theirs = nn.MultiheadAttention(24, heads, batch_first=True, dtype=torch.float64).eval()
    theirs.load_state_dict({
        "in_proj_weight": ours.qkv.weight, "in_proj_bias": ours.qkv.bias,
        "out_proj.weight": ours.out.weight, "out_proj.bias": ours.out.bias,
    })  # fmt: skip
    expected, weights = theirs(x, x, x, average_attn_weights=False)
    torch.testing.assert_close(ours(x), expected)
    q, k, _ = ours.project(x)
    torch.testing.assert_close(attention_weights(q, k), weights)


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("causal", [False, True])
def test_weights_are_pytorch_s_and_sum_to_one_or_zero(kind, causal):
    q, k = torch.randn(2, 3, 4, 9, 6, dtype=torch.float64)
    mask, identity = make_mask(kind, 3, 4, 9), torch.eye(9, dtype=torch.float64).expand(3, 4, 9, 9)
    w = attention_weights(q, k, mask, causal)
    allowed = allowed_pairs(q, k, mask, causal)
    theirs = F.scaled_dot_product_attention(q, k, identity, attn_mask=allowed)
    torch.testing.assert_close(w, theirs)
    sums = w.sum(-1)
    nothing = torch.zeros(3, 4, 9, dtype=torch.bool)
    if allowed is not None:
        assert (w.masked_select(~allowed.expand_as(w)) == 0).all()
        nothing = ~allowed.expand_as(w).any(-1)
    torch.testing.assert_close(sums, (~nothing).double())


def test_large_scores_do_not_overflow():
    module = layer(8, 2, torch.float32)
    x = 1e4 * torch.randn(1, 5, 8)
    for causal in (False, True):
        assert module(x, causal=causal).isfinite().all()
    q, k, _ = module.project(x)
    assert attention_weights(q, k).isfinite().all()


# --- properties -----------------------------------------------------------------------------------


def test_what_stands_at_a_hidden_place_does_not_matter_to_the_last_bit():
    module, x = layer(), torch.randn(2, 6, 24, dtype=torch.float64)
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    other = x.masked_fill(~mask[..., None], 1e6)
    assert torch.equal(module(x, mask)[mask], module(other, mask)[mask])
    torch.testing.assert_close(module(x[1:, :4]), module(x, mask)[1:, :4])


def test_the_future_does_not_change_the_past():
    module, x = layer(), torch.randn(2, 8, 24, dtype=torch.float64)
    for t in range(8):
        changed = x.clone()
        changed[:, t + 1 :] = torch.randn_like(changed[:, t + 1 :])
        a, b = module(x, causal=True), module(changed, causal=True)
        torch.testing.assert_close(a[:, : t + 1], b[:, : t + 1])


def test_shuffling_the_input_shuffles_the_output():
    module, x = layer(), torch.randn(2, 8, 24, dtype=torch.float64)
    order = torch.randperm(8)
    torch.testing.assert_close(module(x[:, order]), module(x)[:, order])


def test_dropout_is_drawn_in_training_only():
    module, x = layer(dropout=0.5), torch.randn(2, 8, 24, dtype=torch.float64)
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))
    drawn = torch.stack([module(x) for _ in range(2_000)])
    error = drawn.std(0) / math.sqrt(2_000)
    assert ((drawn.mean(0) - module.eval()(x)).abs() < 6 * error + 1e-9).all(), "right in the mean"


# --- the cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[1] * 12, [12], [5, 1, 1, 5], [1, 10, 1]])
@pytest.mark.parametrize("room", [1, 3, 64])
@pytest.mark.parametrize("padded", [False, True])
def test_in_pieces_as_at_once(pieces, room, padded):
    module, x = layer(), torch.randn(2, 12, 24, dtype=torch.float64)
    mask = make_mask("left padding", 2, 4, 12) if padded else None
    with torch.inference_mode():
        whole, cache, done = module(x, mask, causal=True), KeyValueCache(room), []
        for part in x.split(pieces, 1):
            seen = None if mask is None else mask[:, : len(cache) + part.shape[1]]
            done.append(module(part, seen, causal=True, cache=cache))
    torch.testing.assert_close(torch.cat(done, 1), whole)
    assert len(cache) == 12


def test_what_a_cache_has_given_out_stays_as_it_was():
    cache = KeyValueCache(1)
    k = torch.randn(1, 1, 1, 4)
    first, _ = cache.append(k, k)
    before = first.clone()
    for _ in range(10):
        cache.append(torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4))
    assert torch.equal(first, before)
    keys, values = cache.append(k, 2 * k)
    assert keys.shape == (1, 1, 12, 4) and torch.equal(values[:, :, -1:], 2 * k)
    assert torch.equal(keys[:, :, :1], before)


def test_a_cache_grows_seldom():
    cache, sizes = KeyValueCache(2), set()
    for _ in range(1_000):
        k = torch.zeros(1, 2, 1, 4)
        cache.append(k, k)
        sizes.add(cache.kept.shape[3])
    assert len(sizes) <= 11, "the room doubles"


def test_a_cache_refuses_training_and_another_batch():
    module, cache = layer(), KeyValueCache()
    with pytest.raises(UserError, match="inference_mode"):
        module(torch.randn(1, 2, 24, dtype=torch.float64), causal=True, cache=cache)
    with torch.no_grad():
        module(torch.randn(2, 2, 24, dtype=torch.float64), causal=True, cache=cache)
        with pytest.raises(UserError, match="new cache"):
            module(torch.randn(1, 2, 24, dtype=torch.float64), causal=True, cache=cache)


# --- positions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 10, 384])
def test_sinusoidal_positions_are_the_formula_far_out_too(dim):
    P = sinusoidal_positions(5_001, dim)
    assert P.shape == (5_001, dim) and P.dtype == torch.float32
    for t in (0, 1, 77, 5_000):
        for i in range(dim // 2):
            angle = t / 10_000 ** (2 * i / dim)
            assert abs(P[t, 2 * i] - math.sin(angle)) < 1e-6
            assert abs(P[t, 2 * i + 1] - math.cos(angle)) < 1e-6
    assert torch.equal(P[:100], sinusoidal_positions(100, dim)), "a row does not know the length"
    assert sinusoidal_positions(0, dim).shape == (0, dim)


@pytest.mark.parametrize("dim", [-2, 0, 1, 7])
def test_positions_of_an_odd_size_are_refused(dim):
    with pytest.raises(UserError):
        sinusoidal_positions(4, dim)


# --- inputs that do not fit -----------------------------------------------------------------------


@pytest.mark.parametrize("dim, heads", [(10, 3), (10, 0), (0, 1), (10, -2)])
def test_sizes_that_cannot_be_divided(dim, heads):
    with pytest.raises(UserError):
        MultiHeadAttention(dim, heads)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 3])
def test_a_share_that_is_none(dropout):
    with pytest.raises(UserError):
        MultiHeadAttention(8, 2, dropout)


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 5, 23), (1, 2, 5, 24)])
def test_misshapen_input(shape):
    with pytest.raises(UserError) as caught:
        layer()(torch.zeros(shape, dtype=torch.float64))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(2, 5), torch.ones(2, 5, dtype=torch.long), torch.ones(5, dtype=torch.bool),
     torch.ones(2, 5, 5, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool),
     torch.ones(3, 5, dtype=torch.bool), torch.ones(2, 3, 5, 5, dtype=torch.bool),
     torch.ones(5, 5, dtype=torch.bool)],
    ids=["numbers", "integers", "one text", "no heads", "too short", "other texts", "other heads",
         "a table for all"],
)  # fmt: skip
def test_a_mask_that_does_not_fit_is_refused_in_one_line(mask):
    "Numbers would be added to the scores; wrong shapes would be stretched or fail far inside."
    for causal in (False, True):
        with pytest.raises(UserError) as caught:
            layer()(torch.zeros(2, 5, 24, dtype=torch.float64), mask, causal)
        assert "\n" not in str(caught.value) and "mask" in str(caught.value)


def test_empty_batches_and_single_tokens():
    module = layer()
    for shape in ((0, 5, 24), (3, 1, 24)):
        x = torch.zeros(shape, dtype=torch.float64)
        assert module(x).shape == shape and module(x, causal=True).shape == shape


def test_an_empty_text_with_a_cache():
    module, cache = layer(), KeyValueCache()
    with torch.no_grad():
        module(torch.zeros(1, 3, 24, dtype=torch.float64), causal=True, cache=cache)
        assert module(torch.zeros(1, 0, 24, dtype=torch.float64), cache=cache).shape == (1, 0, 24)
    assert len(cache) == 3


def test_it_is_saved_under_the_names_that_bert_maps():
    assert sorted(MultiHeadAttention(8, 2).state_dict()) == [
        "out.bias", "out.weight", "qkv.bias", "qkv.weight"
    ]  # fmt: skip
