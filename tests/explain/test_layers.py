"""Layers with positions: tokens, channels last, the last one that counts; and networks that have none."""

import pytest
import torch
from reference.networks import build, encode, photos, tower, vit
from torch import nn

from qscore import QScoreError
from qscore.explain import feature_heatmaps, feature_maps
from qscore.explain.heatmaps import METHODS
from qscore.explain.layers import averaged_layer, explaining_layer

FEATURES = [0, 7, 3]


def test_token_maps_of_a_mean_are_the_tokens():
    encoder, x = vit("patches", reg_tokens=2), photos(2, 32, 48)
    network = encoder.backbone.network
    found = feature_maps(encoder, x, FEATURES)
    tokens = network.forward_features(x)[:, 3:, FEATURES]  # behind the class token and two registers
    assert found.shape == (2, 3, 4, 6)
    for row in range(4):
        for column in range(6):
            assert torch.allclose(found[:, :, row, column], tokens[:, 6 * row + column] / 24, atol=1e-6)
    assert torch.allclose(found.sum((2, 3)), encoder(x)[:, FEATURES], atol=1e-5)


def test_grad_cam_on_the_tokens_that_a_class_token_reads():
    """Oracle: the last block by hand, from the tokens that enter its attention."""
    encoder, x = vit(reg_tokens=1), photos(2, 32, 32)
    network, last = encoder.backbone, encoder.backbone.blocks[-1]
    assert explaining_layer(encoder, x).path == "blocks.2.norm1"
    found = feature_maps(encoder, x, FEATURES, "gradcam")
    for i in range(2):
        tokens = network.patch_embed(x[i : i + 1])
        tokens = network.norm_pre(network._pos_embed(tokens))
        before = network.blocks[:-1](tokens).detach()
        normed = last.norm1(before).detach().requires_grad_()
        after = before + last.ls1(last.attn(normed))
        after = after + last.mlp(last.norm2(after))
        h = network.norm(after)[:, 0]
        for k, j in enumerate(FEATURES):
            (grad,) = torch.autograd.grad(h[0, j], normed, retain_graph=True)
            patches, slopes = normed.detach()[0, 2:], grad[0, 2:]
            heat = (patches * slopes.mean(0)).sum(1).reshape(4, 4)
            assert heat.abs().max() > 1e-4
            assert torch.allclose(found[i, k], heat, rtol=1e-3, atol=1e-6)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "path", "grid"),
    [
        (lambda: vit(), "blocks.2.norm1", (4, 4)),
        (lambda: vit("patches"), "norm", (4, 4)),
        (lambda: vit("both"), "blocks.2.norm1", (4, 4)),
        (lambda: vit(layer="blocks.1"), "blocks.1.norm1", (4, 4)),
        (lambda: vit("patches", "blocks.1"), "blocks.1", (4, 4)),
        (lambda: vit(global_pool="avg", class_token=False), "norm", (4, 4)),
        (lambda: vit(global_pool="map", class_token=False), "norm", (4, 4)),
        (lambda: build("timm:test_convnext", 96), "norm_pre", (3, 3)),
        (lambda: build("torchvision:resnet18", layer="layer3"), "layer3", (4, 4)),
        (lambda: tower("Dinov2WithRegisters"), "model.encoder.layer.1.norm1", (4, 4)),
        (lambda: tower("SiglipVision"), "model", (4, 4)),
        (lambda: tower("ResNet"), "model", (2, 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_last_layer_with_a_say(make, path, grid):
    encoder = make()
    size = encoder.preprocess.crop
    x = photos(2, size, size)
    layer = explaining_layer(encoder, x)
    assert (layer.path, layer.height, layer.width) == (path, *grid)
    found = feature_heatmaps(encoder, x, range(encoder.dim), "gradcam")
    assert (found.amax((2, 3)) > 0).float().mean() > 0.2 and found.shape == (2, encoder.dim, size, size)


def test_a_heatmap_points_at_what_moves_the_feature():
    """Of a network whose features see nothing but brightness in their own patch, on a grid that is not square."""

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.norm = nn.Conv2d(3, 5, 8, 8), nn.Identity()
            self.cls_token = nn.Parameter(torch.zeros(1, 1, 5))
            nn.init.constant_(self.embed.weight, 0.1)
            nn.init.zeros_(self.embed.bias)

        def forward(self, x):
            tokens = self.embed(x).flatten(2).transpose(1, 2)
            return self.norm(torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1))[:, 1:].mean(1)

    encoder = encode(Patches(), 32)
    x = torch.zeros(1, 3, 24, 56)
    x[:, :, 8:16, 40:48] = 1
    for method, layer in (("activation", None), ("gradcam", None), ("integrated_gradients", "norm")):
        heat = feature_heatmaps(encoder, x, [2], method, layer)[0, 0]
        assert heat.shape == (24, 56)
        assert heat[12, 44] == heat.max() > 0 and heat[:, :32].max() == 0


class ChannelsLast(nn.Module):
    output_fmt = "NHWC"

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8)

    def forward(self, x):
        return self.last(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2))


@pytest.mark.parametrize("method", METHODS)
def test_maps_with_channels_last(method):
    torch.manual_seed(0)
    encoder, x = encode(ChannelsLast(), 32), photos(2, 32, 24)
    layer = averaged_layer(encoder, x)
    assert (layer.path, layer.layout, layer.height, layer.width) == ("last", "map, channels last", 8, 6)
    found = feature_maps(encoder, x, FEATURES, method, "last")

    def maps(x):
        conv, last = encoder.backbone.conv, encoder.backbone.last
        return last(conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)[:, FEATURES] / 48

    expected = maps(x)
    if method == "gradient":
        expected = torch.full_like(expected, 1 / 48)
    if method == "integrated_gradients":
        expected = expected - maps(torch.zeros_like(x))
    assert torch.allclose(found, expected, atol=1e-6)


def test_images_that_are_no_tensor():
    with pytest.raises(QScoreError, match=r"images: expected a float tensor .*, got list"):
        feature_heatmaps(build("small:convnet-4", 32), [1, 2], [0])


def test_an_encoder_without_positions():
    encoder = encode(nn.Sequential(nn.Flatten(), nn.Linear(192, 16)), 8, name="a perceptron")
    for method in ("gradcam", "activation"):
        with pytest.raises(QScoreError) as caught:
            feature_heatmaps(encoder, torch.zeros(1, 3, 8, 8), [0], method)
        assert str(caught.value) == (
            "the encoder a perceptron has no layer with several positions for images of 8 x 8 pixels; its layers are "
            "0, 1; use larger images, or method='gradient'"
        )
    assert feature_heatmaps(encoder, torch.zeros(1, 3, 8, 8), [0], "gradient").shape == (1, 1, 8, 8)


def test_images_too_small_for_several_positions():
    encoder = build("small:convnet-4", 32)
    with pytest.raises(QScoreError, match=r"average over positions of none of its layers, for images of 8 x 8 pixels"):
        feature_heatmaps(encoder, photos(1, 8, 8), [0])
    assert feature_heatmaps(encoder, photos(1, 8, 8), [0], "gradcam").shape == (1, 1, 8, 8)


def test_a_class_token_has_no_closed_form():
    with pytest.raises(QScoreError) as caught:
        feature_heatmaps(vit(), photos(1, 32, 32), [0])
    assert str(caught.value) == (
        "activation: the representation of test is the average over positions of none of its layers, for images of 32 "
        "x "
        "32 pixels; use method='gradcam', for which layers with positions are patch_embed, pos_drop, patch_drop, "
        "norm_pre, blocks.1, blocks.2, blocks, norm and 30 more"
    )
