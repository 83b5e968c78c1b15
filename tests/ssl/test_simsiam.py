import pytest
import torch
from reference import ssl_simsiam
from reference.ssl_networks import DIM, gradients, some_views, tiny_backbone

from qscore import QScoreError
from qscore.images.augment import Augmentation
from qscore.ssl.simsiam import RECIPES, Config, SimSiam


@pytest.fixture
def model():
    return SimSiam(tiny_backbone(), DIM, Config(hidden_dim=5, output_dim=4, prediction_dim=3)).double()


@pytest.fixture
def views():
    return some_views()


def test_loss_and_gradients_are_the_papers(model, views):
    loss = model(views)[0]
    expected = ssl_simsiam.loss(model, views)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(loss, model, views), gradients(expected, model, views))


def test_without_stopping_the_gradient_it_would_be_another_one(model, views):
    first, second = (model.projector(model.backbone(view)) for view in views)
    free = (
        ssl_simsiam.negative_cosine(model.predictor(first), second) / 2
        + ssl_simsiam.negative_cosine(model.predictor(second), first) / 2
    )
    ours, theirs = gradients(model(views)[0], model, views), gradients(free, model, views)
    name = "projector.layers.0.weight"
    assert (ours[name] - theirs[name]).abs().max() > 1e-3 * theirs[name].abs().max()


def test_only_the_predictors_learning_rate_does_not_decay(model):
    assert model.constant_lr == (model.predictor,)


def test_imagenet_settings_are_the_papers():
    config = RECIPES["imagenet"]
    assert (config.epochs, config.warmup_epochs, config.batch_size, config.optimizer) == (100, 0, 512, "sgd")
    assert (config.lr, config.weight_decay, config.momentum) == (0.05, 1e-4, 0.9)
    assert (config.hidden_dim, config.output_dim, config.prediction_dim) == (2048, 2048, 512)
    assert config.augment == Augmentation(224, (0.2, 1.0), (3 / 4, 4 / 3), 0.5, 0.8, 0.4, 0.4, 0.4, 0.1, 0.2, 0.5)


@pytest.mark.parametrize("name", ["hidden_dim", "output_dim", "prediction_dim"])
def test_settings_out_of_range(name):
    with pytest.raises(QScoreError, match=f"{name}: expected a positive number, got 0"):
        Config(**{name: 0})
