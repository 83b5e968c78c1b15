import numpy as np
import pytest
import torch
from captum.attr import IntegratedGradients, LayerGradCam, Saliency
from reference.heatmaps import enlarge, grad_cam
from reference.networks import build, encode, photos
from torch import nn

import qscore
from qscore import QScoreError
from qscore.explain import feature_heatmaps, feature_maps
from qscore.explain.heatmaps import METHODS
from qscore.explain.layers import averaged_layer

FEATURES = [0, 7, 3]
RESNETS = {
    "torchvision:resnet18": "layer4",
    "torchvision:resnet50": "layer4",
    "resnet:10-w16-cifar1": "layer4",
    "small:resnet18-4": "features",
    "small:convnet-4": "features",
    "timm:resnet18": "layer4",
    "timm:resnet10t": "layer4",
    "timm:regnetx_002": "final_conv",
    "timm:test_efficientnet": "bn2",
}


def test_it_is_public():
    assert qscore.feature_heatmaps is feature_heatmaps


@pytest.mark.parametrize("name", RESNETS)
def test_activation_is_grad_cam(name):
    """captum's, called for each feature, before maps are enlarged."""
    encoder, x = build(name), photos()
    assert averaged_layer(encoder, x).path == RESNETS[name]
    features = encoder(x).abs().mean(0).topk(3).indices
    found = feature_maps(encoder, x, features)
    cam = LayerGradCam(encoder, encoder.backbone.get_submodule(RESNETS[name]))
    expected = torch.cat([cam.attribute(x, target=int(j)) for j in features], 1).detach()
    assert expected.abs().max() > 0.001
    assert (found - expected).abs().max() <= 1e-5 * max(1, expected.abs().max().item())


@pytest.mark.parametrize("name", ["torchvision:resnet18", "small:convnet-4"])
def test_positions_add_up_to_the_feature(name):
    encoder, x = build(name), photos()
    maps = feature_maps(encoder, x, range(encoder.dim))
    assert torch.allclose(maps.sum((2, 3)), encoder(x), rtol=1e-4, atol=1e-6)


def test_heatmaps_are_enlarged_maps_cut_at_zero():
    encoder, x = build("timm:test_efficientnet", 96), photos(2, 96, 64)
    maps = feature_maps(encoder, x, FEATURES, layer=None)
    assert maps.shape == (2, 3, 3, 2) and (maps < 0).any()
    found = feature_heatmaps(encoder, x, FEATURES)
    assert found.shape == (2, 3, 96, 64) and found.min() == 0
    np.testing.assert_allclose(found, enlarge(maps.clamp(min=0).double(), 96, 64), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_images_do_not_depend_on_their_neighbours(method):
    encoder, x = build("small:resnet10-4", 32), photos(3, 32, 32)
    together = feature_heatmaps(encoder, x, FEATURES, method)
    assert together.shape == (3, 3, 32, 32) and (together >= 0).all() and together.max() > 0
    for i in range(3):
        assert torch.allclose(feature_heatmaps(encoder, x[i : i + 1], FEATURES, method)[0], together[i], atol=1e-5)
    for k, j in enumerate(FEATURES):
        assert torch.allclose(feature_heatmaps(encoder, x, [j], method)[:, 0], together[:, k], atol=1e-6)


@pytest.mark.parametrize("layer", ["layer1", "layer2.1", "layer3.0.conv1", "layer4"])
def test_grad_cam_at_any_layer(layer):
    encoder, x = build("torchvision:resnet18"), photos()
    cam = LayerGradCam(encoder, encoder.backbone.get_submodule(layer))
    expected = torch.cat([cam.attribute(x, target=j) for j in FEATURES], 1).detach()
    found = feature_maps(encoder, x, FEATURES, "gradcam", layer)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


def test_grad_cam_by_hand():
    encoder, x = build("small:convnet-4", 16), photos(1, 16, 16)
    backbone = encoder.backbone
    first, rest = backbone.features[:2], nn.Sequential(backbone.features[2:], backbone.pool, backbone.flatten)
    found = feature_maps(encoder, x, [5], "gradcam", "features.pool1")
    assert torch.allclose(found[0, 0], grad_cam(rest, first(x), 5), atol=1e-6)


def test_gradients_of_the_image():
    encoder, x = build("small:resnet10-4", 32), photos(2, 32, 32)
    found = feature_heatmaps(encoder, x, FEATURES, "gradient")
    saliency = torch.stack([Saliency(encoder).attribute(x.clone().requires_grad_(), target=j) for j in FEATURES], 1)
    assert torch.allclose(found, saliency.amax(2), atol=1e-6)


def test_gradients_are_slopes():
    """Oracle: the difference that a small step at one position makes."""
    encoder, x = build("small:convnet-4", 16).double(), photos(1, 16, 16).double()
    found = feature_heatmaps(encoder, x, [2], "gradient")[0, 0]
    for row, column in ((3, 4), (8, 8), (15, 0)):
        slopes = []
        for channel in range(3):
            step = torch.zeros_like(x)
            step[0, channel, row, column] = 1e-6
            slopes.append(((encoder(x + step) - encoder(x - step))[0, 2] / 2e-6).abs().item())
        assert found[row, column].item() == pytest.approx(max(slopes), rel=1e-4, abs=1e-9)


def test_integrated_gradients_add_up():
    """Completeness: over all positions they sum to the feature less what it is for the baseline."""
    encoder, x = build("small:resnet10-4", 32), photos(2, 32, 32)
    expected = (encoder(x) - encoder(torch.zeros_like(x)))[:, FEATURES]
    for layer, within in ((None, 0.1), ("features.stage4", 1e-4)):
        maps = feature_maps(encoder, x, FEATURES, "integrated_gradients", layer)
        assert torch.allclose(maps.sum((2, 3)), expected, atol=within * expected.abs().max().item())
    captum = IntegratedGradients(encoder).attribute(x, target=7, n_steps=32).sum(1)
    assert torch.allclose(feature_maps(encoder, x, [7], "integrated_gradients")[:, 0], captum.float(), atol=1e-5)


class InPlace(nn.Module):
    """Maps that are overwritten by what comes after them."""

    def __init__(self, inplace):
        super().__init__()
        self.conv, self.act, self.last = nn.Conv2d(3, 6, 3), nn.ReLU(inplace=inplace), nn.Conv2d(6, 6, 3)

    def forward(self, x):
        maps = self.last(self.act(self.conv(x)))
        return nn.functional.relu(maps, inplace=self.act.inplace).mean((2, 3))


@pytest.mark.parametrize("method", ["activation", "gradcam", "gradient"])
def test_networks_that_work_in_place(method):
    torch.manual_seed(0)
    x = photos(2, 16, 16)
    copy, inplace = (encode(InPlace(flag), 16) for flag in (False, True))
    inplace.load_state_dict(copy.state_dict())
    for layer in ("last",) if method == "activation" else ("conv", "last"):
        found = [feature_maps(encoder, x, [1, 4], method, layer) for encoder in (copy, inplace)]
        assert torch.equal(*found) and found[0].abs().max() > 0
    if method == "activation":  # cut at 0 before it is averaged
        assert torch.allclose(found[0].sum((2, 3)), copy(x)[:, [1, 4]], atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_encoder_is_left_as_it_was(method):
    encoder, x = build("small:resnet10-4", 32), photos(2, 32, 32)
    encoder.backbone.features.stage2.train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    modes = [module.training for module in encoder.modules()]
    frozen = x.clone()
    found = feature_heatmaps(encoder, x, [1], method)
    with pytest.raises(QScoreError):
        feature_heatmaps(encoder, x, [1], method, "flatten")
    assert not found.requires_grad and torch.equal(x, frozen) and not x.requires_grad
    assert [module.training for module in encoder.modules()] == modes and any(modes)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module._forward_hooks for module in encoder.modules())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    encoder.eval()
    assert torch.equal(found, feature_heatmaps(encoder, x, [1], method))


def test_activation_runs_the_network_on_all_images_once():
    encoder, x = build("small:convnet-4", 32), photos(5, 32, 32)
    seen = []
    encoder.register_forward_pre_hook(lambda _, inputs: seen.append((len(inputs[0]), torch.is_grad_enabled())))
    feature_heatmaps(encoder, x, range(32))
    assert seen == [(1, False), (5, False)]  # one image finds the layer


@pytest.mark.parametrize("method", ["activation", "gradcam"])
def test_inside_no_grad_and_inference_mode(method):
    encoder, x = build("small:convnet-4", 32), photos(2, 32, 32)
    expected = feature_heatmaps(encoder, x, FEATURES, method)
    with torch.no_grad():
        assert torch.equal(feature_heatmaps(encoder, x, FEATURES, method), expected)
    with torch.inference_mode():
        x = photos(2, 32, 32)
    assert torch.equal(feature_heatmaps(encoder, x, FEATURES, method), expected)


@pytest.mark.parametrize(
    "features", [np.array([0, 7, 3]), torch.tensor([0, 7, 3]), (0, 7, 3), np.array([0, 7, 3], np.uint8)], ids=type
)
def test_features_in_many_forms(features):
    encoder, x = build("small:convnet-4", 32), photos(2, 32, 32)
    assert torch.equal(feature_maps(encoder, x, features), feature_maps(encoder, x, FEATURES))


@pytest.mark.parametrize("method", METHODS)
def test_no_features(method):
    encoder, x = build("small:convnet-4", 32), photos(2, 32, 32)
    assert feature_heatmaps(encoder, x, [], method).shape == (2, 0, 32, 32)


ONE = (1, 3, 32, 32)
LAYERS = (
    "layers with positions are features.stage1, features.pool1, features.stage2, features.pool2, features.stage3, "
    "features.pool3, features.stage4, features and 32 more"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ONE, [32]), "features: expected indices from 0 to 31, got 32 to 32"),
        ((ONE, [-1, 3]), "features: expected indices from 0 to 31, got -1 to 3"),
        ((ONE, [0.5]), "features: expected an array of indices, or a mask of 32 booleans; got float64 of shape (1,)"),
        ((ONE, [1], "gradcm"),
         "method: expected one of activation, gradcam, gradient, integrated_gradients, got 'gradcm'; did you mean "
         "'gradcam'?"),
        (((3, 32, 32), [1]),
         "images: expected a float tensor (b, 3, h, w) of preprocessed images, b >= 1, got torch.float32 of shape (3, "
         "32, 32)"),
        (((0, 3, 32, 32), [1]),
         "images: expected a float tensor (b, 3, h, w) of preprocessed images, b >= 1, got torch.float32 of shape (0, "
         "3, "
         "32, 32)"),
        (((1, 1, 32, 32), [1]),
         "images: expected a float tensor (b, 3, h, w) of preprocessed images, b >= 1, got torch.float32 of shape (1, "
         "1, 32, "
         "32)"),
        ((ONE, [1], "gradcam", "features.stage5"),
         f"layer 'features.stage5': the network has no such layer; {LAYERS}; did you mean 'features.stage4'?"),
        ((ONE, [1], "gradcam", "pool"),
         "layer 'pool': expected an output with several positions, (b, c, h, w) or (b, n, c), got (b, 32, 1, 1); "
         f"{LAYERS}"),
        ((ONE, [1], "activation", "features.stage2"),
         "activation: the representation is not the average over positions of layer 'features.stage2'; leave the layer "
         "out, or use method='gradcam', which works at any layer"),
    ],
)  # fmt: skip
def test_what_is_refused(arguments, message):
    shape, *rest = arguments
    with pytest.raises(QScoreError) as caught:
        feature_heatmaps(build("small:convnet-4", 32), torch.zeros(shape), *rest)
    assert str(caught.value) == message
