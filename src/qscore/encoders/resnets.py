"""ResNets of every depth, width and stem that checkpoints come with, and their shape from a state dict."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mode

from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from qscore._validate import QScoreError

__all__ = ["NAME", "ResNet", "build_resnet", "infer_resnet", "original_resnet_key"]

DEPTHS = {
    "10": (BasicBlock, (1, 1, 1, 1)),
    "18": (BasicBlock, (2, 2, 2, 2)),
    "34": (BasicBlock, (3, 4, 6, 3)),
    "50": (Bottleneck, (3, 4, 6, 3)),
    "101": (Bottleneck, (3, 4, 23, 3)),
    "152": (Bottleneck, (3, 8, 36, 3)),
    "200": (Bottleneck, (3, 24, 36, 3)),
}
# Those that torchvision has: (depth, width, width of each group, groups).
TORCHVISION = {("18", 64, 64, 1): "resnet18", ("34", 64, 64, 1): "resnet34", ("50", 64, 64, 1): "resnet50"} | {
    ("101", 64, 64, 1): "resnet101",
    ("152", 64, 64, 1): "resnet152",
    ("50", 64, 128, 1): "wide_resnet50_2",
    ("101", 64, 128, 1): "wide_resnet101_2",
    ("50", 64, 4, 32): "resnext50_32x4d",
    ("101", 64, 8, 32): "resnext101_32x8d",
    ("101", 64, 4, 64): "resnext101_64x4d",
}
NAME = re.compile(r"(10|18|34|50|101|152|200)(?:-w(\d{1,4}))?(?:-b(\d{1,4}))?(?:-g(\d{1,3}))?(?:-cifar([12]))?(-same)?")
# torchvision's ResNet cut into a list of its children, as in nn.Sequential(*list(resnet.children())[:-1]).
CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


@dataclass(frozen=True)
class ResNet:
    """The shape of a ResNet."""

    depth: str
    """A key of ``DEPTHS``."""
    width: int = 64
    """Channels of the stem; each stage doubles them."""
    base_width: int = 64
    """Channels of each group inside a bottleneck, where the stem has 64."""
    groups: int = 1
    """Groups of the 3x3 convolutions."""
    cifar_padding: int | None = None
    """Padding of a 3x3 stem of stride 1 without max-pool; None where the stem is the usual 7x7."""
    same: bool = False
    """Whether convolutions and pooling pad as TensorFlow's "SAME"."""

    @property
    def name(self) -> str:
        """What `build_backbone` understands."""
        shape = (self.depth, self.width, self.base_width, self.groups)
        if self.cifar_padding is None and not self.same and shape in TORCHVISION:
            return f"torchvision:{TORCHVISION[shape]}"
        parts = [
            self.depth,
            f"w{self.width}" if self.width != 64 else "",
            f"b{self.base_width}" if self.base_width != 64 else "",
            f"g{self.groups}" if self.groups != 1 else "",
            f"cifar{self.cifar_padding}" if self.cifar_padding is not None else "",
            "same" if self.same else "",
        ]
        return "resnet:" + "-".join(filter(None, parts))


def build_resnet(name: str) -> nn.Module:
    """Build a randomly initialised ResNet without a classifier, (b, 3, h, w) to (b, r).

    Parameters
    ----------
    name : str
        A depth, then what is unlike torchvision's ResNet of that depth: ``-wW`` for a stem of W channels, ``-bB`` for
        groups of B channels, ``-gG`` for G groups, ``-cifarP`` for a 3x3 stem with padding P and no max-pool,
        ``-same`` for TensorFlow's padding; such as ``"18-cifar2"`` or ``"50-same"``.
    """
    depth, width, base_width, groups, cifar, same = NAME.fullmatch(name).groups()  # type: ignore[union-attr]
    block, blocks = DEPTHS[depth]
    channels = int(width or 64)
    parts = OrderedDict[str, nn.Module]()
    if cifar is None:
        parts["conv1"] = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
    else:
        parts["conv1"] = nn.Conv2d(3, channels, 3, padding=int(cifar), bias=False)
    parts["bn1"] = nn.BatchNorm2d(channels)
    parts["relu"] = nn.ReLU(inplace=True)
    if cifar is None:
        parts["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    before = channels
    for i, count in enumerate(blocks):
        stage = (channels << i, 1 if i == 0 else 2, int(groups or 1), int(base_width or 64))
        parts[f"layer{i + 1}"] = _stage(block, count, before, *stage)
        before = (channels << i) * block.expansion
    parts |= {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    network = nn.Sequential(parts)
    return _pad_same(network) if same else network


def _stage(
    block: type[BasicBlock | Bottleneck],
    count: int,
    before: int,
    planes: int,
    stride: int,
    groups: int,
    base_width: int,
) -> nn.Module:
    out = planes * block.expansion
    shortcut = None
    if stride != 1 or before != out:
        shortcut = nn.Sequential(nn.Conv2d(before, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    first = block(before, planes, stride, shortcut, groups, base_width)
    return nn.Sequential(first, *(block(out, planes, 1, None, groups, base_width) for _ in range(count - 1)))


def _pad_same(network: nn.Module) -> nn.Module:
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            same = Conv2dSame(
                module.in_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                groups=module.groups,
                bias=False,
            )
            same.weight = module.weight
            network.set_submodule(path, same)
        elif isinstance(module, nn.MaxPool2d):
            network.set_submodule(path, MaxPool2dSame(module.kernel_size, module.stride))
    return network


def infer_resnet(tensors: Mapping[str, Tensor], *, cifar_padding: int | None, same: bool) -> ResNet:
    """Find the shape of the ResNet whose state dict this is; a key or two may be missing or wrong.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Weights by torchvision's names.
    cifar_padding : int or None
        Padding of a 3x3 stem, which no weight tells; None for a 7x7 stem.
    same : bool
        Whether the network was trained with TensorFlow's padding.

    Raises
    ------
    QScoreError
        If the stages are those of no ResNet.
    """
    blocks = tuple(_count(tensors, f"layer{i}.") for i in range(1, 5))
    bottleneck = any(key.endswith(".conv3.weight") for key in tensors)
    block = Bottleneck if bottleneck else BasicBlock
    depth = next((name for name, shape in DEPTHS.items() if shape == (block, blocks)), None)
    if depth is None:
        known = ", ".join(f"ResNet-{name} {shape[1]}" for name, shape in DEPTHS.items())
        kind = "bottleneck" if bottleneck else "basic"
        raise QScoreError(f"a ResNet with {blocks} {kind} blocks is none of those known: {known}")
    width = _vote(tensors, {"conv1.weight": 0, "bn1.weight": 0, "bn1.running_mean": 0, "layer1.0.conv1.weight": 1}, 64)
    inner = _vote(tensors, {"layer1.0.conv1.weight": 0, "layer1.0.bn1.weight": 0, "layer1.0.bn1.bias": 0}, width)
    per_group = _vote(tensors, {f"layer1.{i}.conv2.weight": 1 for i in range(blocks[0])}, inner)
    groups = max(1, inner // max(1, per_group)) if bottleneck else 1
    base_width = 64 * inner // (width * groups) if bottleneck and width else 64
    return ResNet(depth, width, base_width, groups, cifar_padding, same)


def original_resnet_key(key: str) -> str:
    """Return torchvision's name for a key of its network's list of children."""
    first, dot, rest = key.partition(".")
    return CHILDREN.get(first, first) + dot + rest


def _count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    found = {key[len(prefix) :].partition(".")[0] for key in tensors if key.startswith(prefix)}
    return len({number for number in found if number.isdecimal()})


def _vote(tensors: Mapping[str, Tensor], places: Mapping[str, int], default: int) -> int:
    """Return the size most of the places agree on, so that one wrong tensor is found out instead of followed."""
    votes = [tensors[key].shape[axis] for key, axis in places.items() if key in tensors and tensors[key].ndim > axis]
    return mode(votes) if votes else default
