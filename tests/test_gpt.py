"""The causal model: equal to GPT-2 of Transformers, with and without a cache; hostile input."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from ftnb.core import UserError
from ftnb.data import load
from ftnb.gpt import GPT, GPTConfig, _views, published_name, within
from ftnb.lm import (
    END,
    CachedStep,
    NGramModel,
    Units,
    Windows,
    beam_search,
    count_bytes,
    end_to_end,
    next_symbol_loss,
    nucleus,
    sample,
    temperature,
    top_k,
)
from ftnb.train import fit

NO_DROPOUT = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)


def small(seed=0, **changes):
    "A model of a few thousand weights, larger than usual so that differences show."
    torch.manual_seed(seed)
    sizes = dict(vocab_size=37, n_positions=24, n_embd=16, n_layer=3, n_head=4)
    return GPT(GPTConfig(**sizes | dict(initializer_range=0.3) | NO_DROPOUT | changes)).eval()


def some_ids(B=3, T=24, V=37, seed=0):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- Transformers


@pytest.mark.parametrize("changes", [{}, {"n_inner": 20}, {"activation_function": "relu"}])
def test_transformers_loads_our_model_and_gives_the_same_scores(tmp_path, changes):
    from transformers import GPT2LMHeadModel

    ours, ids = small(**changes), some_ids()
    ours.save_pretrained(tmp_path)
    theirs, said = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not said["missing_keys"] and not said["unexpected_keys"]
    with torch.no_grad():
        logits, hidden = theirs.eval()(ids).logits, theirs.transformer(ids).last_hidden_state
        torch.testing.assert_close(ours(ids)[0], logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.hidden(ids)[0], hidden, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bare", [True, False])
def test_we_load_a_model_of_transformers(tmp_path, bare):
    "With and without the first part of the names, and all slopes are the same."
    from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

    torch.manual_seed(1)
    sizes = dict(vocab_size=37, n_positions=24, n_embd=16, n_layer=2, n_head=2)
    body = GPT2Config(**sizes, **NO_DROPOUT, initializer_range=0.3, bos_token_id=0, eos_token_id=0)
    theirs = GPT2LMHeadModel(body).eval()
    (theirs.transformer if bare else theirs).save_pretrained(tmp_path)
    assert isinstance(theirs.transformer, GPT2Model)
    ours, ids = GPT.from_pretrained(tmp_path), some_ids()
    torch.testing.assert_close(ours(ids)[0], theirs(ids).logits, atol=1e-4, rtol=1e-4)
    next_symbol_loss(ours, (ids[:, :0], ids)).backward()
    theirs(ids, labels=ids).loss.backward()
    their_slopes = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        published, turned = published_name(name)
        slope = their_slopes[published].grad
        torch.testing.assert_close(p.grad, slope.T if turned else slope, atol=1e-4, rtol=1e-3)


def test_greedy_text_is_that_of_transformers(tmp_path):
    from transformers import GPT2LMHeadModel

    ours, begin = small(2), some_ids(2, 5)
    ours.save_pretrained(tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    wanted = theirs.generate(begin, max_new_tokens=15, do_sample=False, pad_token_id=0,
                             attention_mask=torch.ones_like(begin))  # fmt: skip
    assert torch.equal(sample(CachedStep(ours), begin, 15), wanted)


# ---------------------------------------------------------------- cache, mask, windows


def test_nothing_leaks_backwards():
    model, ids = small(), some_ids(1)
    slopes = torch.autograd.functional.jacobian(
        lambda x: _from_vectors(model, x)[..., 0], model.token(ids).detach())  # fmt: skip
    reaches = slopes[0, :, 0].abs().sum(-1) > 0  # (places of outputs, places of inputs)
    assert torch.equal(reaches, torch.ones(24, 24).tril().bool())


def _from_vectors(model, x):
    x = x + model.position.weight[: x.shape[1]]
    for layer in model.layers:
        x = layer(x)
    return model.norm(x)


@pytest.mark.parametrize("ends", [range(1, 25), (24,), (1, 24), (7, 8, 20, 24)])
def test_the_cache_changes_nothing(ends):
    model, ids, state, done, parts = small(), some_ids(), None, 0, []
    with torch.no_grad():
        whole, _ = model(ids)
        for end in ends:
            logits, state = model(ids[:, done:end], state)
            parts.append(logits)
            done = end
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=1e-4)
    with_slopes, none = model(ids)
    assert none is None and with_slopes.requires_grad
    torch.testing.assert_close(with_slopes, whole, atol=1e-4, rtol=1e-4)


def test_picked_rows_go_on_alone():
    model, ids = small(), some_ids(4)
    with torch.no_grad():
        _, state = model(ids[:, :10])
        assert model.pick(state, torch.arange(4)) is state
        rows = torch.tensor([3, 3, 0])
        picked = model.pick(state, rows)
        model(ids[:, 10:], state)  # the old one goes on, the picked one is not touched
        new = torch.stack([ids[3, 10:], ids[1, 10:], ids[2, 10:]])
        logits, _ = model(new, picked)
        whole, _ = model(torch.cat([ids[rows, :10], new], 1))
    torch.testing.assert_close(logits, whole[:, 10:], atol=1e-4, rtol=1e-4)


RULES = [[], [partial(temperature, t=0.5)], [partial(top_k, k=3)], [partial(nucleus, p=0.8)]]


@pytest.mark.parametrize("rule", [None, *RULES])
def test_every_rule_writes_the_same_with_the_cache_beyond_the_window(rule):
    model, written = small(3), []
    for step in (CachedStep(model), lambda ids: model(ids)[0][:, -1]):
        generator = None if rule is None else torch.Generator().manual_seed(5)
        with torch.no_grad():
            written.append(sample(within(step, 24), some_ids(2, 3), 60, rule or (), generator))
    assert torch.equal(*written) and written[0].shape == (2, 63)


def test_beam_search_with_the_cache():
    model = small(4)
    with torch.no_grad():
        a = beam_search(within(CachedStep(model), 24), some_ids(1, 3), 40, width=3)
        b = beam_search(within(lambda i: model(i)[0][:, -1], 24), some_ids(1, 3), 40, width=3)
    assert torch.equal(a[0], b[0])
    torch.testing.assert_close(a[1], b[1], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("room", [1, 2, 3, 8])
def test_views_score_each_symbol_once_and_fit_the_room(room):
    for n in range(1, 60):
        views = list(_views(n, room))
        assert [i for _, b, new in views for i in range(new, b)] == list(range(1, n))
        assert all(b - a <= room + 1 and new > a for a, b, new in views)
        assert all(new - a > room // 2 for a, _, new in views[1:])


def test_long_texts_are_scored_in_windows():
    model, rng = small(), np.random.default_rng(0)
    sequences = [rng.integers(37, size=n) for n in (1, 2, 100, 24, 25, 26, 5)]
    log2p = model.log2_probabilities(sequences)
    alone = [model.log2_probabilities([s]) for s in sequences]
    np.testing.assert_allclose(log2p, np.concatenate(alone), rtol=1e-4, atol=1e-4)
    assert len(log2p) == sum(len(s) - 1 for s in sequences) and (log2p <= 0).all()
    with torch.no_grad():
        probabilities = model(torch.from_numpy(sequences[3])[None, :-1])[0][0].softmax(1)
    np.testing.assert_allclose(2 ** alone[3], probabilities[range(23), sequences[3][1:]], rtol=1e-4)


# ---------------------------------------------------------------- start, training


def test_the_start_is_an_even_guess_and_depth_does_not_blow_it_up():
    for n_layer in (1, 12):
        model, ids = small(n_layer=n_layer, initializer_range=0.02), some_ids()
        with torch.no_grad():
            loss = next_symbol_loss(model, (ids[:, :0], ids))
        assert abs(loss - np.log(37)) < 0.1


def test_it_learns_what_no_count_of_few_symbols_can():
    "Repeat the first half of a text: the answer lies six places back, in a window of twelve."
    rng = np.random.default_rng(0)
    halves = rng.integers(8, size=(1_500, 6))
    rows = np.concatenate([halves, halves], 1)
    model = small(vocab_size=8, n_positions=12, n_embd=32, n_layer=2, initializer_range=0.1)
    data = Windows(np.append(rows[:1_400].ravel(), 0), 12)
    fit(model, data, next_symbol_loss, epochs=6, batch_size=32, lr=0.01, schedule="cosine")
    log2p = model.log2_probabilities(list(rows[1_400:])).reshape(100, 11)
    counting = NGramModel(4).fit(list(rows[:1_400]), 8).log2_probabilities(list(rows[1_400:]))
    assert -log2p[:, 5:].mean() < 1.0 < 2.5 < -counting.reshape(100, 11)[:, 5:].mean()


def test_chinese_beats_the_frequencies_of_characters(mirror):
    corpus = load("tang_poetry")
    train, held = corpus.part("train").texts[:600], corpus.part("valid").texts[:60]
    units = Units.learn(train, "char")
    ids, held_ids = [units.encode(t) for t in train], [units.encode(t) for t in held]
    torch.manual_seed(0)
    sizes = dict(n_positions=32, n_embd=32, n_layer=1, n_head=2, initializer_range=0.1)
    model = GPT(GPTConfig(len(units), **sizes, **NO_DROPOUT))
    fit(model, Windows(end_to_end(ids), 32), next_symbol_loss, epochs=2, batch_size=16, lr=0.01)
    frequencies = NGramModel(1).fit(ids, len(units))
    n = count_bytes(held)
    assert model.bits_per_byte(held_ids, n) < frequencies.bits_per_byte(held_ids, n)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("changes, said", [
    (dict(n_layer=0), "n_layer"), (dict(vocab_size=0, n_embd=-1), "vocab_size, n_embd"),
    (dict(activation_function="swish"), "gelu_new"), (dict(n_head=3), "heads"),
    (dict(attn_pdrop=1.5), "dropout"),
])  # fmt: skip
def test_sizes_that_cannot_work(changes, said):
    with pytest.raises(UserError, match=said):
        small(**changes)


def test_bad_symbols_are_refused_in_one_line():
    model = small()
    for ids in (some_ids(1, 25), some_ids(1, 3)[0], some_ids(2, 0)):
        with pytest.raises(UserError, match="symbols of shape"):
            model(ids)
    with torch.no_grad():
        _, state = model(some_ids(1, 20))
        with pytest.raises(UserError, match="after 20"):
            model(some_ids(1, 5), state)
        with pytest.raises(UserError, match="texts for a cache"):
            model(some_ids(2, 1), state)
    with pytest.raises(UserError, match="not training"):
        model(some_ids(1, 1), state)
    with pytest.raises(UserError, match="eval"):
        model.train().log2_probabilities([[1, 2]])
    with pytest.raises(UserError, match="room"):
        within(None, 0)


def test_damaged_and_foreign_checkpoints(tmp_path):
    model = small()
    model.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    good = json.loads(config.read_text())
    for change, said in (({"model_type": "bert"}, "bert"), ({"n_embd": 32}, "belong together"),
                         ({"n_layer": 4}, "no tensor"), ({"tie_word_embeddings": False}, "tie_"),
                         ({"scale_attn_by_inverse_layer_idx": True}, "inverse")):  # fmt: skip
        config.write_text(json.dumps(good | change))
        with pytest.raises(UserError, match=said):
            GPT.from_pretrained(tmp_path)
    config.write_text("{")
    with pytest.raises(UserError, match="cannot read"):
        GPT.from_pretrained(tmp_path)
    config.write_text(json.dumps(good))
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="download"):
        GPT.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors"):
        GPT.from_pretrained(tmp_path)


def test_hostile_texts_can_be_scored_and_written_on():
    units = Units("byte")
    texts = ["", " ", "\ud800", "\x00" * 50, "水" * 40, "🙂", "\n\n\t"]
    model = small(vocab_size=len(units))
    sequences = [units.encode(t) for t in texts]
    assert np.isfinite(model.log2_probabilities(sequences)).all()
    for s in sequences:
        out = sample(within(CachedStep(model), 24), s[None, :-1], 30, stop=END)
        assert isinstance(units.decode(out[0]), str)
