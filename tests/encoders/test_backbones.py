import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from qscore._validate import QScoreError
from qscore.encoders import build_backbone, measure_output
from qscore.encoders.backbones import resolve_name


def convolutions(network):
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(
    ("name", "dim"),
    [
        ("small:convnet-8", 64),
        ("small:convnet-4-r96", 96),
        ("small:resnet10-8", 64),
        ("small:resnet18-4-r40", 40),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 8, 32])
def test_small_networks(name, dim, size):
    network = build_backbone(name).eval()
    assert measure_output(network, size) == (dim, True)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        features = network.features(x)
        assert features.shape[:2] == (2, dim) and features.shape[2] >= 1
        torch.testing.assert_close(network(x), features.mean(dim=(2, 3)))


@pytest.mark.parametrize(("size", "side"), [(32, 4), (8, 1)])
@pytest.mark.parametrize("name", ["small:convnet-4", "small:resnet10-4"])
def test_small_networks_shrink_eightfold(name, size, side):
    assert build_backbone(name).eval().features(torch.zeros(1, 3, size, size)).shape == (1, 32, side, side)


def test_convnet_has_eight_convolutions():
    assert len(convolutions(build_backbone("small:convnet-4"))) == 8
    assert len(convolutions(build_backbone("small:convnet-4-r64"))) == 9


def test_resnet18_64_is_torchvisions_with_a_small_stem():
    theirs = resnet18()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool, theirs.fc = nn.Identity(), nn.Identity()
    ours = build_backbone("small:resnet18-64").eval()
    weights = list(theirs.state_dict().values())
    assert [w.shape for w in ours.state_dict().values()] == [w.shape for w in weights]
    ours.load_state_dict(dict(zip(ours.state_dict(), weights, strict=True)))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(ours(x), theirs.eval()(x))


def test_resnet10_has_one_block_in_each_stage():
    network = build_backbone("small:resnet10-8")
    assert [len(network.features.get_submodule(f"stage{i}")) for i in range(1, 5)] == [1, 1, 1, 1]


def test_he_initialisation():
    for conv in convolutions(build_backbone("small:resnet10-32"))[2:6]:
        fan_out = conv.out_channels * conv.kernel_size[0] ** 2
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", ["torchvision:resnet18", "resnet18", "timm:resnet18"])
def test_library_networks_lose_their_classifier(name):
    network = build_backbone(name)
    assert measure_output(network, 64) == (512, True)
    assert not [m for m in network.modules() if isinstance(m, nn.Linear)]


def test_last_linear_layer_only_is_taken_off():
    network = build_backbone("torchvision:vgg11")
    assert [type(m) for m in network.classifier][::3] == [nn.Linear, nn.Linear, nn.Identity]


def test_bare_names_are_torchvisions_before_timms():
    assert resolve_name("resnet18") == "torchvision:resnet18"
    assert resolve_name("vit_tiny_patch16_224") == "timm:vit_tiny_patch16_224"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("torchvision:resnet81", r"did you mean 'torchvision:resnet18'\?"),
        ("timm:resnett18d", r"did you mean 'timm:resnet18d'\?"),
        ("small:convent-32", r"did you mean 'small:convnet-32'\?"),
        ("resnt50", r"did you mean 'resnet50'\?"),
        ("small:convnet-0", "W from 1 to 256"),
        ("small:convnet-257", "W from 1 to 256"),
        ("small:resnet18-8-r1", "N from 2 to 8192"),
        ("small:resnet18-8-r9999", "N from 2 to 8192"),
        ("", ""),
        ("torchvision:", ""),
    ],
)
def test_unknown_names(name, hint):
    with pytest.raises(QScoreError, match=f"^backbone '{name}': expected torchvision:NAME, .*{hint}"):
        build_backbone(name)


def test_network_without_linear_layer():
    with pytest.raises(QScoreError, match="torchvision:squeezenet1_0 has no linear classifier"):
        build_backbone("torchvision:squeezenet1_0")


def test_unknown_timm_tag():
    with pytest.raises(QScoreError, match="timm:resnet18.nonsense: timm cannot build this network: Invalid"):
        build_backbone("timm:resnet18.nonsense")
