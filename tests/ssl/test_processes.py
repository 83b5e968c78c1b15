"""Trainings in processes of their own: killed without warning, interrupted, and shared by two."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import METHODS, assert_same, train_method, train_stub

from qscore import load_encoder

TESTS = Path(__file__).parents[1]
KILLED = """
import os, signal, sys
from tiny_training import METHODS, train_method
name, out, devices, number, rank = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
method = METHODS[name].build
forward, calls = method.forward, iter(range(1, 1000))

def wrapped(self, views):
    if next(calls) == number and int(os.environ.get("RANK", 0)) == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, views)

method.forward = wrapped
train_method(name, out, devices=devices)
"""
KILLED_WHILE_SAVING = """
import os, signal, sys
from qscore.ssl import watch
from tiny_training import train_method
save, calls = watch.torch.save, iter(range(1, 10))

def killed(checkpoint, file):
    if next(calls) == 2:
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    save(checkpoint, file)

watch.torch.save = killed
train_method("moco", sys.argv[1])
"""
ALL = """
import sys
from tiny_training import METHODS, train_method
for name in METHODS:
    train_method(name, f"{sys.argv[1]}/{name}", devices=2)
"""
STUB = """
import logging, os, sys
from stub_method import Stub
from tiny_training import train_stub
if sys.argv[3] == "spoiled" and os.environ["RANK"] == "1":
    forward, calls = Stub.forward, iter(range(100))  # call 0 looks for unused parameters
    Stub.forward = lambda self, views: (forward(self, views)[0] * (float("nan") if next(calls) == 5 else 1), None)
logging.basicConfig(level=logging.INFO)
train_stub(sys.argv[1], devices=2, accumulate=int(sys.argv[2]))
"""


def start(script, *arguments, processes=1):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", sys.executable]
    command = [sys.executable, *(launcher if processes == 2 else []), "-c", script, *map(str, arguments)]
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Wait for a process, and return what it said and its exit status."""
    said = process.communicate()[1]
    return said, process.returncode


def steps_in(folder):
    checkpoint = folder / "last.ckpt"
    return torch.load(checkpoint, weights_only=True)["global_step"] if checkpoint.exists() else 0


def killed_at_random_steps(name, folder, seed):
    """Kill a training in one of its steps, resume it and kill it again, resume it here: it ends like one left alone."""
    done = 0
    for number in np.random.default_rng(seed).integers(1, 5, 2, endpoint=True):
        assert finish(start(KILLED, name, folder / "killed", 1, number, 0))[1] == -signal.SIGKILL
        done = (done + number - 1) // 3 * 3  # the last whole epoch
        assert steps_in(folder / "killed") == done
    assert_same(train_method(name, folder / "killed"), train_method(name, folder / "unbroken").parent)


def test_killed_in_the_middle_of_a_step_the_training_ends_with_the_same_weights(tmp_path):
    killed_at_random_steps("moco", tmp_path, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_survives_being_killed(tmp_path, name):
    killed_at_random_steps(name, tmp_path, seed=METHODS[name].build.__name__.encode()[-1])


@pytest.mark.slow
def test_killed_while_saving_the_training_goes_on_from_the_checkpoint_before(tmp_path):
    assert finish(start(KILLED_WHILE_SAVING, tmp_path / "killed"))[1] == -signal.SIGKILL
    assert steps_in(tmp_path / "killed") == 3
    assert_same(train_method("moco", tmp_path / "killed"), train_method("moco", tmp_path / "unbroken").parent)


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights_though_one_was_killed(tmp_path):
    for number, rank, done in ((6, 1, 3), (5, 0, 6)):  # the first call only looks for unused parameters
        assert finish(start(KILLED, "moco", tmp_path / "killed", 2, number, rank, processes=2))[1] != 0
        assert steps_in(tmp_path / "killed") == done
    for folder in ("killed", "unbroken"):
        said, status = finish(start(KILLED, "moco", tmp_path / folder, 2, 0, 0, processes=2))
        assert status == 0, said
    assert_same(tmp_path / "killed" / "encoder.safetensors", tmp_path / "unbroken")


def colours_of(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_train_like_one(tmp_path, accumulate):
    said, status = finish(start(STUB, tmp_path / "two", accumulate, "whole", processes=2))
    assert status == 0, said
    train_stub(tmp_path / "one")
    torch.testing.assert_close(colours_of(tmp_path / "two"), colours_of(tmp_path / "one"), rtol=1e-5, atol=1e-6)
    assert said.count("stub on 24 images") == 1  # the second process is quiet


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_both(tmp_path):
    said, status = finish(start(STUB, tmp_path, 1, "spoiled", processes=2))
    assert status != 0
    assert said.count("the loss is nan at step 5 (epoch 2)") >= 2
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


@pytest.mark.slow
def test_every_method_trains_in_two_processes(tmp_path):
    said, status = finish(start(ALL, tmp_path, processes=2))
    assert status == 0, said
    for name in METHODS:
        assert load_encoder(tmp_path / name).source.method == name
        state = torch.load(tmp_path / name / "last.ckpt", weights_only=True)
        assert state["global_step"] == 9
        assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize("data", ["--in-memory", "--stream"])
def test_ctrl_c_saves_ends_all_processes_and_exits_130(tmp_path, data):
    command = ["from qscore.cli import main; main()", "pretrain", "simclr", "--images", "digits", "--epochs", "1000"]
    process = start(*command, "--backbone", "small:resnet10-2", "--out", tmp_path, "--set", "batch_size=64", data)
    checkpoint = tmp_path / "last.ckpt"
    while process.poll() is None and not checkpoint.exists():
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process
    said, status = finish(process)
    assert status == 130
    assert "the same call continues" in said and "Traceback" not in said
    assert torch.load(checkpoint, weights_only=True)["global_step"] >= 28
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
