from contextlib import nullcontext

import numpy as np
import pytest
import torch
from reference.tables import Imageless

from qscore import QScoreError, embed
from qscore.embedding import forward
from qscore.embedding.forward import Plain


def test_a_worker_that_dies_is_told_in_one_line(tmp_path, encoder, digits):
    with pytest.raises(
        QScoreError, match=r"^a process that decodes images has died, .* \(killed by SIGKILL\); the same command.*"
    ):
        embed(Imageless(digits, deadly=True), encoder, tmp_path / "e", workers=1)


def test_memory_is_pinned_for_the_gpu_that_computes(encoder, digits, monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or nullcontext())
    monkeypatch.setattr(forward, "Network", lambda *_: nullcontext(lambda x, read: np.zeros((1, 2))))
    batch = (torch.zeros(1, 3, 8, 8), [""], "")
    monkeypatch.setattr(forward, "fetched", lambda *_, **__: (batch for _ in range(1)))
    device = torch.device("cuda:1")
    list(forward.forward(encoder, digits, Plain(encoder.preprocess), [range(1)], device, "32-true", 0))
    assert entered == [device]


def test_without_a_batch_nothing_is_started_or_moved(encoder, digits, monkeypatch):
    for name in ("Network", "fetched"):
        monkeypatch.setattr(forward, name, lambda *_, **__: pytest.fail("begun"))
    device = torch.device("cpu")
    assert list(forward.forward(encoder, digits, Plain(encoder.preprocess), [], device, "32-true", 2)) == []
