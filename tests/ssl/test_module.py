"""What the loop does for any method, seen by a stub that records it."""

import copy
import csv
import json

import pytest
import torch
from stub_method import Config, Stub, entry

from qscore import QScoreError, pretrain
from qscore.encoders import build_backbone
from qscore.ssl.hardware import trainer_arguments, unused_parameters
from qscore.ssl.methods import METHODS
from qscore.ssl.optim import learning_rate_factor
from qscore.ssl.recipes import make_plan


@pytest.fixture
def built(monkeypatch):
    """The stub methods that were built, in their order."""
    methods = []
    monkeypatch.setitem(METHODS, "stub", entry(methods))
    return methods


def train(images, out, *, batch_size=24, epochs=1, **changes):
    overrides = {"batch_size": batch_size} | changes.pop("overrides", {})
    arguments = {"backbone": "small:resnet10-2", "epochs": epochs, "device": "cpu", "overrides": overrides} | changes
    return pretrain("stub", images, out, **arguments)


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def test_hooks_come_once_for_each_step_whatever_its_parts(few_digits, tmp_path, built):
    train(few_digits, tmp_path, batch_size=8, epochs=2, accumulate=2)
    assert built[0].calls == [
        call for step in range(6) for call in (("after_backward", step, 6, step // 3), ("after_step", step + 1, 6))
    ]


@pytest.mark.parametrize(
    ("accumulate", "precision"), [(4, "32-true"), (1, "16-mixed"), (2, "16-mixed"), (2, "bf16-mixed")]
)
def test_gradients_are_whole_and_unscaled_when_the_method_sees_them(few_digits, tmp_path, built, accumulate, precision):
    train(few_digits, tmp_path / "whole")  # the views are the same, since the stub's are not random
    train(few_digits, tmp_path / "parts", accumulate=accumulate, precision=precision)
    whole, parts = (flat(method.gradients[0]) for method in built)
    assert whole.norm() > 0.1
    tolerance = {"32-true": 1e-6, "16-mixed": 2e-3, "bf16-mixed": 2e-2}[precision]
    torch.testing.assert_close(parts, whole, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_gradients_are_clipped_together_after_that(few_digits, tmp_path, built, precision):
    most = 0.01
    train(few_digits, tmp_path, precision=precision, overrides={"clip_gradient": most, "lr": 256 / 24})  # a rate of 1
    [method] = built
    gradient = flat(method.gradients[0])
    assert gradient.norm() > 10 * most
    change = flat(method.started) - flat(method.trained())
    torch.testing.assert_close(change, gradient * most / gradient.norm(), rtol=1e-3, atol=1e-6)


def test_a_gradient_that_the_method_takes_away_moves_nothing(few_digits, tmp_path, built, monkeypatch):
    def freeze(self, step, total_steps, epoch):
        for p in self.predictor.parameters():
            p.grad = None

    monkeypatch.setattr(Stub, "after_backward", freeze)
    train(few_digits, tmp_path, precision="16-mixed", overrides={"clip_gradient": 1.0})
    moved = [not torch.equal(p, start) for p, start in zip(built[0].trained(), built[0].started, strict=True)]
    assert moved == [True, True, False, False]


def test_the_step_has_the_rates_of_its_place(few_digits, tmp_path, built):
    overrides = {"lr": 256 / 8, "lr_end": 64 / 8, "warmup_epochs": 1.0}
    train(few_digits, tmp_path, batch_size=8, epochs=3, overrides=overrides)
    [method] = built
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open() as file:
        logged = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    expected = [learning_rate_factor(step, 9, 3, floor=0.25) for step in range(9)]
    assert logged == pytest.approx(expected[2::3])  # every third step is logged
    weights = method.started[2].clone()  # the predictor's, whose rate is constant
    for gradients in method.gradients:
        weights -= gradients[2]
    torch.testing.assert_close(method.predictor.weight.detach(), weights, rtol=1e-4, atol=1e-5)
    weights = method.started[0].clone()
    for gradients, rate in zip(method.gradients, expected, strict=True):
        weights -= rate * gradients[0]
    torch.testing.assert_close(method.encoder.weight.detach(), weights, rtol=1e-4, atol=1e-5)


def test_what_the_method_settles_counts_the_images_of_a_forward_pass(few_digits, tmp_path, built):
    train(few_digits, tmp_path, accumulate=4)
    assert json.loads((tmp_path / "pretrain.json").read_text())["config"]["size"] == 6


@pytest.mark.parametrize("stream", [False, True])
def test_views_have_their_sizes(few_digits, tmp_path, built, monkeypatch, stream):
    shapes = []
    forward = Stub.forward
    monkeypatch.setattr(
        Stub,
        "forward",
        lambda self, views: shapes.append([*map(len, views), *(v.shape[-1] for v in views)]) or forward(self, views),
    )
    train(few_digits, tmp_path, image_size=16, overrides={"local.size": 6, "n_local": 2}, stream=stream)
    assert shapes == [[24] * 4 + [16, 16, 6, 6]]


def test_the_representations_that_nobody_wants_are_not_asked_for(few_digits, tmp_path, built, monkeypatch):
    monkeypatch.setattr(Stub, "h_wanted", True, raising=False)
    train(few_digits, tmp_path)
    assert built[0].h_wanted is False


@pytest.mark.parametrize("unused", [False, True])
def test_parameters_that_no_gradient_reaches_are_found(unused):
    method = Stub(None, 2, Config(unused=unused))
    before = copy.deepcopy(method.state_dict())
    assert unused_parameters(method, [8, 8, 4]) == (["idle.weight", "idle.bias"] if unused else [])
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.state_dict().items())
    strategy = trainer_arguments("cpu", 2, "32-true", 1, method, [8, 8, 4])["strategy"]
    assert strategy._ddp_kwargs["find_unused_parameters"] is unused


@pytest.mark.parametrize("name", [name for name in METHODS if name != "stub"])
def test_every_method_uses_all_its_parameters(name, few_digits):
    plan = make_plan(
        name,
        few_digits,
        backbone=None,
        recipe="small",
        epochs=1,
        overrides={},
        image_size=None,
        devices=1,
        accumulate=1,
    )
    method = METHODS[name].build(build_backbone("small:resnet10-2"), 16, plan.config)
    assert unused_parameters(method, [view.size for view in method.views]) == []


def test_a_method_may_say_that_it_cannot_take_the_data(few_digits, tmp_path, monkeypatch):
    def refuse(config, batch_size, n):
        raise QScoreError(f"cannot take {batch_size} of {n}")

    monkeypatch.setitem(METHODS, "stub", entry()._replace(check=refuse))
    with pytest.raises(QScoreError, match="cannot take 12 of 24"):
        train(few_digits, tmp_path, batch_size=12)
    assert not list(tmp_path.iterdir())
