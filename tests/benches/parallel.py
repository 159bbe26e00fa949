"""The training loop in two processes against one, a thread each, on the same batches.

The processes are started and warm before the clock is; each trains when it is told to.
"""

import atexit
import os
import secrets
import subprocess
import sys
from multiprocessing.connection import Client, Listener
from pathlib import Path

from benches.common import Benchmark, Case

DIM, LAYERS, ROWS = 128, 4, 64  # width and depth of the network; rows of a step
STEPS = 6


def serve(port: int, key: bytes):
    "A worker: trains as many steps as it is told, and answers with the losses."
    import torch
    import torch.distributed as dist

    from ftnb.parallel import ByteClassifier, Calls, cross_entropy
    from ftnb.train import fit

    torch.set_num_threads(1)
    if int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("gloo")
    calls = Calls(STEPS * ROWS)
    with Client(("127.0.0.1", port), authkey=key) as boss:
        boss.send("ready")
        while steps := boss.recv():
            torch.manual_seed(0)
            model = ByteClassifier(calls.classes, DIM, LAYERS)
            few = Few(calls, steps * ROWS)
            boss.send(fit(model, few, cross_entropy, epochs=1, batch_size=ROWS).losses)


class Few:
    "The first rows of a data set."

    def __init__(self, whole, n):
        self.batch, self.n = whole.batch, n

    def __len__(self):
        return self.n


def team(processes: int):
    "Start workers that train together; a function that makes them train."
    key, folder = secrets.token_bytes(16), Path(__file__).resolve().parent.parent
    with Listener(("127.0.0.1", 0), authkey=key) as door, Listener(("127.0.0.1", 0)) as free:
        meet = free.address[1]
        free.close()
        shared = dict(WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(meet))
        shared["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        command = [sys.executable, "-m", "benches.parallel", str(door.address[1]), key.hex()]
        started = [subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank)})
                   for rank in range(processes)]
        workers = [door.accept() for _ in started]
    for process in started:
        atexit.register(process.terminate)
    assert [worker.recv() for worker in workers] == ["ready"] * processes

    def train(steps: int) -> list[list[float]]:  # the losses, as each process saw them
        for worker in workers:
            worker.send(steps)
        return [worker.recv() for worker in workers]

    return train


def data_parallel():
    def same(ours, peer):
        assert ours[0] == ours[1], "the two processes saw other losses"
        worst = max(abs(a - b) for a, b in zip(ours[0], peer[0], strict=True))
        assert worst < 1e-5, f"losses differ by {worst:.1e}"
        return f"{len(ours[0])} losses within {worst:.0e}"

    said = f"hotline, {STEPS} steps of {ROWS} calls as bytes; encoder {LAYERS} layers, {DIM} wide"
    return Case(said, (STEPS,), (1,), team(2), team(1), same)


BENCHMARKS = {"two-processes": Benchmark(data_parallel, (1.7, None), 1, "torch")}

if __name__ == "__main__":
    serve(int(sys.argv[1]), bytes.fromhex(sys.argv[2]))
