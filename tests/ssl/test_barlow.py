import pytest
import torch
from reference import ssl_barlow
from reference.ssl_networks import DIM, gradients, some_views, tiny_backbone

from qscore import QScoreError
from qscore.images.augment import Augmentation
from qscore.ssl.barlow import RECIPES, BarlowTwins, Config


@pytest.fixture
def model():
    return BarlowTwins(tiny_backbone(), DIM, Config(redundancy=0.2, hidden_dim=5, output_dim=4)).double()


@pytest.fixture
def views():
    return some_views(n=6)


def test_loss_and_gradients_are_the_papers(model, views):
    loss = model(views)[0]
    expected = ssl_barlow.loss(model, views, 0.2)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model, views), gradients(expected, model, views), atol=1e-12, rtol=1e-6)


def test_identical_views_correlate_with_themselves(model, views):
    [c] = [ssl_barlow.correlation(z, z, epsilon=0) for z in [model.head(model.backbone(views[0]))]]
    loss = model([views[0], views[0]])[0]
    others = sum(c[i][j] ** 2 for i in range(4) for j in range(4) if i != j)
    assert loss.item() == pytest.approx(0.2 * others.item(), abs=1e-3)


def test_imagenet_settings_are_the_papers():
    config = RECIPES["imagenet"]
    assert (config.epochs, config.warmup_epochs, config.batch_size, config.optimizer) == (1000, 10, 2048, "lars")
    assert (config.lr, config.lr_biases, config.lr_end, config.weight_decay) == (0.2, 0.0048, 2e-4, 1e-6)
    assert (config.redundancy, config.hidden_dim, config.output_dim) == (0.0051, 8192, 8192)
    shared = (224, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, 0.8, 0.4, 0.4, 0.2, 0.1, 0.2)
    assert config.augment == Augmentation(*shared, blur=1.0, solarize=0.0)
    assert config.augment2 == Augmentation(*shared, blur=0.1, solarize=0.2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"redundancy": -1.0}, "redundancy: expected 0 or more, got -1.0"),
        ({"lr_biases": -1.0}, "lr_biases: expected 0 or more, got -1.0"),
        ({"lr_end": -1.0}, "lr_end: expected 0 or more, got -1.0"),
        ({"hidden_dim": 0}, "hidden_dim: expected a positive number, got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(QScoreError, match=message):
        Config(**settings)
