"""The encoder: raw texts to vectors, and from the start of a process to its first vector."""

import json
import subprocess
import sys

import numpy as np

from benches.common import CORES, Benchmark, Case, texts_only
from benches.matrices import ceiling

OURS = """import sys, json
from ftnb.bert import Encoder
print(json.dumps(Encoder(sys.argv[1]).encode([sys.argv[2]])[0].tolist()))"""
PEER = """import sys, json, torch
from transformers import AutoModel, AutoTokenizer
tokenizer, model = (kind.from_pretrained(sys.argv[1]) for kind in (AutoTokenizer, AutoModel))
with torch.inference_mode():
    vector = model(**tokenizer([sys.argv[2]], return_tensors="pt")).last_hidden_state[0].mean(0)
print(json.dumps((vector / vector.norm()).tolist()))"""


def close(a, b):
    worst = float(abs(a - b).max())
    assert a.shape == b.shape and worst < 1e-5, f"vectors differ by {worst:.1e}"
    return f"vectors within {worst:.0e}"


def encoding(threads):
    import torch
    from sentence_transformers import SentenceTransformer

    from ftnb.bert import MINILM, Encoder, find_checkpoint, token_ids
    from ftnb.core import set_threads

    set_threads(threads)
    assert torch.get_num_threads() == threads
    encoder = Encoder()
    theirs = SentenceTransformer(str(find_checkpoint(MINILM)), device="cpu")
    texts, said = texts_only(2_000)
    lengths = [len(row) for row in token_ids(texts, encoder.tokenizer)]

    return Case(said, (texts,), (texts[:16],), encoder.encode,
                lambda texts: theirs.encode(texts, show_progress_bar=False,
                                            normalize_embeddings=True), close,
                ceiling=ceiling(encoder.bert, lengths))


def start():
    "One text, each time in a process of its own that imports, loads and encodes."
    from ftnb.bert import MINILM, find_checkpoint

    folder = str(find_checkpoint(MINILM))

    def process(program):
        def run(text):
            command = [sys.executable, "-c", program, folder, text]
            ran = subprocess.run(command, check=True, capture_output=True, text=True)
            return np.array(json.loads(ran.stdout.splitlines()[-1]))

        return run

    text = "The street lamp in front of our house has been broken for two weeks."
    data = (text,)
    return Case("one text, a new process", data, data, process(OURS), process(PEER), close)


BENCHMARKS = {
    "encoding": Benchmark(lambda: encoding(CORES), (1.5, None), CORES,
                          "sentence-transformers transformers"),
    "start": Benchmark(start, (3.0, None), CORES, "transformers"),
}
