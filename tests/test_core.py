"""The core under fire: writers that fail, full disks, absent devices, threads, the hash salt."""

import contextlib
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ftnb import core
from ftnb.core import (
    UserError,
    atomic_path,
    cache_dir,
    device,
    environment,
    rejects,
    require_disk,
    seed_everything,
    set_threads,
    write_text,
)


@pytest.fixture
def target(tmp_path) -> Path:
    "A file with content, alone in its folder."
    write_text(tmp_path / "result.json", "old")
    return tmp_path / "result.json"


def untouched(path: Path) -> bool:
    return path.read_text() == "old" and list(path.parent.iterdir()) == [path]


FAILURES = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt(), MemoryError(),
            SystemExit(1), ValueError("bad value")]  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES, ids=lambda e: type(e).__name__)
def test_a_writer_that_fails_half_way_leaves_the_old_file_and_no_litter(target, failure):
    with pytest.raises(type(failure)):
        with atomic_path(target) as temporary:
            temporary.write_text("ha")
            raise failure
    assert untouched(target)


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_disk_that_fills_up_at_the_end_leaves_the_old_file_and_no_litter(
    target, monkeypatch, call
):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="No space left"):
        write_text(target, "new")
    monkeypatch.undo()
    assert untouched(target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_is_really_full(target):
    "Every write to /dev/full fails with the system's own error."
    with pytest.raises(OSError) as failed:
        with atomic_path(target) as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            temporary.write_text("new")
    assert failed.value.errno == errno.ENOSPC
    assert untouched(target)


def test_text_that_has_no_utf8_form_leaves_the_old_file(target):
    with pytest.raises(UnicodeEncodeError):
        write_text(target, "\ud800")
    assert untouched(target)


def test_a_killed_writer_leaves_the_old_file(target):
    code = f"""import os, signal
from ftnb.core import atomic_path
with atomic_path({str(target)!r}) as temporary:
    temporary.write_text("ha")
    os.kill(os.getpid(), signal.SIGKILL)"""
    assert subprocess.run([sys.executable, "-c", code]).returncode < 0
    assert target.read_text() == "old"
    litter = [p for p in target.parent.iterdir() if p != target]
    assert all(p.name.startswith(".result.json.") for p in litter)


def test_folders_are_made_and_long_names_fit(tmp_path):
    path = tmp_path / "a" / "b" / ("x" * 250 + ".json")
    write_text(path, "new")
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o444 == 0o444, "a result is to be read"


@pytest.mark.parametrize("name", ["abacus", "", "cpux", "gpu:0", "cpu:x", "cpu:", "cuda:99"])
def test_an_absent_device_is_refused_in_one_line(name):
    with pytest.raises(UserError, match="auto.*cpu") as refused:
        device(name)
    assert "\n" not in str(refused.value)


@pytest.fixture
def threads():
    "Give the number of threads and the environment back afterwards."
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    before, number = {name: os.environ.get(name) for name in names}, torch.get_num_threads()
    yield
    set_threads(number)
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def test_threads_stay_between_one_and_the_number_of_cores(threads):
    for number in (0, -3):
        with pytest.raises(UserError, match="1 or more"):
            set_threads(number)
    assert set_threads(10**6) == os.cpu_count()
    set_threads(1)
    assert torch.get_num_threads() == 1 and environment()["threads"] == 1


def test_threads_must_be_a_number(threads):
    before = torch.get_num_threads()
    with pytest.raises(ValueError):
        set_threads("many")
    assert torch.get_num_threads() == before


def test_children_follow_the_thread_count(threads):
    set_threads(1)
    code = "import torch; print(torch.get_num_threads())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).stdout.strip() == b"1"


def test_the_cache_can_be_put_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path / "mine"))
    assert cache_dir("a", "b") == tmp_path / "mine" / "a" / "b"
    assert (tmp_path / "mine" / "a" / "b").is_dir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FTNB_CACHE", "~/other")
    assert cache_dir() == tmp_path / "other"


@pytest.mark.parametrize("below", [(), ("a", "b")])
def test_a_cache_that_is_a_file_is_one_line(monkeypatch, tmp_path, below):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTNB_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="FTNB_CACHE"):
        cache_dir(*below)


@pytest.mark.parametrize("given, threads", [("4,2", 4), ("3", 3), ("", None), ("many", None)])
def test_threads_as_openmp_reads_them(monkeypatch, given, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert environment()["threads"] == (threads or os.cpu_count())


def test_deterministic_leaves_the_search_for_fast_kernels_off():
    before = torch.backends.cudnn.benchmark
    try:
        for on in (True, False):
            core.deterministic(on)
            assert torch.backends.cudnn.benchmark is False
    finally:
        core.deterministic(False)
        torch.backends.cudnn.benchmark = before


@pytest.mark.parametrize("labels, told", [
    (frozenset("ab"), "frozenset"), ([[0], [1]], "one label per text"), ([None, 1], "drop the row"),
    ([2**64, 2**64 + 1], "too large"), ([-1, 2**63], "too large"), ([1.0, 2**53 + 1], "too large"),
])  # fmt: skip
def test_labels_that_are_refused(labels, told):
    with pytest.raises(UserError, match=told):
        core.check_labels(labels)


def test_large_labels_that_fit_stay_apart():
    for labels in ([2**63, 2**63 + 1], [-(2**63), 5], [0.0, 1.0]):
        assert core.check_labels(labels).tolist() == labels


def test_an_answer_that_raises_is_told_in_one_line(capsys):
    def fails(answer):
        raise TypeError("two\nlines")

    assert not core.attempt(fails, len) and not core.attempt(fails, "no function")
    assert capsys.readouterr().out == (
        "len: not right yet. It raised TypeError: two lines\n"
        "the answer: not right yet. It raised TypeError: two lines\n")


def test_an_empty_override_counts_as_none(monkeypatch, tmp_path):
    monkeypatch.setattr(core.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    monkeypatch.setenv("FTNB_CACHE", "")
    assert cache_dir("x") == tmp_path / "ftnb" / "x"


@pytest.fixture
def salt(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "random")


def hash_in_a_child() -> bytes:
    child = [sys.executable, "-c", "print(hash('word'), list({'a', 'b', 'c', 'd', 'e'}))"]
    return subprocess.run(child, capture_output=True, check=True).stdout


def test_children_of_a_seeded_process_share_the_hash_salt(salt):
    assert hash_in_a_child() != hash_in_a_child()
    seed_everything(3)
    first = hash_in_a_child()
    assert first == hash_in_a_child()
    seed_everything(4)
    assert first != hash_in_a_child()


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.5, "7", None])
def test_a_seed_out_of_range_changes_nothing(salt, seed):
    with pytest.raises(UserError, match="between 0 and"):
        seed_everything(seed)
    assert os.environ["PYTHONHASHSEED"] == "random"


def test_a_seed_of_numpy_is_the_same_seed(salt):
    assert seed_everything(np.uint64(7)).random() == seed_everything(7).random()
    assert os.environ["PYTHONHASHSEED"] == "7"


def test_the_largest_seed_works(salt):
    a, b = seed_everything(2**32 - 1), seed_everything(2**32 - 1)
    assert a.random() == b.random()


def test_room_is_asked_of_the_nearest_folder_that_exists(tmp_path):
    require_disk(tmp_path / "not" / "there" / "yet", 1)
    with pytest.raises(UserError, match="no space.*needed") as refused:
        require_disk(tmp_path / "not" / "there", 10**18)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == [], "asking makes no folder"


def test_a_checker_that_is_interrupted_does_not_count_as_a_refusal():
    def stopped(answer):
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        rejects(stopped, len)
        raise AssertionError("Ctrl-C must not be swallowed")


def test_import_is_light():
    "Neither torch nor transformers: importing them costs seconds."
    code = "import sys, ftnb.core; print({'torch', 'transformers', 'sklearn'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
