"""A BERT of a few thousand random weights with a vocabulary of its own: seconds, no download."""

import json

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from ftnb.bert import Bert, BertConfig

MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "the street lamp is broken", "no light in our street", "the lamp flickers at night",
    "it is dark, the light is out", "the bus is late again", "no bus came this morning",
    "the tram and the bus are full", "our bus stop is gone",
    "the bin is full", "nobody took the bin",
    "waste lies by the river", "please empty the waste bin",
]  # fmt: skip
LABELS = ["light"] * 4 + ["bus"] * 4 + ["waste"] * 4


def tiny_tokenizer():
    words = sorted({w.strip(",") for t in TEXTS for w in t.split()})
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [*MARKS, ",", *letters, *("##" + c for c in letters), *words]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def tiny_config(**changes):
    sizes = dict(vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    sizes |= dict(intermediate_size=64, max_position_embeddings=64, initializer_range=0.2)
    return BertConfig(**sizes | changes)


def tiny_checkpoint(folder, seed=0, **changes):
    "Write a checkpoint with random weights; returns its folder."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Bert(tiny_config(**changes))
        for name, p in model.named_parameters():
            if p.ndim == 1:  # biases and norms, which start at 0 and 1, must be told apart too
                torch.nn.init.normal_(p, mean=float("norm.weight" in name), std=0.1)
    model.save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.enable_padding(length=48)  # as published files do: must be switched off
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    return folder
