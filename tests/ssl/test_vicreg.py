import pytest
import torch
from reference import ssl_vicreg
from reference.ssl_networks import DIM, gradients, some_views, tiny_backbone

from qscore import QScoreError
from qscore.images.augment import Augmentation
from qscore.ssl.vicreg import RECIPES, Config, VICReg


@pytest.fixture
def config():
    return Config(invariance=3.0, variance=5.0, covariance=2.0, hidden_dim=5, output_dim=4)


@pytest.fixture
def model(config):
    return VICReg(tiny_backbone(), DIM, config).double()


@pytest.fixture
def views():
    return some_views()


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_loss_and_gradients_are_the_papers(model, views, config, scale):
    with torch.no_grad():
        model.head.layers[-1].weight.mul_(scale)  # deviations below 1, and above
    loss = model(views)[0]
    expected = ssl_vicreg.loss(model, views, config)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model, views), gradients(expected, model, views), atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_the_hinge_is_met_on_both_sides(model, views, scale):
    with torch.no_grad():
        model.head.layers[-1].weight.mul_(scale)
        deviations = model.head(model.backbone(views[0])).std(dim=0)
    assert bool((deviations < 1).any()) if scale < 1 else bool((deviations > 1).any())


def test_imagenet_settings_are_the_papers():
    config = RECIPES["imagenet"]
    assert (config.epochs, config.warmup_epochs, config.batch_size, config.optimizer) == (1000, 10, 2048, "lars")
    assert (config.lr, config.lr_end, config.weight_decay) == (0.2, 2e-4, 1e-6)
    assert (config.invariance, config.variance, config.covariance) == (25, 25, 1)
    assert (config.hidden_dim, config.output_dim) == (8192, 8192)
    shared = (224, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, 0.8, 0.4, 0.4, 0.2, 0.1, 0.2)
    assert config.augment == Augmentation(*shared, blur=1.0, solarize=0.0)
    assert config.augment2 == Augmentation(*shared, blur=0.1, solarize=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"invariance": -1.0}, "invariance: expected 0 or more, got -1.0"),
        ({"variance": -1.0}, "variance: expected 0 or more, got -1.0"),
        ({"covariance": -1.0}, "covariance: expected 0 or more, got -1.0"),
        ({"lr_end": -1.0}, "lr_end: expected 0 or more, got -1.0"),
        ({"output_dim": 0}, "output_dim: expected a positive number, got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(QScoreError, match=message):
        Config(**settings)
