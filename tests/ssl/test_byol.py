import pytest
import torch
from reference import ssl_byol
from reference.ssl_networks import DIM, gradients, some_views, step, tiny_backbone

from qscore import QScoreError
from qscore.images.augment import Augmentation
from qscore.ssl.byol import BYOL, RECIPES, Config


@pytest.fixture
def model():
    model = BYOL(tiny_backbone(), DIM, Config(ema=0.9, hidden_dim=5, output_dim=4)).double()
    with torch.no_grad():
        for p in model.target.parameters():  # as after some steps: no longer the online network's
            p.mul_(1.1)
    return model


@pytest.fixture
def views():
    return some_views()


def test_loss_and_gradients_are_the_papers(model, views):
    loss = model(views)[0]
    expected = ssl_byol.loss(model, views)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model, views), gradients(expected, model, views))


def test_only_the_online_network_learns(model, views):
    model(views)[0].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    online = [*model.backbone.parameters(), *model.projector.parameters(), *model.predictor.parameters()]
    assert all(p.grad.abs().sum() > 0 for p in online)


def test_the_target_begins_as_a_copy_and_shares_nothing():
    model = BYOL(tiny_backbone(), DIM, Config(hidden_dim=5, output_dim=4))
    online = [*model.backbone.parameters(), *model.projector.parameters()]
    for ours, theirs in zip(online, model.target.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize("number", [1, 3, 4])
def test_the_target_follows_along_a_cosine(model, number):
    online = [*model.backbone.parameters(), *model.projector.parameters()]
    tau = ssl_byol.kept(number - 1, 4, 0.9)
    expected = [tau * t + (1 - tau) * o for t, o in zip(model.target.parameters(), online, strict=True)]
    model.after_step(number, 4)
    torch.testing.assert_close(list(model.target.parameters()), expected)


def test_the_targets_batchnorm_has_statistics_of_its_own(model, views):
    def statistics():
        return [b for name, b in model.target.named_buffers() if "running" in name]

    before = [b.clone() for b in statistics()]
    step(model, views, 4, 1)
    assert model.target.training
    assert all(not torch.equal(b, a) for b, a in zip(before, statistics(), strict=True))
    assert not torch.equal(model.target[1].layers[1].running_mean, model.projector.layers[1].running_mean)


def test_imagenet_settings_are_the_papers():
    config = RECIPES["imagenet"]
    assert (config.epochs, config.warmup_epochs, config.batch_size, config.optimizer) == (1000, 10, 4096, "lars")
    assert (config.lr, config.weight_decay, config.ema, config.ema_end) == (0.2, 1.5e-6, 0.996, 1.0)
    assert (config.hidden_dim, config.output_dim) == (4096, 256)
    shared = (224, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, 0.8, 0.4, 0.4, 0.2, 0.1, 0.2)
    assert config.augment == Augmentation(*shared, blur=1.0, solarize=0.0)
    assert config.augment2 == Augmentation(*shared, blur=0.1, solarize=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema": 1.1}, "ema: expected a number from 0 to 1, got 1.1"),
        ({"ema_end": -0.1}, "ema_end: expected a number from 0 to 1, got -0.1"),
        ({"hidden_dim": 0}, "hidden_dim: expected a positive number, got 0"),
        ({"output_dim": -1}, "output_dim: expected a positive number, got -1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(QScoreError, match=message):
        Config(**settings)
