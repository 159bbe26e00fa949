"""pretrain: packing, masking, pairs, baselines, resuming, checkpoints that others can read."""

import numpy as np
import pytest
import torch

from ftnb import pretrain as P
from ftnb.bert import BertForPreTraining
from ftnb.core import UserError
from ftnb.train import fit
from ftnb.wordpiece import SPECIAL, WordPiece

WORDS = "the pump leaks near a broken lamp and nobody repairs it since the street is dark".split()
LENGTH = 16


def text(rng, sentences=4):
    return " ".join(" ".join(rng.choice(WORDS, rng.integers(3, 9))).capitalize() + "."
                    for _ in range(sentences))


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(0)
    return [text(rng, int(rng.integers(1, 7))) for _ in range(300)]


@pytest.fixture(scope="module")
def tokenizer(texts):
    return WordPiece.train(texts, 60)


@pytest.fixture(scope="module")
def rows(texts, tokenizer):
    return P.Rows(P.pack(*tokenizer.encode_batch(texts), LENGTH, 2, 3))


@pytest.fixture(scope="module")
def pairs(texts, tokenizer):
    parts = P.encode_sentences(texts, tokenizer)
    return P.sentence_pairs(*parts, LENGTH * 2, (2, 3, 0), np.random.default_rng(0))


def model_for(tokenizer, length=LENGTH, **changes):
    sizes = dict(layers=1, width=16, heads=2) | changes
    return P.new_model(len(tokenizer.pieces), length, **sizes)


def one_line(caught):
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300
    return str(caught.value)


# --- packing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 3, 7, 100])
def test_packing_keeps_every_piece_in_order(length):
    rng = np.random.default_rng(length)
    sizes = rng.integers(0, 12, 40)
    ids, offsets = rng.integers(5, 50, sizes.sum()).astype(np.int32), np.cumsum([0, *sizes])
    packed = P.pack(ids, offsets, length, 2, 3)
    assert packed.dtype == np.int32 and packed.shape[1] == length and (packed[:, 0] == 2).all()
    stream = packed[:, 1:].ravel()
    assert (stream[stream >= 5] == ids[: (stream >= 5).sum()]).all()
    ends = (sizes > 0).sum()
    assert len(ids) + ends - len(stream) < length - 1, "less than a row is dropped"


def test_packing_of_nothing_and_of_too_short_rows():
    assert P.pack(np.zeros(0, np.int32), np.zeros(1, np.int64), 8, 2, 3).shape == (0, 8)
    assert P.pack(np.zeros(0, np.int32), np.zeros(4, np.int64), 8, 2, 3).shape == (0, 8)
    with pytest.raises(UserError) as caught:
        P.pack(np.zeros(3, np.int32), np.array([0, 3]), 1, 2, 3)
    assert "length" in one_line(caught)


def test_wikitext_marks():
    assert P.plain_text("1 @,@ 000 well @-@ known 3 @.@ 5 <unk>") == "1,000 well-known 3.5 [UNK]"
    assert P.plain_text("a @ b @decorator") == "a @ b @decorator"
    assert P.plain_text("[CLS] a [MASK]") == "[cls] a [mask]"


# --- masking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
def test_the_share_and_the_fates(rows, tokenizer, whole):
    masking, rng = P.Masking.of(tokenizer, whole), np.random.default_rng(0)
    ids = np.tile(rows.ids, (20, 1))
    chosen = P.choose_positions(ids, masking, rng)
    new = P.corrupt(ids, chosen, masking, rng)
    able = (ids >= 5).sum(1)
    wanted = np.maximum(1, (0.15 * able + 0.5).astype(int))
    assert not chosen[ids < 5].any() and (new[~chosen] == ids[~chosen]).all()
    assert (chosen.sum(1) == wanted).all() if not whole else chosen.sum(1).mean() < wanted.mean()
    n, random = chosen.sum(), 1 / (len(tokenizer.pieces) - 5)
    for share, holds in ((0.8, new == 4), (0.1 + 0.1 * random, new == ids)):
        seen = holds[chosen].mean()
        assert abs(seen - share) < 5 * (share * (1 - share) / n) ** 0.5
    assert not np.isin(new[chosen & (new != 4)], range(5)).any(), "no special piece is put in"


def test_every_place_is_chosen_equally_often(tokenizer):
    masking = P.Masking.of(tokenizer)
    ids = np.full((20_000, 10), 9)
    often = P.choose_positions(ids, masking, np.random.default_rng(1)).mean(0)
    assert np.abs(often - 0.2).max() < 0.015, "two of ten"


def test_whole_words_go_together(tokenizer):
    masking = P.Masking.of(tokenizer, whole_words=True, share=0.4)
    inner = [i for i, p in enumerate(tokenizer.pieces) if p.startswith("##")]
    outer = [i for i, p in enumerate(tokenizer.pieces) if not p.startswith("##") and i >= 5]
    rng = np.random.default_rng(0)
    ids = np.where(rng.random((400, 20)) < 0.5, rng.choice(inner, (400, 20)),
                   rng.choice(outer, (400, 20)))
    ids[:, 0] = 2
    chosen = P.choose_positions(ids, masking, rng)
    same = np.isin(ids[:, 2:], inner)  # belongs to the piece before it
    assert (chosen[:, 2:] == chosen[:, 1:-1])[same].all() and chosen.any(1).all()


def test_rows_without_anything_to_hide(tokenizer):
    for whole in (False, True):
        masking = P.Masking.of(tokenizer, whole)
        ids = np.array([[2, 3, 0, 0], [2, 7, 3, 0]])
        chosen = P.choose_positions(ids, masking, np.random.default_rng(0))
        assert chosen.tolist() == [[False] * 4, [False, True, False, False]]
        empty = P.choose_positions(np.zeros((0, 4), int), masking, np.random.default_rng(0))
        assert empty.shape == (0, 4)


def test_masking_refuses_nonsense(tokenizer, rows):
    for shares in ({"share": 0}, {"share": 1.2}, {"masked": 0.8, "swapped": 0.3}, {"masked": -0.1}):
        with pytest.raises(UserError) as caught:
            P.Masking.of(tokenizer, **shares)
        one_line(caught)
    with pytest.raises(UserError) as caught:
        P.Masking.of(WordPiece(["[UNK]", "a", "b"]))
    assert "[MASK]" in one_line(caught)
    small = P.Masking(20, (0, 1, 2, 3, 4), 4)
    with pytest.raises(UserError) as caught:
        P.MaskedRows(rows, small)
    assert "vocabulary" in one_line(caught)


def test_a_batch_is_what_it_says(rows, tokenizer):
    data = P.MaskedRows(rows, P.Masking.of(tokenizer), seed=3)
    before = rows.ids.copy()
    batch = data.batch([4, 0, 9])
    ids, at = batch["ids"].clone().flatten(), batch["positions"]
    assert (at[1:] > at[:-1]).all() and batch["mask"] is None and batch["segments"] is None
    ids[at] = batch["targets"]
    assert (ids.view(3, LENGTH).numpy() == rows.ids[[4, 0, 9]]).all()
    assert (rows.ids == before).all(), "the rows themselves stay"
    assert data.digest != P.MaskedRows(rows, P.Masking.of(tokenizer, share=0.2)).digest


# --- pairs ----------------------------------------------------------------------------------------


def test_true_pairs_are_neighbours_and_unrelated_ones_are_not():
    "Every sentence has its own letters: where a piece comes from is known."
    letters = WordPiece([*SPECIAL, *map(chr, range(0x4E00, 0x4E00 + 400))])
    rng, docs, code = np.random.default_rng(0), [], 0x4E00
    for _ in range(60):
        n = rng.integers(1, 6)
        docs.append([chr(code + i) for i in range(n)])
        code += n
    texts = ["\n\n".join(c * int(rng.integers(1, 5)) for c in doc) for doc in docs]
    where = {5 + ord(c) - 0x4E00: (d, s) for d, doc in enumerate(docs) for s, c in enumerate(doc)}
    rows = P.sentence_pairs(*P.encode_sentences(texts, letters), 9, (2, 3, 0), rng)
    for ids, segments, u in zip(rows.ids, rows.segments, rows.unrelated, strict=True):
        a, b = np.flatnonzero(ids == 3)
        assert ids[0] == 2 and (ids[b + 1 :] == 0).all() and b < 9
        assert segments.tolist() == [0] * (a + 1) + [1] * (b - a) + [0] * (8 - b)
        last, first = where[ids[a - 1]], where[ids[a + 1]]
        assert (last[0] != first[0]) if u else (first == (last[0], last[1] + 1))
    assert 0.3 < rows.unrelated.mean() < 0.7


def test_half_of_the_pairs_are_unrelated(pairs):
    n = len(pairs)
    assert abs(pairs.unrelated.mean() - 0.5) < 4 * 0.5 / n**0.5
    assert (pairs.ids == 3).sum(1).tolist() == [2] * n


def test_pairs_need_two_documents(tokenizer):
    for some in (["One. Two. Three."], [], ["", " \n\n "]):
        with pytest.raises(UserError) as caught:
            P.sentence_pairs(*P.encode_sentences(some, tokenizer), 16, (2, 3, 0),
                             np.random.default_rng(0))
        one_line(caught)


@pytest.mark.parametrize("hostile", [
    "", "...", "\n\n\n\n", "!?" * 50, "a" * 5000, "\x00\ufffd", "。！？", "x. " * 2000,
    "\udc80 half a pair. And more.",
])
def test_hostile_documents(tokenizer, hostile):
    some = [hostile, "One pump. Two pumps.", "The lamp. It is dark."] * 2
    ids, offsets, docs = P.encode_sentences(some, tokenizer)
    assert (np.diff(offsets) > 0).all() and (np.diff(docs) > 0).all()
    assert docs[-1] == len(offsets) - 1 and offsets[-1] == len(ids)
    rows = P.sentence_pairs(ids, offsets, docs, 24, (2, 3, 0), np.random.default_rng(0))
    assert (rows.ids == 3).sum(1).min() >= 2
    assert "".join(P.split_sentences(hostile)).split() == hostile.split() or "." in hostile \
        or "!" in hostile


# --- baselines ------------------------------------------------------------------------------------


def test_neighbour_counts_are_probabilities_and_beat_each_other(rows, tokenizer):
    masking = P.Masking.of(tokenizer)
    counts, V = P.NeighbourCounts(rows.ids, masking), len(tokenizer.pieces)
    every = np.arange(5, V)
    for left, right in ((2, 3), (7, 9), (V - 1, 0)):
        trial = np.stack([np.full(V - 5, left), every, np.full(V - 5, right)], 1)
        np.testing.assert_allclose(counts.guesses(trial, 3 * np.arange(V - 5) + 1).sum(0), 1)
    positions = np.flatnonzero(rows.ids.ravel() >= 5)
    losses = list(counts.losses(rows.ids, positions).values())
    assert losses[0] > losses[1] > losses[2] > 0
    assert all(np.isclose(w.sum(), 1) for w in counts.weights.values())


def test_a_chain_is_known_to_the_bigram():
    "A text in which each piece has one successor costs nothing; the unigram stays at log 10."
    ids = (np.arange(4000) % 10 + 5).reshape(-1, 20)
    masking = P.Masking(15, (0, 1, 2, 3, 4), 4)
    counts = P.NeighbourCounts(ids, masking)
    losses = counts.losses(ids, np.flatnonzero(np.arange(20) % 20 > 0) + 40)
    assert abs(losses["unigram"] - np.log(10)) < 0.01 and losses["bigram"] < 0.01


# --- losses and training --------------------------------------------------------------------------


def test_masked_loss_is_that_of_transformers(rows, tokenizer, tmp_path):
    from transformers import AutoModel, BertForMaskedLM

    model = model_for(tokenizer).eval()
    folder = P.save_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    batch = P.MaskedRows(rows, P.Masking.of(tokenizer)).batch(np.arange(8))
    labels = torch.full((8, LENGTH), -100)
    labels.view(-1)[batch["positions"]] = batch["targets"]
    theirs = BertForMaskedLM.from_pretrained(folder).eval()(batch["ids"], labels=labels).loss
    torch.testing.assert_close(P.masked_loss(model, batch), theirs, atol=1e-5, rtol=1e-5)
    AutoModel.from_pretrained(folder)


def test_both_losses_are_those_of_transformers(pairs, tokenizer, tmp_path):
    from transformers import BertForPreTraining as Theirs

    model = model_for(tokenizer, 2 * LENGTH).eval()
    folder = P.save_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    batch = P.MaskedRows(pairs, P.Masking.of(tokenizer)).batch(np.arange(8))
    labels = torch.full((8, 2 * LENGTH), -100)
    labels.view(-1)[batch["positions"]] = batch["targets"]
    theirs = Theirs.from_pretrained(folder).eval()(
        batch["ids"], batch["mask"].long(), batch["segments"], labels=labels,
        next_sentence_label=batch["unrelated"]).loss
    torch.testing.assert_close(P.pretraining_loss(model, batch), theirs, atol=1e-5, rtol=1e-5)


def test_the_tokenizers_of_a_checkpoint_agree(texts, tokenizer, tmp_path):
    from ftnb.bert import load_tokenizer

    folder = P.save_checkpoint(model_for(tokenizer), tokenizer, tmp_path)
    library = load_tokenizer(folder, 512)
    for t in [*texts[:50], "unknown 水泵 ÉTÉ don't", ""]:
        assert library.encode(t).ids == tokenizer.encode_batch([t], special=True)[0].tolist()


class Killed(Exception):
    pass


@pytest.mark.parametrize("next_sentence", [False, True])
def test_resumed_equals_uninterrupted_bit_for_bit(pairs, tokenizer, tmp_path, next_sentence):
    masking, rows = P.Masking.of(tokenizer, whole_words=True), pairs.take(np.arange(48))
    options = dict(epochs=2, batch_size=8, checkpoint_every=2, next_sentence=next_sentence, seed=3)

    def run(name):
        model = model_for(tokenizer, 2 * LENGTH, dropout=0.1)
        history = P.pretrain(model, rows, masking, checkpoint=tmp_path / name, **options)
        return model, history.losses

    whole, losses = run("whole")
    real, calls = P.masked_batch, []

    def dying(*parts):
        calls.append(1)
        if len(calls) == 10:
            raise Killed
        return real(*parts)

    P.masked_batch = dying
    try:
        with pytest.raises(Killed):
            run("killed")
    finally:
        P.masked_batch = real
    resumed, again = run("killed")
    assert losses == again and len(losses) == 12
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_evaluate_does_not_depend_on_the_batches(pairs, tokenizer):
    model = model_for(tokenizer, 2 * LENGTH).eval()
    questions = P.masked_batch(pairs.take(np.arange(50)), P.Masking.of(tokenizer),
                               np.random.default_rng(0))
    whole, parts = P.evaluate(model, questions, 50), P.evaluate(model, questions, 7)
    assert whole.keys() == parts.keys() and whole["n"] == len(questions["targets"])
    for k in whole:
        assert np.isclose(whole[k], parts[k], rtol=1e-5)
    with torch.no_grad():
        both = float(P.pretraining_loss(model, questions))
    assert np.isclose(both, whole["loss"] + whole["pair_loss"], rtol=1e-5)


def test_it_learns_what_can_be_learnt(tokenizer):
    "Each piece follows from its neighbour; the model must find that out, the unigram cannot."
    V = len(tokenizer.pieces)
    start = np.random.default_rng(0).integers(0, 12, (1200, 1))
    ids = np.hstack([np.full((1200, 1), 2), 5 + (start + np.arange(7)) % 12]).astype(np.int32)
    masking = P.Masking.of(tokenizer)
    model = P.start_from_counts(model_for(tokenizer, 8, width=32),
                                P.NeighbourCounts(ids, masking).uni)
    questions = P.masked_batch(P.Rows(ids[1000:]), masking, np.random.default_rng(9))
    assert abs(P.evaluate(model, questions)["loss"] - np.log(12)) < 0.6
    P.pretrain(model, P.Rows(ids[:1000]), masking, epochs=8, batch_size=32, lr=1e-2)
    assert P.evaluate(model, questions)["loss"] < 0.7 < np.log(12) < np.log(V)


def test_new_heads_leave_the_body_alone(rows, tokenizer):
    body = model_for(tokenizer).bert
    before = {k: v.clone() for k, v in body.state_dict().items()}
    model = P.with_new_heads(body, seed=1)
    model.bert.requires_grad_(False)
    head = model.predictions.transform.weight.detach().clone()
    P.pretrain(model, rows.take(np.arange(32)), P.Masking.of(tokenizer), batch_size=8, lr=1e-2)
    assert all(torch.equal(before[k], v) for k, v in model.bert.state_dict().items())
    assert not torch.equal(head, model.predictions.transform.weight)
    body.pooler = None
    with pytest.raises(UserError) as caught:
        P.with_new_heads(body)
    one_line(caught)


def test_a_checkpoint_can_be_fine_tuned_and_read_again(rows, texts, tokenizer, tmp_path):
    from ftnb.finetune import TransformerClassifier

    model = model_for(tokenizer)
    folder = P.save_checkpoint(model, tokenizer, tmp_path / "checkpoint")
    again = BertForPreTraining.from_pretrained(folder)
    batch = P.MaskedRows(rows, P.Masking.of(tokenizer)).batch([0, 1])
    assert torch.equal(P.masked_loss(model.eval(), batch), P.masked_loss(again, batch))
    labels = ["pump" in t for t in texts[:60]]
    classifier = TransformerClassifier(str(folder), method="full", max_length=LENGTH, epochs=1,
                                       random_state=0, cache=False).fit(texts[:60], labels)
    assert set(classifier.predict(texts[60:80])) <= {True, False}


def test_what_does_not_fit_is_refused(rows, pairs, tokenizer, tmp_path):
    masking = P.Masking.of(tokenizer)
    with pytest.raises(UserError) as caught:
        P.pretrain(model_for(tokenizer), rows, masking, next_sentence=True)
    assert "pairs" in one_line(caught)
    with pytest.raises(UserError) as caught:
        P.pretrain(model_for(tokenizer, 8), rows, masking)
    assert "positions" in one_line(caught)
    with pytest.raises(UserError) as caught:
        P.save_checkpoint(model_for(tokenizer), WordPiece([*SPECIAL, "a"]), tmp_path)
    assert "vocabulary" in one_line(caught)
    with pytest.raises(UserError) as caught:
        fit(model_for(tokenizer), P.MaskedRows(rows, masking), P.pretraining_loss, epochs=1)
    assert "sentence_pairs" in one_line(caught)


def test_a_small_bert_learns_more_than_frequencies(mirror):
    "Real text, a minute's training: clearly more than the frequencies of pieces."
    from ftnb.data import load

    texts = [P.plain_text(t) for t in load("wikitext2").part("valid").texts]
    tokenizer = WordPiece.train(texts, 600)
    rows = P.Rows(P.pack(*tokenizer.encode_batch(texts), 32, 2, 3))
    masking, n = P.Masking.of(tokenizer), 3200
    order = np.random.default_rng(0).permutation(len(rows))
    counts = P.NeighbourCounts(rows.ids[order[:n]], masking)
    questions = P.masked_batch(rows.take(order[n : n + 300]), masking, np.random.default_rng(0))
    model = P.start_from_counts(P.new_model(len(tokenizer.pieces), 32, 2, 64, 2), counts.uni)
    P.pretrain(model, rows.take(order[:n]), masking, epochs=2, batch_size=32, lr=4e-3)
    held = rows.ids[order[n : n + 300]]
    unigram = counts.losses(held, questions["positions"])["unigram"]
    assert P.evaluate(model, questions)["loss"] < unigram - 0.15
