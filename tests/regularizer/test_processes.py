"""A batch in unequal shares over two processes has the loss, the gradients and the figures of one process."""

import numpy as np
import pytest
import torch
from torch import multiprocessing, nn

from qscore import LassoRegularizer, QScoreError, QScoreRegularizer

SHARES = {"unequal": [7, 3], "none": [10, 0]}


def images():
    return torch.tensor(np.random.default_rng(0).normal(size=(10, 5)))


def make(kind, reduction):
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(5, 24), nn.ReLU()).double()
    if kind == "lasso":
        return encoder, LassoRegularizer(0.3, reduction=reduction)
    return encoder, QScoreRegularizer(range(0, 24, 2), 0.3, 0.7, epsilon=1.5, reduction=reduction)


def run(encoder, regularizer, x):
    h = encoder(x)
    ratios = regularizer.gradient_ratios((h**2).sum(), h)
    loss = regularizer(h)
    loss.backward()
    stats = {name: float(value) for name, value in regularizer.stats.items()}
    return {"loss": loss.detach(), "ratios": ratios, "stats": stats} | {
        name.removeprefix("module."): p.grad for name, p in encoder.named_parameters()
    }


def share(rank, store, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for name, sizes in SHARES.items():
        for kind in ("quality", "lasso"):
            for reduction in ("sum", "mean"):
                encoder, regularizer = make(kind, reduction)
                encoder = nn.parallel.DistributedDataParallel(encoder)
                found = run(encoder, regularizer, images().split(sizes)[rank])
                torch.save(found, folder / f"{name}-{kind}-{reduction}-{rank}.pt")
    # What one process alone would refuse, both refuse: neither waits for the other.
    bad = torch.ones(3, 24)
    bad[0, 0] = -1.0 if rank else 1.0
    with pytest.raises(QScoreError) as caught:
        make("quality", "sum")[1](bad)
    torch.save(str(caught.value), folder / f"refusal-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(share, args=(folder / "store", folder), nprocs=2)
    return folder


def load(folder, name):
    return [torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kind", ["quality", "lasso"])
@pytest.mark.parametrize("shares", SHARES)
def test_two_processes_give_what_one_gives(folder, shares, kind, reduction):
    encoder, regularizer = make(kind, reduction)
    expected = run(encoder, regularizer, images())
    found = load(folder, f"{shares}-{kind}-{reduction}")
    assert (found[0]["loss"] + found[1]["loss"]) / 2 == pytest.approx(expected["loss"])
    # The self-supervised loss is a sum over rows here, of which averaged gradients are half; the terms are whole.
    for theirs in found:
        assert theirs["stats"] == pytest.approx(
            expected["stats"] | {name: 2 * value for name, value in expected["ratios"].items()}
        )
        for name, _ in encoder.named_parameters():
            torch.testing.assert_close(theirs[name], expected[name])


def test_both_processes_refuse_what_one_of_them_was_given(folder):
    one, other = load(folder, "refusal")
    assert one == other and one.startswith("h: 1 of 144 values are negative, but the paper's form")
