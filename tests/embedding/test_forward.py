from contextlib import nullcontext

import numpy as np
import pytest
import torch
from reference.tables import Imageless

from qscore import QScoreError, embed
from qscore.embedding import forward
from qscore.embedding.forward import Plain


def test_a_worker_that_dies_is_told_in_one_line(tmp_path, encoder, digits):
    with pytest.raises(QScoreError, match=r"^a process that decodes images has died, .* \(DataLoader worker \(pid.*"):
        embed(Imageless(digits, deadly=True), encoder, tmp_path / "e", workers=1)


class Loader:
    def __init__(self, error, workers):
        self.error, self.num_workers = error, workers

    def __iter__(self):
        raise self.error


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_hangs_up_is_dying(error, monkeypatch):
    waits = []
    monkeypatch.setattr(forward.time, "sleep", waits.append)
    with pytest.raises(QScoreError, match="a process that decodes images has died"):
        list(forward._fetched(Loader(error, 1)))
    assert len(waits) == 1
    for loader in (Loader(error, 0), Loader(OSError("Caught OSError in DataLoader worker process 0."), 1)):
        with pytest.raises(type(loader.error)):
            list(forward._fetched(loader))


def test_memory_is_pinned_for_the_gpu_that_computes(encoder, digits, monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or nullcontext())
    monkeypatch.setattr(forward, "Network", lambda *_: nullcontext(lambda x, read: np.zeros((1, 2))))
    monkeypatch.setattr(forward, "DataLoader", lambda *_, **__: [(torch.zeros(1, 3, 8, 8), [""], "")])
    device = torch.device("cuda:1")
    list(forward.forward(encoder, digits, Plain(encoder.preprocess), [range(1)], device, "32-true", 0))
    assert entered == [device]


def test_without_a_batch_nothing_is_started_or_moved(encoder, digits, monkeypatch):
    for name in ("Network", "DataLoader"):
        monkeypatch.setattr(forward, name, lambda *_, **__: pytest.fail("begun"))
    device = torch.device("cpu")
    assert list(forward.forward(encoder, digits, Plain(encoder.preprocess), [], device, "32-true", 2)) == []
