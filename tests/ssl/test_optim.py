import math

import pytest
import torch
from torch import nn

from qscore.ssl.optim import build_optimizer, learning_rate_factor
from qscore.ssl.simclr import Config


@pytest.mark.parametrize(("total", "warmup"), [(100, 10), (7, 0), (1, 0), (5, 4)])
def test_schedule_is_a_line_then_half_a_cosine(total, warmup):
    for step in range(total):
        if step < warmup:
            expected = (step + 1) / warmup
        else:
            expected = math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2
        assert learning_rate_factor(step, total, warmup) == pytest.approx(expected, abs=1e-12)


def test_the_single_step_of_a_short_training_is_not_wasted():
    assert learning_rate_factor(0, 1, 0) == 1.0


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    network[0].weight.grad = torch.full((3, 4), 0.5)
    network[0].bias.grad = torch.full((3,), 0.25)
    return network


@pytest.mark.parametrize("name", ["lars", "adamw", "sgd"])
def test_only_matrices_are_decayed_and_the_rate_grows_with_the_batch(network, name):
    optimizer = build_optimizer(network, Config(optimizer=name, lr=0.1, batch_size=512, weight_decay=0.01))
    decayed, spared = optimizer.param_groups
    assert decayed["params"] == [network[0].weight]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    assert decayed["lr"] == spared["lr"] == pytest.approx(0.2)


def test_frozen_parameters_are_left_out(network):
    network[0].weight.requires_grad_(False)
    optimizer = build_optimizer(network, Config())
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, 3]


def test_lars_step_follows_its_equation(network):
    weight, bias = network[0].weight.detach().clone(), network[0].bias.detach().clone()
    config = Config(optimizer="lars", lr=0.1, batch_size=256, weight_decay=0.01, trust_coefficient=0.02)
    build_optimizer(network, config).step()
    gradient = torch.full((3, 4), 0.5)
    trust = 0.02 * weight.norm() / (gradient.norm() + 0.01 * weight.norm())
    torch.testing.assert_close(network[0].weight.detach(), weight - 0.1 * trust * (gradient + 0.01 * weight))
    torch.testing.assert_close(network[0].bias.detach(), bias - 0.1 * 0.25)
