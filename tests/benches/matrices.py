"""The ceiling of an encoder: its matrix products alone, at its own shapes."""

import numpy as np
import torch
from torch import nn


def shapes(lengths, batch_size=None, tokens=2048) -> list[tuple[int, int]]:
    "(texts, tokens) of batches of like length, as the encoder makes them or of a fixed size."
    from ftnb.bert import batches_by_length

    lengths = np.asarray(lengths)
    if batch_size is None:
        batches = batches_by_length(lengths, tokens)
    else:
        order = np.argsort(-lengths, kind="stable")
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    return [(len(rows), int(lengths[rows].max())) for rows in batches]


@torch.inference_mode()
def products(body, batches: list[tuple[int, int]], backward: bool = False):
    "Every linear layer and both products of attention, for each batch; with `backward` 3 for 1."
    weights = [m.weight.detach() for m in body.layers.modules() if isinstance(m, nn.Linear)]
    widest = max(max(w.shape) for w in weights)
    rows = torch.randn(max(n * t for n, t in batches), widest)
    heads, width = body.config.num_attention_heads, body.config.hidden_size
    part = width // heads
    for n, t in batches:
        for w in weights:
            x = rows[: n * t, : w.shape[1]]
            y = nn.functional.linear(x, w)
            if backward:
                y @ w  # the gradient of x
                y.T @ x  # and that of w
        q = rows[: n * t, :width].reshape(n, t, heads, part).transpose(1, 2)
        for _ in body.layers:
            scores = q @ q.transpose(2, 3)
            scores @ q
            if backward:
                for _ in range(2):
                    scores @ q
                    q @ q.transpose(2, 3)


def ceiling(body, lengths, backward=False, batch_size=None):
    "A side of a benchmark: it does the products and nothing else."
    made = shapes(lengths, batch_size)
    return lambda *data: products(body, made, backward)
