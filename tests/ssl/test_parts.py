import math

import pytest
import torch
from reference.ssl_networks import some_views
from torch import nn

from qscore import QScoreError
from qscore.ssl.parts import Queue, check_views, full_precision, momentum_copy, rising


@pytest.mark.parametrize("batch", [1, 3, 5, 12])
def test_the_queue_is_first_in_first_out(batch):
    queue, lived = Queue(5, 2), []
    for number in range(7):
        rows = torch.full((batch, 2), float(number)) + torch.arange(batch)[:, None] / 16
        queue.push(rows)
        lived += list(rows)
        places = [i % 5 for i in range(max(len(lived) - 5, 0), len(lived))]
        assert torch.equal(queue.rows[places], torch.stack(lived[-5:]))
        assert queue.full == (len(lived) >= 5)


def test_what_the_queue_gives_does_not_change_with_it():
    queue = Queue(3, 2)
    output, given = queue(torch.zeros(1, 2))
    before = given.clone()
    queue.push(torch.ones(3, 2))
    assert torch.equal(output, torch.zeros(1, 2))
    assert given.shape == (2, 3)
    assert torch.equal(given, before)


def test_the_queue_survives_a_checkpoint(tmp_path):
    queue, copy = Queue(5, 2), Queue(5, 2)
    queue.push(torch.randn(3, 2))
    torch.save(queue.state_dict(), tmp_path / "queue.pt")
    copy.load_state_dict(torch.load(tmp_path / "queue.pt", weights_only=True))
    for each in (queue, copy):
        each.push(torch.ones(4, 2))
    assert torch.equal(copy.rows, queue.rows)
    assert copy.full


@pytest.mark.parametrize("total", [1, 2, 10])
def test_a_share_rises_along_half_a_cosine(total):
    for k in range(total):
        expected = 1 - 0.1 * (math.cos(math.pi * k / total) + 1) / 2
        assert rising(k + 1, total, 0.9, 1.0) == pytest.approx(expected, abs=1e-15)
        assert rising(k + 1, total, 0.999, 0.999) == 0.999


def test_a_momentum_copy_is_frozen_and_its_own():
    module = nn.Linear(2, 2)
    copy = momentum_copy(module)
    with torch.no_grad():
        module.weight.zero_()
    assert copy.weight.abs().sum() > 0
    assert not any(p.requires_grad for p in copy.parameters())
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2],
)
def test_full_precision(given, expected):
    assert full_precision(torch.zeros(2, dtype=given)).dtype == expected


@pytest.mark.parametrize(
    ("views", "message"),
    [
        (some_views(sizes=(4,)), "expected 2 views of each image, got 1"),
        (some_views(sizes=(4, 4, 4)), "expected 2 views of each image, got 3"),
        (some_views(n=1), "expected at least 2 images in a batch, got 1"),
    ],
)
def test_batches_that_cannot_be_learnt_from(views, message):
    with pytest.raises(QScoreError) as error:
        check_views(views, 2)
    assert str(error.value).startswith(message)
