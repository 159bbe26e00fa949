"""What the processes of tests/test_parallel.py do; each function returns JSON values."""

import hashlib
import os
import signal
import time

import numpy as np
import torch
import torch.distributed as dist

from ftnb.core import UserError
from ftnb.train import TrainingError, fit


class Rows:
    "Points with labels; a generator of noise if asked."

    def __init__(self, n, noise=False):
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g)
        if noise:
            self.generator = np.random.default_rng([3, dist.get_rank() if alive() else 0])

    def __len__(self):
        return len(self.y)

    def batch(self, rows):
        x = self.x[rows]
        if hasattr(self, "generator"):
            x = x + 0.1 * torch.tensor(self.generator.normal(size=x.shape), dtype=x.dtype)
        return x, self.y[rows]


def alive():
    return dist.is_initialized()


def network(seed=1, dropout=0.0, batch_norm=False):
    torch.manual_seed(seed)
    middle = [torch.nn.BatchNorm1d(16)] if batch_norm else []
    return torch.nn.Sequential(torch.nn.Linear(6, 16), *middle, torch.nn.ReLU(),
                               torch.nn.Dropout(dropout), torch.nn.Linear(16, 3))  # fmt: skip


def loss_of(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def digest(model):
    held = model.state_dict().values()
    whole = (t.full_tensor() if hasattr(t, "full_tensor") else t for t in held)
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in whole)).hexdigest()


def sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))


def train(n=29, shard=False, seed=None, stop=None, dropout=0.0, batch_norm=False, noise=False,
          validate=False, **more):  # fmt: skip
    "Losses, weights and validations; every process starts with other weights unless sharded."
    rank = dist.get_rank() if alive() else 0
    rows, calls = Rows(n, noise), [0]
    model = network(rank if seed is None else seed, dropout, batch_norm)
    model = sharded(model) if shard else model

    def loss(model, batch):
        calls[0] += 1
        if calls[0] == stop:
            raise KeyError("stop")
        return loss_of(model, batch)

    def score(model):  # worse with every epoch, and another in each process: the first one's counts
        return {"score": -calls[0] - 1000 * rank}

    settings = dict(epochs=2, batch_size=8, lr=0.02, seed=5) | more
    try:
        history = fit(model, rows, loss, validate=score if validate else None, **settings)
    except KeyError:
        return "stopped"
    return dict(losses=history.losses, digest=digest(model), validations=history.validations,
                stopped=history.stopped_early,
                weights=[float(t.sum()) for t in model.state_dict().values()
                         if not hasattr(t, "full_tensor")])  # fmt: skip


def resumed(folder, stop, **more):
    "Broken off in every process at the same step, then again from the checkpoint; and undisturbed."
    keep = dict(checkpoint=folder, checkpoint_every=1)
    assert train(stop=stop, **keep, **more) == "stopped"
    dist.barrier()
    return train(**keep, **more), train(**more)


def nan_at_one():
    "One process alone sees a loss that is not a number: both must stop, and say so."
    rows = Rows(16)
    rows.x[int(np.random.default_rng([5, 0]).permutation(16)[1])] = float("nan")  # of the second
    try:
        fit(network(), rows, loss_of, epochs=1, batch_size=8, seed=5)
    except TrainingError as e:
        return dict(step=e.step, rows=len(e.rows), said=str(e))


def refused(kind):
    "The message for a model that cannot be trained together."
    try:
        if kind == "sparse":
            model = torch.nn.EmbeddingBag(5, 3, sparse=True)
            fit(model, Rows(8), loss_of, epochs=1, optimizer="sparse_adam")
        elif kind == "fp16":
            fit(sharded(network()), Rows(8), loss_of, epochs=1, autocast="fp16")
        else:
            from torch.distributed.fsdp import fully_shard

            model = network()
            fully_shard(model[0])
            fit(model, Rows(8), loss_of, epochs=1)
    except UserError as e:
        return str(e)


def unused(n=12):
    "A weight that only one process's rows need, and one that no row needs."
    torch.manual_seed(0)
    model = torch.nn.ParameterList([torch.ones(3), torch.ones(3), torch.ones(3)])
    rows = Rows(n)

    def loss(model, batch):
        here = not alive() or dist.get_rank() == 1
        return (model[0] * batch[0][:, :3]).mean() + (model[1].sum() if here else 0)

    fit(model, rows, loss, epochs=2, batch_size=6, lr=0.1, weight_decay=0.0)
    return [p.tolist() for p in model]


def pressed():
    "Ctrl-C reaches the second process only: both stop after the same step."
    steps = [0]

    def loss(model, batch):
        steps[0] += 1
        if steps[0] == 2 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
        return loss_of(model, batch)

    try:
        fit(network(), Rows(64), loss, epochs=1, batch_size=8, checkpoint=os.environ["FTNB_STOP"])
    except KeyboardInterrupt:
        return steps[0]


def fails(rank=1):
    if dist.get_rank() == rank:
        raise UserError("this one cannot go on")
    dist.barrier()


def sleeps(seconds):
    time.sleep(seconds)


def ring_refuses():
    from ftnb.parallel import ring_all_reduce

    try:
        ring_all_reduce(torch.zeros(2, 2))
    except UserError as e:
        return str(e)
