"""Several processes train one model: equal to one process, killed, refused, and what it costs."""

import os
from pathlib import Path

import numpy as np
import pytest
import together
import torch

from ftnb.core import UserError
from ftnb.parallel import Calls, StepCost, calibrate, held_bytes, launch
from ftnb.train import read_checkpoint

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module", autouse=True)
def importable():
    "The processes can import tests/together.py, and compute with one thread as this one does."
    before, threads = os.environ.get("PYTHONPATH"), torch.get_num_threads()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), before]))
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


BOTH = dict(n=17, batch_size=8)  # the last batch has one row: the second process has none
CALLS = {  # name -> function of together.py and its arguments; all in one start of two processes
    "equal": ("train", dict(n=32)),
    "ragged": ("train", BOTH),
    "accumulated": ("train", BOTH | dict(accumulate=2)),
    "by length": ("train", BOTH | dict(lengths=list(range(17)))),
    "sgd": ("train", BOTH | dict(optimizer="sgd", clip=None)),
    "sharded": ("train", BOTH | dict(shard=True, seed=0)),
    "sharded sgd": ("train", BOTH | dict(shard=True, seed=0, optimizer="sgd", accumulate=2)),
    "fp16": ("train", BOTH | dict(autocast="fp16")),
    "patience": ("train", dict(n=32, epochs=6, validate=True, patience=1)),
    "batch norm": ("train", dict(n=32, batch_norm=True)),
    "nan": ("nan_at_one", {}),
    "unused": ("unused", {}),
    "sparse": ("refused", dict(kind="sparse")),
    "half": ("refused", dict(kind="fp16")),
    "some": ("refused", dict(kind="some")),
    "pressed": ("pressed", {}),
    "ring": ("ring_refuses", {}),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    "What two processes said to each of CALLS: name -> [first, second]."
    folder, stop = (tmp_path_factory.mktemp(name) for name in ("two", "stop"))
    os.environ["FTNB_STOP"] = str(stop)
    keep = [dict(folder=str(folder / str(i)), stop=4, dropout=0.3) for i in range(len(RESUMED))]
    more = {f"resumed{i}": ("resumed", keep[i] | kind) for i, kind in enumerate(RESUMED)}
    calls = CALLS | more
    answers = launch(*((f"together:{name}", values) for name, values in calls.values()),
                     processes=2, folder=folder)  # fmt: skip
    os.environ.pop("FTNB_STOP")
    return dict(zip(calls, answers, strict=True)) | {"folder": folder, "stop": stop}


RESUMED = [dict(n=32), dict(n=32, shard=True, seed=0), dict(n=32, noise=True),
           dict(n=32, autocast="fp16"), dict(n=32, batch_norm=True)]  # fmt: skip


EQUAL = [n for n in CALLS if CALLS[n][0] == "train" and n not in ("batch norm", "patience")]


@pytest.mark.parametrize("name", EQUAL)
def test_two_processes_equal_one(said, name):
    "The same losses and the same weights in both, whatever weights the second began with."
    first, second = said[name]
    alone = together.train(**(CALLS[name][1] | dict(shard=False, seed=0)))
    near, close = (3e-3, 3e-2) if name == "fp16" else (1e-5, 1e-3)
    np.testing.assert_allclose(first["losses"], alone["losses"], atol=near)
    same = alone["weights"] if first["weights"] else []  # of sharded ones only the digest is told
    np.testing.assert_allclose(first["weights"], same, atol=close)
    assert first["digest"] == second["digest"] and first["losses"] == second["losses"]


def test_early_stopping_is_agreed_on_and_the_best_weights_come_back(said):
    first, second = said["patience"]
    assert first["validations"] == second["validations"], "though each would say another score"
    assert first["stopped"] and second["stopped"] and len(first["validations"]) == 2
    assert first["digest"] == second["digest"]


def test_running_means_are_those_of_the_first_process(said):
    first, second = said["batch norm"]
    assert first["digest"] == second["digest"]


@pytest.mark.parametrize("i", range(len(RESUMED)))
def test_resumed_in_all_processes_to_the_same_bits(said, i):
    "With dropout, and with noise from the data set: the random numbers of each come back."
    for again, undisturbed in said[f"resumed{i}"]:
        assert again == undisturbed
    assert said[f"resumed{i}"][0][0]["digest"] == said[f"resumed{i}"][1][0]["digest"]


def test_the_checkpoint_of_two_opens_in_one(said):
    tensors, about = read_checkpoint(said["folder"] / "0" / "last.safetensors")
    assert {"rng.cpu", "rng.cpu.1"} <= set(tensors) and about["epoch"] == 2
    keep = dict(n=32, dropout=0.3, checkpoint=said["folder"] / "1", stop=1)  # of sharded weights
    assert together.train(**keep)["digest"] == said["resumed1"][0][0]["digest"]


def test_one_process_may_go_on_where_two_were_broken_off(said, tmp_path):
    keep = dict(n=32, checkpoint=str(tmp_path), checkpoint_every=1)
    broken = ("together:train", keep | dict(stop=5))
    [answers] = launch(broken, processes=2, folder=tmp_path / "log")
    assert answers == ["stopped", "stopped"]
    on, alone = together.train(**keep), together.train(n=32)
    np.testing.assert_allclose(on["losses"], alone["losses"], atol=1e-5)


def test_a_loss_that_is_not_a_number_stops_both(said):
    first, second = said["nan"]
    assert first["step"] == second["step"] == 1 and second["rows"] == 4
    assert "\n" not in first["said"] + second["said"]


def test_weights_that_only_one_process_used(said):
    first, second = said["unused"]
    assert first == second and first[2] == [1, 1, 1], "nobody used it: no step, no decay"
    assert first[1] != [1, 1, 1] and len(set(first[1])) == 1


@pytest.mark.parametrize("kind, word", [("sparse", "sparse=False"), ("half", "bf16"),
                                        ("some", "fully_shard")])  # fmt: skip
def test_what_cannot_be_trained_together_is_refused_with_a_remedy(said, kind, word):
    first, second = said[kind]
    assert first == second and word in first and "\n" not in first


def test_ctrl_c_in_one_process_stops_all_after_the_same_step(said):
    assert said["pressed"][0] == said["pressed"][1] in (2, 3)
    _, about = read_checkpoint(said["stop"] / "last.safetensors")
    assert about["step"] == said["pressed"][0]


def test_the_ring_refuses_what_is_not_a_vector(said):
    assert all("(2, 2)" in message and "flatten" in message for message in said["ring"])


def test_a_process_that_fails_is_named_in_one_line(tmp_path):
    with pytest.raises(UserError, match="this one cannot go on") as e:
        launch(("together:fails", {}), processes=2, folder=tmp_path)
    assert "\n" not in str(e.value) and "log.txt" in str(e.value)


def test_processes_that_take_too_long_are_ended(tmp_path):
    with pytest.raises(UserError, match="took too long"):
        launch(("together:sleeps", dict(seconds=3600)), processes=1, folder=tmp_path, timeout=8)


@pytest.mark.parametrize("bad", [dict(processes=0), dict(processes=2, restarts=-1)])
def test_impossible_numbers_of_processes(bad, tmp_path):
    with pytest.raises(UserError):
        launch(("together:fails", {}), folder=tmp_path, **bad)


def test_costs_are_found_again_and_never_below_zero():
    true = StepCost(0.002, 0.001, 1e-4, 1e-9)
    found = calibrate([(b, true(b, 1, 0)) for b in (2, 9, 40)],
                      [(v, true(0, 2, v) - 0.002) for v in (10, 1e6, 1e8)])  # fmt: skip
    np.testing.assert_allclose(list(vars(found).values()), list(vars(true).values()), rtol=1e-6)
    steep = calibrate([(8, 0.001), (16, 0.004)], [(8, 1.0), (16, 0.5)])
    assert all(v >= 0 for v in vars(steep).values())


def test_calls_are_bytes_and_cut():
    calls = Calls(70, longest=20)
    ids, mask, labels = calls.batch(np.array([3, 1]))
    assert len(calls) == 70 and ids.shape == (2, 20) and ids.max() <= 256 and len(labels) == 2
    assert bytes(i - 1 for i in calls.rows[1]).decode("utf-8", "ignore")


def test_what_is_held_counts_four_numbers_for_each_weight():
    assert held_bytes(torch.nn.Linear(3, 2)) == 16 * 8
