"""The training loop under fire: killed, interrupted, spoiled files, settings that cannot work."""

import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
import torch

import ftnb.train as train_module
from ftnb.core import UserError
from ftnb.train import (
    OPTIMIZERS,
    TrainingError,
    clip_gradients,
    epoch_batches,
    fit,
    lr_factor,
    make_optimizers,
    read_checkpoint,
    to_device,
)

SCRIPT = """
import sys, time
import numpy as np, torch
from ftnb.train import fit

torch.set_num_threads(1)

class Rows:
    def __init__(self):
        g = torch.Generator().manual_seed(0)
        self.x, self.y = torch.randn(100, 6, generator=g), torch.randint(3, (100,), generator=g)
        self.generator = np.random.default_rng(3)
    def __len__(self):
        return len(self.y)
    def batch(self, rows):
        noise = torch.tensor(self.generator.normal(size=(len(rows), 6)), dtype=torch.float32)
        return {"x": self.x[rows] + 0.1 * noise, "y": self.y[rows]}

def network():
    torch.manual_seed(1)
    parts = torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.3)
    return torch.nn.Sequential(*parts, torch.nn.Linear(16, 3))

def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])

def train(folder=None, loss=loss, every=1, **more):
    model, rows = network(), Rows()
    validate = lambda m: {"score": -loss(m, {"x": rows.x, "y": rows.y}).item()}
    settings = dict(epochs=6, batch_size=8, lr=0.02, seed=5, validate=validate, patience=3) | more
    history = fit(model, rows, loss, checkpoint=folder, checkpoint_every=every, **settings)
    return model, history
"""
KILLED = """
def slow(model, batch):
    if model.training:
        print("step", flush=True)
        time.sleep(0.005)
    return loss(model, batch)

train(sys.argv[1], slow)
print("end", flush=True)
"""
toy = {}
exec(SCRIPT, toy)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def alone():
    torch.set_num_threads(1)
    return toy["train"]()


def same(one, two):
    "Weights, buffers and histories equal to the last bit."
    (model1, h1), (model2, h2) = one, two
    s1, s2 = model1.state_dict(), model2.state_dict()
    assert s1.keys() == s2.keys() and all(torch.equal(s1[k], s2[k]) for k in s1)
    assert (h1.steps, h1.losses, h1.lrs) == (h2.steps, h2.losses, h2.lrs)
    for name in ("validations", "best", "stopped_early"):
        assert getattr(h1, name) == getattr(h2, name)


def start(folder, code):
    return subprocess.Popen([sys.executable, "-c", SCRIPT + textwrap.dedent(code), str(folder)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def test_killed_at_a_random_step_and_resumed_to_the_same_bits(tmp_path, alone):
    steps = random.Random().randint(2, 30)  # another step each time the tests run
    process = start(tmp_path, KILLED)
    for _ in range(steps):
        assert process.stdout.readline() == "step\n", process.stderr.read()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, about = read_checkpoint(tmp_path / "last.safetensors")
    assert about["step"] >= steps - 1, f"killed in step {steps}"
    same(toy["train"](tmp_path), alone)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.safetensors", "last.safetensors"]


def test_ctrl_c_writes_a_checkpoint_and_is_raised(tmp_path, alone):
    process = start(tmp_path, KILLED.replace("train(sys.argv[1], slow)",
                                             "train(sys.argv[1], slow, every=None)"))
    for _ in range(5):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "end" not in out and "KeyboardInterrupt" in err
    _, about = read_checkpoint(tmp_path / "last.safetensors")
    assert about["step"] >= 4 and about["epoch"] == 0 and about["position"] == about["step"]
    same(toy["train"](tmp_path, every=None), alone)


class Stop(Exception):
    pass


def broken_at(call):
    left = [call]

    def loss(model, batch):
        left[0] -= model.training
        if left[0] == 0:
            raise Stop
        return toy["loss"](model, batch)

    return loss


@pytest.mark.parametrize("pause", [1e-9, 0.01, 1000.0])
def test_a_runner_keeps_checkpoints_without_a_word_in_the_notebook(
    tmp_path, alone, monkeypatch, pause
):
    monkeypatch.setenv("FTNB_CHECKPOINTS", str(tmp_path))
    monkeypatch.setattr(train_module, "KEPT_EVERY", pause)
    monkeypatch.setattr(train_module, "_FITS", itertools.count(1))
    same(toy["train"](None, every=None), alone)
    with pytest.raises(Stop):  # of two trainings in one process the second is broken off
        toy["train"](None, broken_at(40), every=None)
    monkeypatch.setattr(train_module, "_FITS", itertools.count(1))
    same(toy["train"](None, every=None), alone)
    same(toy["train"](None, every=None), alone)
    kept = sorted(p.name[:4] for p in tmp_path.iterdir() if (p / "last.safetensors").exists())
    assert kept == ([] if pause == 1000.0 else ["0001", "0002"])


@pytest.mark.parametrize("call", [1, 2, 13, 14, 40])
@pytest.mark.parametrize("every", [None, 1, 5])
def test_broken_anywhere_and_resumed(tmp_path, alone, call, every):
    with pytest.raises(Stop):
        toy["train"](tmp_path, broken_at(call), every)
    same(toy["train"](tmp_path, every=every), alone)


def test_broken_while_validating(tmp_path, alone):
    calls = []

    def validate(model):
        calls.append(1)
        if len(calls) == 2:
            raise Stop
        rows = toy["Rows"]()
        return {"score": -toy["loss"](model, {"x": rows.x, "y": rows.y}).item()}

    with pytest.raises(Stop):
        toy["train"](tmp_path, validate=validate)
    same(toy["train"](tmp_path), alone)


def test_a_finished_run_is_not_trained_again(tmp_path, alone):
    toy["train"](tmp_path)
    same(toy["train"](tmp_path, broken_at(1)), alone)
    with pytest.raises(Stop):
        toy["train"](tmp_path, broken_at(1), resume=False)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_optimizer_resumes(tmp_path, name, accumulate):
    class Bags:
        def __len__(self):
            return 40

        def batch(self, rows):
            rows = torch.as_tensor(rows)
            return torch.stack([rows % 7, rows % 11], 1), rows % 2

    def train(folder, call=None):
        torch.manual_seed(0)
        bag = torch.nn.EmbeddingBag(11, 4, sparse=name in ("sparse_adam", "adagrad"))
        model, left = torch.nn.Sequential(bag, torch.nn.Dropout(0.1), torch.nn.Linear(4, 2)), [call]

        def loss(model, batch):
            left[0] = left[0] and left[0] - 1
            if left[0] == 0:
                raise Stop
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

        settings = dict(epochs=3, batch_size=5, lr=0.1, optimizer=name, accumulate=accumulate)
        history = fit(model, Bags(), loss, checkpoint=folder, checkpoint_every=1, **settings)
        return model, history

    with pytest.raises(Stop):
        train(tmp_path / "broken", call=14)
    same(train(tmp_path / "broken"), train(tmp_path / "whole"))


def test_tied_weights_are_saved_once_and_resume(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table = torch.nn.Embedding(9, 4)
            self.out = torch.nn.Linear(4, 9)
            self.out.weight = self.table.weight

        def forward(self, x):
            return self.out(self.table(x))

    class Next:
        def __len__(self):
            return 9

        def batch(self, rows):
            return torch.as_tensor(rows), torch.as_tensor((rows + 1) % 9)

    def train(folder=None, call=0):
        model, left = Tied(), [call]

        def loss(model, batch):
            left[0] -= 1
            if left[0] == 0:
                raise Stop
            return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

        return model, fit(model, Next(), loss, epochs=4, batch_size=3, checkpoint=folder)

    with pytest.raises(Stop):
        train(tmp_path, 8)
    tensors, _ = read_checkpoint(tmp_path / "last.safetensors")
    assert sum(k.startswith("model.") for k in tensors) == 2
    model, history = train(tmp_path)
    assert model.out.weight is model.table.weight
    same((model, history), train())


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    toy["train"](tmp_path, epochs=1)
    for change in ({"lr": 0.01}, {"batch_size": 9}, {"seed": 6}, {"epochs": 2}, {"clip": None}):
        with pytest.raises(UserError, match=next(iter(change))) as e:
            toy["train"](tmp_path, **({"epochs": 1} | change))
        assert "\n" not in str(e.value)


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 99])
def test_a_damaged_checkpoint_is_named(tmp_path, spoil):
    toy["train"](tmp_path, epochs=1)
    path = tmp_path / "last.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match="last.safetensors") as e:
        toy["train"](tmp_path, epochs=1)
    assert "delete it" in str(e.value)


def test_a_missing_best_file_is_named(tmp_path):
    toy["train"](tmp_path, epochs=1)
    (tmp_path / "best.safetensors").unlink()
    with pytest.raises(UserError, match="best.safetensors"):
        toy["train"](tmp_path, epochs=1)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "last.safetensors")
    with pytest.raises(UserError, match="last.safetensors"):
        toy["train"](tmp_path, epochs=1)


def test_litter_of_a_killed_writer_is_swept(tmp_path):
    (tmp_path / ".last.safetensors.abc.safetensors").write_bytes(b"half")
    toy["train"](tmp_path, epochs=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.safetensors", "last.safetensors"]


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path):
    left = [10]

    def loss(model, batch):
        left[0] -= 1
        return toy["loss"](model, batch) * (float("nan") if left[0] <= 0 else 1)

    with pytest.raises(TrainingError, match="step 10 ") as e:
        toy["train"](tmp_path, loss)
    assert e.value.step == 10 and len(e.value.rows) == 8 and e.value.lr > 0
    assert str(tmp_path) in str(e.value) and "\n" not in str(e.value)
    tensors, about = read_checkpoint(tmp_path / "last.safetensors")
    assert about["step"] == 9
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_an_infinite_gradient_stops_before_the_update(tmp_path):
    class Root(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(2))

    model = Root()
    with pytest.raises(TrainingError, match="gradient"):
        fit(model, toy["Rows"](), lambda m, b: m.w.sqrt().sum(), epochs=1)
    assert torch.equal(model.w.detach(), torch.zeros(2))
    with pytest.raises(TrainingError, match="weight"):
        fit(model, toy["Rows"](), lambda m, b: m.w.sqrt().sum(), epochs=1, clip=None, warmup=0,
            batch_size=100, checkpoint=tmp_path, checkpoint_every=1)  # fmt: skip
    assert not (tmp_path / "last.safetensors").exists()


@pytest.mark.parametrize("bad", [
    {"epochs": 0}, {"batch_size": 0}, {"accumulate": 0}, {"lr": 0}, {"lr": float("nan")},
    {"optimizer": "adamv"}, {"schedule": "sine"}, {"warmup": 2}, {"clip": 0}, {"autocast": "fp8"},
    {"lengths": [1, 2]}, {"patience": 2, "validate": None}, {"device": "abacus"},
    {"optimizer": "sparse_adam"}, {"validate": lambda m: {"accuracy": 1}},
    {"patience": 0, "validate": lambda m: {"loss": 1}}, {"every": 0}, {"seed": -1},
    {"weight_decay": -0.1}, {"weight_decay": float("nan")}, {"lr": float("inf")},
])  # fmt: skip
def test_settings_that_cannot_work(bad):
    with pytest.raises(UserError) as e:
        toy["train"](**bad)
    assert "\n" not in str(e.value) and next(iter(bad)) in str(e.value)


def test_no_rows_and_nothing_to_train():
    rows = toy["Rows"]()
    rows.y = rows.y[:0]
    with pytest.raises(UserError, match="rows"):
        fit(toy["network"](), rows, toy["loss"], epochs=1)
    frozen = toy["network"]().requires_grad_(False)
    with pytest.raises(UserError, match="frozen"):
        fit(frozen, toy["Rows"](), toy["loss"], epochs=1)


def test_frozen_weights_stay():
    model = toy["network"]()
    model[0].requires_grad_(False)
    before = [p.clone() for p in model[0].parameters()]
    fit(model, toy["Rows"](), toy["loss"], epochs=1)
    assert all(map(torch.equal, before, model[0].parameters()))


def test_the_callers_random_state_is_left_alone():
    model, before = toy["network"](), torch.get_rng_state()
    fit(model, toy["Rows"](), toy["loss"], epochs=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_works_in_a_thread_and_keeps_the_signal_handler(tmp_path, alone):
    before, found = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: found.append(toy["train"](tmp_path)))
    thread.start()
    thread.join()
    same(found[0], alone)
    toy["train"](tmp_path / "two", epochs=1)
    assert signal.getsignal(signal.SIGINT) is before


def test_nothing_is_printed_without_a_terminal(capfd):
    toy["train"](epochs=1)
    out, err = capfd.readouterr()
    assert out == "" and err == ""


def test_the_bar_is_drawn_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    toy["train"](epochs=1, desc="learning")
    assert "learning" in capsys.readouterr().err


def test_numpy_values_in_settings_and_scores_survive_a_checkpoint(tmp_path):
    validate = lambda m: {"score": np.float32(0.5), "per_class": np.array([0.25, 0.75])}  # noqa: E731
    settings = dict(epochs=np.int64(2), lr=np.float64(0.01), validate=validate, patience=None)
    _, one = toy["train"](tmp_path, **settings)
    _, two = toy["train"](tmp_path, **settings)
    assert one.validations == two.validations
    assert one.validations[0] == {"score": 0.5, "per_class": [0.25, 0.75], "epoch": 1, "step": 13}


def test_a_score_that_is_not_a_number_is_never_best():
    scores = iter([float("nan"), 0.1, float("nan"), float("nan"), 0.2, 0.3])
    _, history = toy["train"](validate=lambda m: {"score": next(scores)}, patience=2)
    assert history.best["score"] == 0.1 and history.stopped_early and len(history.validations) == 4


@pytest.mark.parametrize("call", [3, 20])
def test_fp16_resumes_with_its_loss_scale(tmp_path, call):
    with pytest.raises(Stop):
        toy["train"](tmp_path, broken_at(call), autocast="fp16")
    _, about = read_checkpoint(tmp_path / "last.safetensors")
    assert about["scaler"]["_growth_tracker"] == call - 1
    same(toy["train"](tmp_path, autocast="fp16"), toy["train"](autocast="fp16"))


def test_fp16_leaves_out_a_step_that_overflows_and_goes_on():
    seen = []

    def loss(model, batch):
        seen.append(model[0].weight.detach().clone())
        return toy["loss"](model, batch) * (1e36 if len(seen) == 4 else 1)

    _, history = toy["train"](None, loss, autocast="fp16", validate=None, patience=None)
    assert torch.equal(seen[3], seen[4]) and not torch.equal(seen[4], seen[5])
    assert len(history.losses) == 78 and np.isfinite(history.losses).all()


def test_fp16_names_gradients_that_no_scale_can_save():
    with pytest.raises(TrainingError, match="loss scale") as e:
        fit(toy["network"](), toy["Rows"](), lambda m, b: m[0].weight.mul(0).sqrt().sum(),
            epochs=9, autocast="fp16")  # fmt: skip
    assert "\n" not in str(e.value)


def scalars(folder):
    "Tag -> {step: value} of all event files, as TensorBoard's own reader gives them."
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found = {}
    for path in sorted(folder.iterdir()):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.tensor.float_val[0]
    return found


def test_tensorboard_reads_what_was_written(tmp_path, alone):
    validate = lambda m: {"score": 0.25, "loss": float("inf"), "table": [1, 2]}  # noqa: E731
    _, history = toy["train"](validate=validate, patience=None, log_dir=tmp_path / "board")
    found = scalars(tmp_path / "board")
    assert set(found) == {"loss", "lr", "validation/score", "validation/loss"}
    assert list(found["loss"]) == history.steps
    np.testing.assert_allclose(list(found["loss"].values()), history.losses, rtol=1e-6)
    np.testing.assert_allclose(list(found["lr"].values()), history.lrs, rtol=1e-6)
    assert found["validation/score"] == {step: 0.25 for step in range(13, 79, 13)}


def test_a_resumed_run_says_from_which_step_the_old_curve_is_void(tmp_path):
    board, folder = tmp_path / "board", tmp_path / "run"
    with pytest.raises(Stop):
        toy["train"](folder, broken_at(20), every=8, log_dir=board)
    first = scalars(board)["loss"]
    assert list(first) == list(range(1, 20)), "what was logged before the break is on the disk"
    _, history = toy["train"](folder, every=8, log_dir=board)
    [_, second] = sorted(board.iterdir())
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = list(EventFileLoader(str(second)).Load())
    assert any(e.session_log.status and e.step == 17 for e in events)
    assert list(scalars(board)["loss"])[-1] == history.steps[-1]


def test_log_dir_without_tensorboard_names_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard") as e:
        toy["train"](log_dir=tmp_path)
    assert "\n" not in str(e.value)


def test_ddp_wrapped_models_are_refused():
    wrapped = torch.nn.parallel.DistributedDataParallel.__new__(
        torch.nn.parallel.DistributedDataParallel)
    torch.nn.Module.__init__(wrapped)
    with pytest.raises(UserError, match="DistributedDataParallel"):
        fit(wrapped, toy["Rows"](), toy["loss"], epochs=1)


def test_bf16_autocast_trains():
    _, history = toy["train"](autocast="bf16", patience=None)
    _, plain = toy["train"](patience=None)
    assert history.losses != plain.losses
    np.testing.assert_allclose(history.losses, plain.losses, atol=0.1)


@pytest.mark.parametrize("n, size, pool", [(1, 1, 1), (7, 3, 2), (100, 8, 3), (1000, 32, 50)])
def test_batches_hold_every_row_once_and_only_one_is_short(n, size, pool):
    lengths = np.random.default_rng(0).integers(1, 99, n)
    for kind in (None, lengths):
        batches = epoch_batches(n, size, 0, 0, kind, pool)
        assert sorted(np.concatenate(batches)) == list(range(n))
        assert sorted(map(len, batches), reverse=True)[:-1] == [size] * (len(batches) - 1)


def test_rate_never_leaves_its_bounds():
    for total in (1, 2, 9, 100):
        for warmup in range(0, total + 1, max(1, total // 5)):
            for schedule in ("linear", "cosine", "constant"):
                rates = [lr_factor(t, total, warmup, schedule) for t in range(total + 1)]
                assert all(0 <= r <= 1 for r in rates)
                assert rates[warmup:] == sorted(rates[warmup:], reverse=True)


def test_structures_go_to_the_device():
    from collections import namedtuple

    Pair = namedtuple("Pair", "a b")
    batch = {"x": [torch.zeros(1), (torch.zeros(1), "name")], "p": Pair(torch.zeros(2), 3)}
    moved = to_device(batch, torch.device("meta"))
    assert moved["x"][0].device.type == moved["x"][1][0].device.type == "meta"
    assert isinstance(moved["p"], Pair) and moved["p"].a.device.type == "meta"
    assert moved["x"][1][1] == "name" and moved["p"].b == 3


def test_clipping_equals_torch_on_many_tensors():
    g = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.nn.Parameter(torch.zeros(n, 3)) for n in (1, 5, 9)] for _ in range(2))
    for p, q in zip(ours, theirs, strict=True):
        p.grad = torch.randn(p.shape, generator=g) * 10
        q.grad = p.grad.clone()
    length = torch.nn.utils.clip_grad_norm_(theirs, 2.0).item()
    assert clip_gradients(ours, 2.0) == pytest.approx(length)
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_dense_weights_beside_sparse_ones_get_an_optimizer_of_their_own():
    only = torch.nn.EmbeddingBag(5, 2, sparse=True)
    assert len(make_optimizers(only, "sparse_adam", 0.1, 0.0)) == 1
    with pytest.raises(UserError, match="sparse"):
        make_optimizers(torch.nn.Linear(2, 2), "sparse_adam", 0.1, 0.0)
