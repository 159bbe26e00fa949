"""Characters: the first convolution as a look-up, and the small network of Zhang et al. 2015."""

import contextlib
import ctypes

import numpy as np

from benches.common import CORES, Benchmark, Case, texts_only


def symbols(n):
    "Full texts of 1,014 characters, cut from the news run together: no padding."
    from ftnb.chars import quantize

    texts, said = texts_only()
    running = " ".join(texts)[: n * 1014]
    cut = [running[i : i + 1014] for i in range(0, len(running), 1014)]
    return quantize(cut), f"{said.split(',')[0]}, {len(cut)} x 1,014 characters"


def one_hot_convolution(conv, x):
    "The layer as it is usually written; scatter is quicker here than `F.one_hot`."
    import torch

    wide = torch.zeros(len(x), conv.in_channels + 1, x.shape[1])
    return conv(wide.scatter_(1, x.long()[:, None], 1.0)[:, 1:])


def one_hot_net():
    import torch.nn.functional as F

    from ftnb.chars import POOL, ZhangNet

    class OneHot(ZhangNet):
        def first(self, x):
            return F.max_pool1d(F.relu(one_hot_convolution(self.convs[0], x)), POOL)

    return OneHot


def keep_memory():
    """Let the process keep freed memory (Linux), on both sides.

    Else each turn begins with page faults for an output of 33 MB, which take as long as the layer.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for parameter in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            libc.mallopt(parameter, 1 << 30)


def close(ours, peer):
    "Every tensor within rounding of its counterpart, relative to the largest number in it."
    worst = 0.0
    for a, b in zip(ours, peer, strict=True):
        assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
        worst = max(worst, float((a - b).abs().max() / b.abs().max()))
    assert worst < 1e-4, f"they differ by {worst:.1e} of the largest"
    return f"gradients within {worst:.0e}"


def first_layer(threads):
    "70 symbols, kernel 7, 256 filters, forward and backward: the gradients of weights and bias."
    import torch
    import torch.nn.functional as F

    from ftnb.chars import lookup, zhang2015

    keep_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    (x, said), conv = symbols(32), zhang2015("small").convs[0]
    torch.nn.init.normal_(conv.bias)
    slopes = torch.randn(len(x), 1008, 256)  # position after position, as the look-up writes
    turned = slopes.transpose(1, 2).contiguous()  # filter after filter, as the convolution writes

    def look_up(x):
        table = F.pad(conv.weight.permute(2, 1, 0), (0, 0, 1, 0))
        table = torch.cat([table[:1] + conv.bias, table[1:]])
        return lookup(x, table.flatten(0, 1), len(table)).transpose(1, 2)

    def layer(first, slope):
        def run(x):
            conv.zero_grad()
            first(x).backward(slope[: len(x)])
            return [p.grad.clone() for p in conv.parameters()]
        return run  # fmt: skip

    torch.testing.assert_close(look_up(x), one_hot_convolution(conv, x), rtol=1e-4, atol=1e-5)
    return Case(said, (x,), (x[:1],), layer(look_up, slopes.transpose(1, 2)),
                layer(lambda x: one_hot_convolution(conv, x), turned), close)


def one_epoch(threads):
    "The small network, 64 texts in batches of 16, by the training loop with SGD as in the paper."
    import torch
    import torch.nn.functional as F

    from ftnb.chars import ZhangNet
    from ftnb.train import fit

    torch.set_num_threads(threads)
    x, said = symbols(64)

    class Texts:
        def __init__(self, n):
            self.x, self.labels = x[:n], torch.arange(n) % 4

        def __len__(self):
            return len(self.x)

        def batch(self, rows):
            return self.x[rows], self.labels[rows]

    def trained(kind):
        def run(n):
            torch.manual_seed(0)
            net = kind(4, 256, 1024, 1014, 0.05)
            history = fit(net, Texts(n), lambda net, b: F.cross_entropy(net(b[0]), b[1]),
                          epochs=1, batch_size=16, optimizer="sgd", lr=0.001,
                          weight_decay=0, clip=None)
            return np.array(history.losses)
        return run  # fmt: skip

    def check(a, b):
        assert np.allclose(a, b, rtol=1e-3), f"losses {a} and {b}"
        return f"the same losses, {a[0]:.3f} to {a[-1]:.3f}"

    return Case(said, (64,), (16,), trained(ZhangNet), trained(one_hot_net()), check)


BENCHMARKS = {
    "char-lookup": Benchmark(lambda: first_layer(1), (10.0, None), 1, "torch"),
    "char-lookup-2-threads": Benchmark(lambda: first_layer(CORES), (10.0, None), CORES, "torch"),
    "zhang-epoch": Benchmark(lambda: one_epoch(1), (1.3, None), 1, "torch"),
    "zhang-epoch-2-threads": Benchmark(lambda: one_epoch(CORES), (1.3, None), CORES, "torch"),
}
