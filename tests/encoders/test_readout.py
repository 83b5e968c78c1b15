import pytest
import torch
from torch import nn
from torchvision.models import resnet18, vit_b_16

from qscore._validate import QScoreError
from qscore.encoders import build_backbone
from qscore.encoders.readout import read_out

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit():
    return build_backbone("vit:64x2-h1-m128-p8-s32-r3").eval()


@pytest.fixture(scope="module")
def resnet():
    return resnet18().eval()


def run(network, **where):
    with torch.no_grad():
        return read_out(network, **({"layer": None, "tokens": None} | where))(X)


def test_without_a_wish_the_network_is_left_alone(vit):
    assert read_out(vit, layer=None, tokens=None) is vit


def test_tokens_of_a_vision_transformer(vit):
    with torch.no_grad():
        tokens = vit.forward_features(X)
    assert tokens.shape == (2, 1 + 3 + 16, 64)
    assert torch.equal(run(vit, tokens="class"), tokens[:, 0]) and torch.equal(run(vit, tokens="class"), run(vit))
    assert torch.equal(run(vit, tokens="patches"), tokens[:, 4:].mean(1))
    assert torch.equal(run(vit, tokens="both"), torch.cat([tokens[:, 0], tokens[:, 4:].mean(1)], 1))


def test_maps_are_averaged_over_positions(resnet):
    with torch.no_grad():
        features = resnet.layer2(resnet.layer1(resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(X))))))
    assert torch.equal(run(resnet, layer="layer2"), features.mean((2, 3)))


def test_a_module_that_is_used_twice_counts_the_last_time(resnet):
    assert torch.equal(run(resnet, layer="layer1.0.relu"), run(resnet, layer="layer1.0"))


def test_tokens_of_a_layer(vit):
    outputs = []
    with torch.no_grad():
        handle = vit.blocks[0].register_forward_hook(lambda _m, _i, out: outputs.append(out))
        vit(X)
        handle.remove()
    assert torch.equal(run(vit, layer="blocks.0"), outputs[0][:, 0])
    assert torch.equal(run(vit, layer="blocks.0", tokens="patches"), outputs[0][:, 4:].mean(1))


def test_tokens_of_torchvisions_layers():
    network = vit_b_16(image_size=32, num_classes=3).eval()
    h = run(network, layer="encoder.layers.encoder_layer_1", tokens="both")
    assert h.shape == (2, 2 * 768)


def test_channels_may_come_last():
    swin = build_backbone("timm:swin_tiny_patch4_window7_224").eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = swin.layers[0](swin.patch_embed(x)).mean((1, 2))
        assert torch.equal(read_out(swin, layer="layers.0", tokens=None)(x), expected)


def test_hooks_do_not_stay(resnet):
    run(resnet, layer="layer1")
    assert not resnet.layer1._forward_hooks


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"layer": "layr1"}, r"the network has conv1, bn1, .*; did you mean 'layer1'\?"),
        ({"tokens": "klass"}, r"expected one of class, patches, both, got 'klass'; did you mean 'class'\?"),
        ({"tokens": "class"}, "tokens='class': this network has none; leave it out, or name a layer"),
    ],
)
def test_wishes_that_cannot_be_met(resnet, where, message):
    with pytest.raises(QScoreError, match=message):
        run(resnet, **where)


def test_layers_that_give_nothing():
    network = nn.ModuleDict({"used": nn.LSTM(8, 8), "idle": nn.ReLU()})
    network.forward = lambda x: network["used"](x.flatten(1)[:, :8])[0]
    assert run(network, layer="used").shape == (2, 8)
    with pytest.raises(QScoreError, match="layer 'idle' takes no part in the forward pass"):
        run(network, layer="idle")


def test_networks_without_a_class_token():
    network = build_backbone("timm:vit_base_patch16_siglip_224").eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = network.forward_features(x).mean(1)
        assert torch.equal(read_out(network, layer=None, tokens="patches")(x), network.fc_norm(expected))
        with pytest.raises(QScoreError, match="no class token; use 'patches'"):
            read_out(network, layer=None, tokens="both")(x)
