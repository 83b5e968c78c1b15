import math

import pytest
import torch
from reference import ssl_dino
from reference.ssl_networks import DIM, gradients, some_views, step, tiny_backbone

from qscore import QScoreError
from qscore.images.augment import Augmentation
from qscore.ssl.dino import DINO, RECIPES, Config

SIZES = {0: (6, 6), 2: (6, 6, 4, 4)}


def build(n_local=0, seed=0, **changes):
    settings = {"epochs": 8, "hidden_dim": 5, "bottleneck_dim": 4, "output_dim": 3, "ema": 0.9, "center_momentum": 0.75}
    temperatures = {"warmup_teacher_temperature": 0.25, "teacher_temperature": 0.5, "warmup_teacher_epochs": 3}
    model = DINO(tiny_backbone(seed), DIM, Config(**settings | temperatures | {"n_local": n_local} | changes)).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # as after some steps: no longer the student's weights, and the start's are very small
        for p in [*model.head.layers.parameters(), *model.teacher.parameters()]:
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
        model.cross_entropy.center.copy_(torch.tensor([0.1, -0.2, 0.3]))
    return model


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("n_local", [0, 2])
def test_loss_and_gradients_are_the_papers(n_local, batch_norm):
    model, views = build(n_local, batch_norm=batch_norm), some_views(sizes=SIZES[n_local])
    centre = model.cross_entropy.center.flatten().clone()
    loss = model(views)[0]
    expected = ssl_dino.loss(model, views, centre, student_temperature=0.1, teacher_temperature=0.25)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model, views), gradients(expected, model, views))


def test_only_the_student_learns():
    model = build(2)
    model(some_views(sizes=SIZES[2]))[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())
    lengths = model.head.last_layer.parametrizations.weight.original0
    assert not lengths.requires_grad
    student = [p for p in [*model.backbone.parameters(), *model.head.parameters()] if p is not lengths]
    assert all(p.grad.abs().sum() > 0 for p in student)


def test_the_rows_of_the_last_layer_have_unit_length():
    model, views = build(), some_views(sizes=SIZES[0])
    for number in range(1, 9):
        step(model, views, 8, number)
    lengths = model.head.last_layer.weight.norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(3, dtype=torch.float64))


def test_the_teacher_begins_as_a_copy_and_shares_nothing():
    model = DINO(tiny_backbone(), DIM, Config(hidden_dim=5, bottleneck_dim=4, output_dim=3))
    student = [*model.backbone.parameters(), *model.head.parameters()]
    for ours, theirs in zip(student, model.teacher.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize("number", [1, 3, 8])
def test_the_teacher_follows_along_a_cosine(number):
    model = build()
    kept = 1 - 0.1 * (math.cos(math.pi * (number - 1) / 8) + 1) / 2
    student = [*model.backbone.parameters(), *model.head.parameters()]
    expected = [kept * t + (1 - kept) * s for t, s in zip(model.teacher.parameters(), student, strict=True)]
    model.after_step(number, 8)
    torch.testing.assert_close(list(model.teacher.parameters()), expected)


def test_the_centre_follows_the_teachers_outputs():
    model, views = build(2), some_views(sizes=SIZES[2])
    centre = model.cross_entropy.center.flatten().clone()
    for _ in range(2):
        centre = ssl_dino.next_centre(centre, model.teacher(torch.cat(views[:2])), 0.75)
        model(views)
        torch.testing.assert_close(model.cross_entropy.center.flatten(), centre)


def test_the_teachers_temperature_rises_by_the_epoch():
    model = build()
    temperatures = [model.teacher_temperature]
    for number in range(1, 16):  # two steps an epoch
        model.after_step(number, 16)
        temperatures.append(model.teacher_temperature)
    assert temperatures == [0.25, 0.25, 0.375, 0.375, *[0.5] * 12]


@pytest.mark.parametrize(("epochs", "expected"), [(2, [0.25, 0.5]), (1, [0.25])])
def test_a_short_training_warms_up_in_the_time_it_has(epochs, expected):
    model = build(epochs=epochs)
    temperatures = [model.teacher_temperature]
    for number in range(1, epochs):
        model.after_step(number, epochs)
        temperatures.append(model.teacher_temperature)
    assert temperatures == expected


def test_without_a_warm_up_the_temperature_is_the_last():
    assert build(warmup_teacher_epochs=0).teacher_temperature == 0.5


def test_the_last_layer_is_frozen_in_the_first_epoch():
    model, views = build(), some_views(sizes=SIZES[0])
    before = model.head.last_layer.weight.clone()
    for number in (1, 2):  # two steps an epoch
        step(model, views, 16, number)
        assert torch.equal(model.head.last_layer.weight, before)
    step(model, views, 16, 3)
    assert not torch.equal(model.head.last_layer.weight, before)


def test_the_checkpoint_holds_centre_and_epoch():
    model, views = build(2), some_views(sizes=SIZES[2])
    for number in (1, 2, 3):
        step(model, views, 8, number)
    copy = build(2, seed=5)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(step(copy, views, 8, 4), step(model, views, 8, 4))
    assert copy.teacher_temperature == model.teacher_temperature == 0.5


def test_imagenet_settings_are_the_papers():
    config = RECIPES["imagenet"]
    assert (config.warmup_epochs, config.batch_size, config.optimizer) == (10, 1024, "adamw")
    assert (config.lr, config.lr_end * 1024 / 256, config.clip_gradient) == (5e-4, 1e-6, 3.0)
    assert (config.weight_decay, config.weight_decay_end) == (0.04, 0.4)
    assert (config.student_temperature, config.teacher_temperature) == (0.1, 0.07)
    assert (config.warmup_teacher_temperature, config.warmup_teacher_epochs) == (0.04, 30)
    assert (config.ema, config.ema_end, config.center_momentum, config.freeze_epochs) == (0.996, 1, 0.9, 1)
    assert (config.hidden_dim, config.bottleneck_dim, config.output_dim) == (2048, 256, 65536)
    colour = ((3 / 4, 4 / 3), 0.5, 0.8, 0.4, 0.4, 0.2, 0.1, 0.2)
    assert config.augment == Augmentation(224, (0.4, 1.0), *colour, blur=1.0)
    assert config.augment2 == Augmentation(224, (0.4, 1.0), *colour, blur=0.1, solarize=0.2)
    assert (config.local, config.n_local) == (Augmentation(96, (0.05, 0.4), *colour, blur=0.5), 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student_temperature": 0.0}, "student_temperature: expected a positive number, got 0.0"),
        ({"warmup_teacher_epochs": -1}, "warmup_teacher_epochs: expected 0 or more, got -1"),
        ({"n_local": -1}, "n_local: expected 0 or more, got -1"),
        ({"weight_decay_end": -1.0}, "weight_decay_end: expected 0 or more, got -1.0"),
        ({"center_momentum": 1.5}, "center_momentum: expected a number from 0 to 1, got 1.5"),
        ({"output_dim": 0}, "output_dim: expected a positive number, got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(QScoreError, match=message):
        Config(**settings)
