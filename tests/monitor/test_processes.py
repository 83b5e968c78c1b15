"""Two processes log what one logs, bit by bit: they share the batches, and nobody embeds another batch for it."""

import pytest
import torch
from torch import multiprocessing, nn

from qscore import QScoreError, QScoreMonitor


def some_images(n, seed):
    return torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def make():
    torch.manual_seed(0)
    return nn.ModuleDict({"backbone": nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU())})


def monitors():
    images = some_images(101, 1)
    return {
        "tensor": QScoreMonitor(images, batch_size=16),  # seven batches: one process has more
        "stream": QScoreMonitor(list(images.split(40)), max_images=90),
        "single": QScoreMonitor(images, batch_size=200),  # the second process has nothing to do
    }


def share(rank, store, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    module = nn.parallel.DistributedDataParallel(make())
    found = {}
    for name, monitor in monitors().items():
        measured = monitor(module, 3)
        found[name] = measured.figures() | {"epoch": measured.epoch, "evidence": measured.evidence}
    # What only one process meets, both refuse: neither waits for the other.
    bad = QScoreMonitor([torch.ones(4, 3, 4, 4), torch.ones(4, 3, 4, 5)])
    with pytest.raises(QScoreError) as caught:
        bad(module, 0)
    found["refusal"] = str(caught.value)
    with pytest.raises(QScoreError) as caught:
        QScoreMonitor(some_images(9, 0), features=[40], epsilon=2.0)(module, 0)
    found["width"] = str(caught.value)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_measure_what_one_measures(tmp_path):
    multiprocessing.spawn(share, args=(tmp_path / "store", tmp_path), nprocs=2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = {name: monitor(make(), 3) for name, monitor in monitors().items()}
    torch.set_num_threads(threads)
    for rank in (0, 1):
        theirs = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, found in expected.items():
            assert theirs[name] == found.figures() | {"epoch": 3, "evidence": ()}
        assert theirs["refusal"].startswith("the encoder does not accept images of shape (4, 3, 4, 5), torch.float32: ")
        assert theirs["width"] == "features: expected indices from 0 to 31, got 40 to 40"
