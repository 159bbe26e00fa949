"""The encoder: raw texts to vectors."""

from benches.common import CORES, Benchmark, Case, texts_only


def encoding(threads):
    import torch
    from sentence_transformers import SentenceTransformer

    from ftnb.bert import MINILM, Encoder, find_checkpoint
    from ftnb.core import set_threads

    set_threads(threads)
    assert torch.get_num_threads() == threads
    encoder = Encoder()
    theirs = SentenceTransformer(str(find_checkpoint(MINILM)), device="cpu")
    texts, said = texts_only(2_000)

    def check(a, b):
        worst = float(abs(a - b).max())
        assert a.shape == b.shape and worst < 1e-5, f"vectors differ by {worst:.1e}"
        return f"vectors within {worst:.0e}"

    return Case(said, (texts,), (texts[:16],), encoder.encode,
                lambda texts: theirs.encode(texts, show_progress_bar=False,
                                            normalize_embeddings=True), check)


BENCHMARKS = {
    "encoding": Benchmark(lambda: encoding(CORES), (1.2, None), CORES,
                          "sentence-transformers transformers"),
}
