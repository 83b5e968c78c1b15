"""Trainings in processes of their own: killed without warning, and shared by two."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import torch
from safetensors.torch import load_file
from torch import multiprocessing, nn

from qscore.ssl.simclr import Config, SimCLR

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from qscore import pretrain
from qscore.images import open_images, subset
pretrain("simclr", subset(open_images("digits"), range(240)), sys.argv[1], backbone="small:resnet10-2", epochs=20,
         device="cpu", devices=int(sys.argv[2]), overrides={"batch_size": 24, "hidden_dim": 8, "output_dim": 4})
"""


def start(out, processes=1):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--no-python", sys.executable]
    command = [sys.executable, *(launcher if processes == 2 else []), "-c", SCRIPT, str(out), str(processes)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, start_new_session=True)


def assert_same(a, b):
    ours, theirs = load_file(a / "encoder.safetensors"), load_file(b / "encoder.safetensors")
    assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_again_and_again_the_training_ends_with_the_same_weights(tmp_path, processes):
    assert start(tmp_path / "unbroken", processes).wait() == 0
    checkpoint = tmp_path / "killed" / "last.ckpt"
    for _ in range(3):
        process = start(tmp_path / "killed", processes)
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.003)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert 0 < torch.load(checkpoint, weights_only=True)["global_step"] < 200
    assert start(tmp_path / "killed", processes).wait() == 0
    assert_same(tmp_path / "killed", tmp_path / "unbroken")


def model():
    """A method without BatchNorm, whose statistics are per process on a CPU."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU())
    method = SimCLR(backbone, 6, Config(temperature=0.3, hidden_dim=5, output_dim=4)).double()
    return method.eval()


def some_views():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2)]


def half(rank, store, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    method = nn.parallel.DistributedDataParallel(model())
    loss, _ = method([view[rank::2] for view in some_views()])
    loss.backward()
    torch.distributed.all_reduce(loss.detach())
    gradients = [p.grad for p in method.module.parameters()]
    torch.save([loss.detach() / 2, *gradients], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path):
    multiprocessing.spawn(half, args=(tmp_path / "store", tmp_path), nprocs=2)
    method = model()
    loss, _ = method(some_views())
    loss.backward()
    for rank in (0, 1):
        theirs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        expected = [loss.detach(), *(p.grad for p in method.parameters())]
        torch.testing.assert_close(theirs, expected, rtol=1e-4, atol=1e-5)  # the loss is taken in float32
