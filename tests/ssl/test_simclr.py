import pytest
import torch
from reference.contrastive import finite_difference, nt_xent
from torch import nn

from qscore import QScoreError
from qscore.images.augment import Augmentation
from qscore.ssl.simclr import RECIPES, Config, SimCLR


@pytest.fixture
def model():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 6), nn.ReLU())
    return SimCLR(backbone, 6, Config(temperature=0.3, hidden_dim=5, output_dim=4)).double()


@pytest.fixture
def views():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2)]


def test_loss_is_nt_xent_of_the_projections(model, views):
    loss, _ = model(views)
    projections = model.head(model.backbone(torch.cat(views)))
    assert loss.item() == pytest.approx(nt_xent(projections[:5], projections[5:], 0.3), abs=1e-6)


def test_gradient_is_that_of_nt_xent(model):
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaf = z.clone().requires_grad_()
    model.nt_xent(leaf[:3], leaf[3:]).backward()
    expected = finite_difference(lambda rows: nt_xent(rows[:3], rows[3:], 0.3), z)
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-6)


def test_a_steps_gradients_are_those_of_nt_xent(model, views):
    parameters = [p for p in model.parameters() if p.ndim == 2]
    first = views[0].requires_grad_()
    found = torch.autograd.grad(model(views)[0], [*parameters, first])

    def loss_with(tensor, value):
        before, tensor.data = tensor.data, value.view_as(tensor)
        with torch.no_grad():
            projections = model.head(model.backbone(torch.cat(views)))
        tensor.data = before
        return nt_xent(projections[:5], projections[5:], 0.3)

    for tensor, gradient in zip([*parameters, first], found, strict=True):
        rows = tensor.detach().flatten(1)
        expected = finite_difference(lambda value, tensor=tensor: loss_with(tensor, value), rows)
        torch.testing.assert_close(gradient.flatten(1), expected, rtol=0, atol=1e-5)


def test_representations_are_the_encoders_before_the_head(model, views):
    _, h = model(views)
    torch.testing.assert_close(h, model.backbone(torch.cat(views)))


def test_gradient_reaches_the_encoder_through_both_views(model, views):
    views = [view.requires_grad_() for view in views]
    model(views)[0].backward()
    assert all(view.grad.abs().sum() > 0 for view in views)


def test_the_loss_leaves_half_precision(model, views):
    model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, h = model([view.float() for view in views])
    assert (loss.dtype, h.dtype) == (torch.float32, torch.bfloat16)


def test_imagenet_settings_are_the_papers():
    config = RECIPES["imagenet"]
    assert (config.batch_size, config.lr, config.weight_decay, config.optimizer) == (4096, 0.3, 1e-6, "lars")
    assert (config.temperature, config.hidden_dim, config.output_dim) == (0.1, 2048, 128)
    assert config.augment == Augmentation(224, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, 0.8, 0.8, 0.8, 0.8, 0.2, 0.2, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature: expected a positive number, got 0.0"),
        ({"hidden_dim": 0}, "hidden_dim: expected a positive number, got 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(QScoreError, match=message):
        Config(**settings)
