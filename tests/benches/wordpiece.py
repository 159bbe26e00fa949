"""Raw texts to numbers of pieces: BERT's tokenizer, ours and the field's."""

import itertools

import numpy as np

from benches.common import CORES, Benchmark, Case, texts_only


def pieces(threads):
    "All ids of raw texts. The peer's work ends with its own objects, ours with two arrays."
    from tokenizers import BertWordPieceTokenizer

    from ftnb.wordpiece import WordPiece, english_vocabulary

    texts, said = texts_only()
    own = WordPiece.from_vocab(english_vocabulary())
    theirs = BertWordPieceTokenizer(str(english_vocabulary()), lowercase=True)._tokenizer

    def peer(texts):
        return theirs.encode_batch_fast(texts, add_special_tokens=False)

    def same(ours, peer):
        ids, first = ours
        expected = [encoding.ids for encoding in peer]
        assert np.array_equal(np.diff(first), list(map(len, expected))), "lengths"
        assert np.array_equal(ids, list(itertools.chain(*expected))), "ids"
        return f"same {len(ids):,} ids"

    return Case(said, (texts,), (texts[:100],), lambda t: own.encode_batch(t, threads=threads),
                peer, same)


BENCHMARKS = {
    "wordpiece": Benchmark(lambda: pieces(1), (5.0, None), 1, "tokenizers"),
    "wordpiece-2-threads": Benchmark(lambda: pieces(CORES), (5.0, None), CORES, "tokenizers"),
}
