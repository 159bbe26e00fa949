"""Fine-tuning of the whole encoder: texts to a trained classifier, one pass."""

import tempfile

import numpy as np
import torch
from torch import nn

from benches.common import CORES, Benchmark, Case, news
from benches.matrices import ceiling

N, BATCH, RATE = 256, 32, 1e-4


class Peer(nn.Module):
    "The library's encoder under the same head: mean of the token vectors, dropout, linear."

    def __init__(self, folder, n_classes, seed):
        from transformers import AutoModel

        super().__init__()
        self.body, self.dropout = AutoModel.from_pretrained(folder), nn.Dropout(0.1)
        self.head = nn.Linear(self.body.config.hidden_size, n_classes)
        nn.init.normal_(self.head.weight, std=0.02, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids, attention_mask, labels=None, token_type_ids=None):
        states = self.body(input_ids, attention_mask, token_type_ids).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        logits = self.head(self.dropout((states * mask).sum(1) / mask.sum(1)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def theirs(folder, texts, y, n_classes, seed=0):
    "Trainer with dynamic padding; the library's defaults for AdamW, schedule and clipping."
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    tokenizer = AutoTokenizer.from_pretrained(folder)
    coded = tokenizer(texts, truncation=True, max_length=128)
    rows = [{"input_ids": i, "attention_mask": m, "labels": int(k)}
            for i, m, k in zip(coded["input_ids"], coded["attention_mask"], y, strict=True)]
    arguments = TrainingArguments(
        tempfile.mkdtemp(), per_device_train_batch_size=BATCH, num_train_epochs=1,
        learning_rate=RATE, weight_decay=0.01, warmup_steps=0.1, lr_scheduler_type="linear",
        max_grad_norm=1.0, report_to="none", save_strategy="no", logging_strategy="no",
        disable_tqdm=True, use_cpu=True, seed=seed)  # fmt: skip
    trainer = Trainer(Peer(folder, n_classes, seed), arguments, train_dataset=rows,
                      data_collator=DataCollatorWithPadding(tokenizer))  # fmt: skip
    return trainer.train().training_loss


def same_loss(folder, texts, y, n_classes):
    "The same weights and the same batch: one number, in float32."
    from ftnb.bert import load_tokenizer
    from ftnb.finetune import SequenceClassifier, TokenRows, classifier_loss, load_body, token_ids

    data = TokenRows(token_ids(texts, load_tokenizer(folder, 128)), np.asarray(y))
    batch = data.batch(np.arange(len(texts)))
    mask = torch.ones_like(batch["ids"]) if batch["mask"] is None else batch["mask"].long()
    with torch.no_grad():
        ours = classifier_loss(SequenceClassifier(load_body(folder), n_classes, 0).eval(), batch)
        peer = Peer(folder, n_classes, 0).eval()(batch["ids"], mask, batch["y"])["loss"]
    torch.testing.assert_close(ours, peer, atol=1e-5, rtol=1e-5)


def step(threads):
    from ftnb.bert import MINILM, find_checkpoint, load_tokenizer
    from ftnb.core import set_threads
    from ftnb.finetune import TransformerClassifier, load_body, token_ids

    set_threads(threads)
    folder = find_checkpoint(MINILM)
    (texts, labels, *_), said = news()
    chosen = np.random.default_rng(0).permutation(len(texts))[:N]
    texts, labels = [texts[i] for i in chosen], labels[chosen]
    classes, y = np.unique(labels, return_inverse=True)
    same_loss(folder, texts[:BATCH], y[:BATCH], len(classes))

    def ours(texts, y):
        model = TransformerClassifier(method="full", start="random", validation=0, epochs=1,
                                      lr=RATE, batch_size=BATCH, threads=threads, cache=False,
                                      random_state=0)  # fmt: skip
        return float(np.mean(model.fit(texts, y).history_.losses))

    def check(ours, peer):
        assert abs(ours - peer) < 0.1, f"mean loss {ours:.3f} and {peer:.3f}"
        return f"mean loss {ours:.2f} against {peer:.2f}; equal on one batch"

    lengths = [len(row) for row in token_ids(texts, load_tokenizer(folder, 128))]
    return Case(f"{said.split(',')[0]}, {N} texts, batches of {BATCH}, {np.mean(lengths):.0f} "
                "tokens a text", (texts, y), (texts[:BATCH], y[:BATCH]), ours,
                lambda texts, y: theirs(folder, texts, y, len(classes)), check,
                ceiling=ceiling(load_body(folder), lengths, True, BATCH))  # fmt: skip


BENCHMARKS = {
    "finetune-step": Benchmark(lambda: step(CORES), (1.3, None), CORES, "transformers accelerate"),
}
