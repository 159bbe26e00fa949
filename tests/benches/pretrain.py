"""Pre-training with hidden tokens: the same weights, rows and shapes on both sides."""

import tempfile

import numpy as np
import torch

from benches.common import CORES, Benchmark, Case, texts_only

LAYERS, WIDTH, HEADS, LENGTH, VOCAB, BATCH, STEPS = 4, 256, 4, 128, 8_000, 16, 8


def material():
    "Tokenizer, rows and a folder with weights that both sides start from."
    from ftnb import pretrain as P
    from ftnb.wordpiece import WordPiece

    texts, said = texts_only(3_000)
    tokenizer = WordPiece.train(texts, VOCAB)
    ids = P.pack(*tokenizer.encode_batch(texts), LENGTH, 2, 3)[: BATCH * STEPS]
    folder = tempfile.mkdtemp()
    model = P.new_model(len(tokenizer.pieces), LENGTH, LAYERS, WIDTH, HEADS)
    P.save_checkpoint(model, tokenizer, folder)
    return tokenizer, ids, folder, said


def theirs(folder, ids, collate, seed=0):
    "The loop of the library's examples: its collator, AdamW, a linear schedule, clipping."
    from transformers import BertForMaskedLM, get_linear_schedule_with_warmup

    torch.manual_seed(seed)
    model = BertForMaskedLM.from_pretrained(folder).train()
    loader = torch.utils.data.DataLoader([{"input_ids": row} for row in ids.tolist()], BATCH,
                                         shuffle=True, collate_fn=collate)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, len(loader) // 10, len(loader))
    losses = []
    for batch in loader:
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    return np.array(losses)


def same_loss(folder, masking, ids):
    "On the same weights and the same batch the two losses are one number."
    from transformers import BertForMaskedLM

    from ftnb import pretrain as P
    from ftnb.bert import BertForPreTraining

    batch = P.MaskedRows(P.Rows(ids), masking).batch(np.arange(4))
    labels = torch.full(batch["ids"].shape, -100)
    labels.view(-1)[batch["positions"]] = batch["targets"]
    with torch.no_grad():
        peer = BertForMaskedLM.from_pretrained(folder).eval()(batch["ids"], labels=labels).loss
        ours = P.masked_loss(BertForPreTraining.from_pretrained(folder), batch)
    torch.testing.assert_close(ours, peer, atol=1e-4, rtol=1e-4)


def training(threads):
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    from ftnb import pretrain as P
    from ftnb.bert import BertForPreTraining
    from ftnb.core import set_threads

    set_threads(threads)
    tokenizer, ids, folder, said = material()
    masking = P.Masking.of(tokenizer)
    same_loss(folder, masking, ids)
    named = {f"{k}_token": f"[{k.upper()}]" for k in ("pad", "unk", "cls", "sep", "mask")}
    collate = DataCollatorForLanguageModeling(
        BertTokenizerFast(vocab=f"{folder}/vocab.txt", **named), mlm_probability=0.15)

    def ours(ids):
        model = BertForPreTraining.from_pretrained(folder)
        history = P.pretrain(model, P.Rows(ids), masking, batch_size=BATCH, lr=1e-3)
        return np.array(history.losses)

    def check(ours, peer):
        assert len(ours) == len(peer) and abs(ours[0] - peer[0]) < 0.15
        assert abs(ours.mean() - peer.mean()) < 0.15, f"{ours.mean():.2f} and {peer.mean():.2f}"
        return f"mean loss {ours.mean():.2f} against {peer.mean():.2f}; equal on one batch"

    said = f"{said.split(',')[0]}, {ids.size:,} tokens, {LAYERS} layers of {WIDTH}, V {VOCAB:,}"
    return Case(said, (ids,), (ids[:BATCH],), ours, lambda ids: theirs(folder, ids, collate), check)


BENCHMARKS = {
    "pretrain": Benchmark(lambda: training(CORES), (1.3, None), CORES, "transformers"),
}
