import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from qscore.ssl.optim import build_optimizer, learning_rate_factor, set_rates, weight_decay_at
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


def test_the_schedule_ends_at_its_floor():
    factors = [learning_rate_factor(step, 1000, 10, floor=0.25) for step in range(1001)]
    assert factors[:11] == [step / 10 for step in range(1, 11)] + [1.0]
    assert factors[1000] == pytest.approx(0.25)
    assert factors[505] == pytest.approx(0.625)  # half way down


@pytest.mark.parametrize(("start", "end"), [(0.04, 0.4), (1e-4, 1e-4), (0.3, 0.0)])
def test_weight_decay_goes_along_half_a_cosine(start, end):
    for step in range(8):
        share = math.sin(math.pi / 2 * step / 8) ** 2
        assert weight_decay_at(step, 8, start, end) == pytest.approx(start + share * (end - start), abs=1e-12)


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
    [spared] = optimizer.param_groups
    assert [p.shape for p in spared["params"]] == [(3,)] * 3


def test_lars_step_follows_its_equation(network):
    weight, bias = network[0].weight.detach().clone(), network[0].bias.detach().clone()
    config = Config(optimizer="lars", lr=0.1, batch_size=256, weight_decay=0.01, trust_coefficient=0.02)
    build_optimizer(network, config).step()
    gradient = torch.full((3, 4), 0.5)
    trust = 0.02 * weight.norm() / (gradient.norm() + 0.01 * weight.norm())
    torch.testing.assert_close(network[0].weight.detach(), weight - 0.1 * trust * (gradient + 0.01 * weight))
    torch.testing.assert_close(network[0].bias.detach(), bias - 0.1 * 0.25)


def test_lars_scales_weights_that_are_not_decayed_too(network):
    weight, bias = network[0].weight.detach().clone(), network[0].bias.detach().clone()
    config = Config(optimizer="lars", lr=0.1, batch_size=256, weight_decay=0.0, trust_coefficient=0.02)
    optimizer = build_optimizer(network, config)
    set_rates(optimizer, config, 0, 10, 0)
    optimizer.step()
    gradient = torch.full((3, 4), 0.5)
    trust = 0.02 * weight.norm() / gradient.norm()
    torch.testing.assert_close(network[0].weight.detach(), weight - 0.1 * trust * gradient)
    torch.testing.assert_close(network[0].bias.detach(), bias - 0.1 * 0.25)


def settings(**changes):
    """Settings with fields that only some methods have."""
    fields = {"optimizer": "lars", "lr": 0.2, "batch_size": 512, "weight_decay": 0.01, "momentum": 0.9}
    return SimpleNamespace(**(fields | {"trust_coefficient": 0.001} | changes))


def test_biases_have_a_learning_rate_of_their_own_under_lars(network):
    groups = build_optimizer(network, settings(lr_biases=0.01)).param_groups
    assert [group["lr"] for group in groups] == [pytest.approx(0.4), pytest.approx(0.02)]
    groups = build_optimizer(network, settings(lr_biases=0.01, optimizer="sgd")).param_groups
    assert [group["lr"] for group in groups] == [pytest.approx(0.4)] * 2


def test_rates_follow_the_step_but_where_they_are_constant(network):
    model = nn.ModuleDict({"encoder": network, "predictor": nn.Linear(3, 3)})
    config = settings(optimizer="sgd", lr_end=0.05, weight_decay_end=0.1)
    optimizer = build_optimizer(model, config, [model["predictor"]])
    rates = {}
    for step in (0, 2, 6):
        set_rates(optimizer, config, step, 10, 2)
        rates[step] = {
            id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
        }
    decay = {0: 0.01, 2: weight_decay_at(2, 10, 0.01, 0.1), 6: weight_decay_at(6, 10, 0.01, 0.1)}
    lr = {0: 0.2, 2: 0.4, 6: 0.25}  # rises to 0.4, and half way to 0.1
    assert len(rates[0]) == len(list(model.parameters()))
    for step, found in rates.items():
        for name, p in model.named_parameters():
            expected = (0.4 if "predictor" in name else lr[step], decay[step] if p.ndim > 1 else 0.0)
            assert found[id(p)] == pytest.approx(expected)


def test_a_saved_optimiser_goes_on_at_the_same_rates(network):
    config = settings(lr_end=0.01)
    optimizer = build_optimizer(network, config)
    set_rates(optimizer, config, 7, 10, 2)
    again = build_optimizer(network, config)
    again.load_state_dict(optimizer.state_dict())
    set_rates(again, config, 8, 10, 2)
    set_rates(optimizer, config, 8, 10, 2)
    assert again.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
