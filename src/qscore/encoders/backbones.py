"""Randomly initialised networks by name: torchvision's, timm's, and small ones for small images."""

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock

from qscore._validate import QScoreError, nearest
from qscore.encoders import resnets, vits

__all__ = ["build_backbone", "drop_classifier", "resolve_name"]

SMALL_NAME = re.compile(r"(convnet|resnet10|resnet18)-(\d{1,3})(?:-r(\d{1,4}))?")
RESNET_BLOCKS = {"resnet10": 1, "resnet18": 2}


class Library(NamedTuple):
    """Where backbones come from."""

    knows: Callable[[str], bool]
    build: Callable[[str], nn.Module]
    names: Callable[[], Iterable[str]]


def build_backbone(name: str) -> nn.Module:
    """Build a randomly initialised network without a classifier.

    Parameters
    ----------
    name : str
        ``"torchvision:NAME"``, ``"timm:NAME"``, or one of the small networks for images of 8 to 64 pixels:
        ``"small:convnet-W"`` (8 convolutions), ``"small:resnet10-W"``, ``"small:resnet18-W"`` (3x3 stem), of width W
        and with r = 8 W features; ``-rN`` behind it gives r = N. ``"resnet:..."`` and ``"vit:..."`` are the other
        networks that checkpoints hold. A bare name is looked up in torchvision, then timm.

    Returns
    -------
    nn.Module
        Maps (b, 3, h, w) to (b, r). The small networks are ``features`` (b, r, h', w'), ``pool`` and ``flatten``, and
        end in a ReLU, so that no representation has a negative value.

    Raises
    ------
    QScoreError
        If there is no such network, or it has no classifier that could be taken off.

    Examples
    --------
    >>> import torch
    >>> from qscore.encoders import build_backbone
    >>> build_backbone("small:resnet10-16-r96")(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 96])
    """
    library, _, model = resolve_name(name).partition(":")
    return LIBRARIES[library].build(model)


def resolve_name(name: str) -> str:
    """Return the name of a backbone with its library before it.

    Raises
    ------
    QScoreError
        If no library has it; names the nearest match.
    """
    library, colon, model = name.partition(":")
    if colon and library in LIBRARIES and LIBRARIES[library].knows(model):
        return name
    if not colon:
        for library in ("torchvision", "timm"):
            if LIBRARIES[library].knows(name):
                return f"{library}:{name}"
    known = [f"{library}:{model}" for library in LIBRARIES for model in LIBRARIES[library].names()]
    if not colon:
        known += [known_name.partition(":")[2] for known_name in known]
    raise QScoreError(
        f"backbone {name!r}: expected torchvision:NAME, timm:NAME, or small:convnet-W, small:resnet10-W, "
        f"small:resnet18-W (W from 1 to 256; -rN behind it for N from 2 to 8192 features){nearest(name, known)}"
    )


def drop_classifier(model: nn.Module, name: str) -> str:
    """Replace the last linear layer by the identity, so that what was its input comes out, and return its path.

    Raises
    ------
    QScoreError
        If the network has no linear layer.
    """
    linear: list[str] = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise QScoreError(
            f"torchvision:{name} has no linear classifier that could be taken off; choose another network"
        )
    model.set_submodule(linear[-1], nn.Identity())
    return linear[-1]


def _torchvision_names() -> list[str]:
    return list(models.list_models(module=models))


def _torchvision(name: str) -> nn.Module:
    model: nn.Module = models.get_model(name, weights=None)
    drop_classifier(model, name)
    return model


def _timm_knows(name: str) -> bool:
    import timm  # slow to import, and often not needed

    return timm.is_model(name)


def _timm_names() -> list[str]:
    import timm

    return timm.list_models()


def _timm(name: str) -> nn.Module:
    import timm

    try:
        return timm.create_model(name, pretrained=False, num_classes=0)
    except RuntimeError as error:
        raise QScoreError(f"timm:{name}: timm cannot build this network: {error}") from error


def _small_knows(name: str) -> bool:
    match = SMALL_NAME.fullmatch(name)
    return match is not None and 1 <= int(match[2]) <= 256 and 2 <= int(match[3] or 8) <= 8192


def _small_names() -> list[str]:
    return ["convnet-32", "resnet10-32", "resnet18-64"]


def _small(name: str) -> nn.Module:
    kind, width, features = SMALL_NAME.fullmatch(name).groups()  # type: ignore[union-attr]
    widths = [int(width) * factor for factor in (1, 2, 4, 8)]
    stages = _conv_stages(widths) if kind == "convnet" else _residual_stages(widths, RESNET_BLOCKS[kind])
    if features is not None:
        stages["expand"] = _conv(widths[-1], int(features), kernel=1)
    for module in (m for stage in stages.values() for m in stage.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    parts = {"features": nn.Sequential(stages), "pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(parts))


def _conv_stages(widths: list[int]) -> "OrderedDict[str, nn.Module]":
    stages = OrderedDict[str, nn.Module]()
    before = 3
    for i, width in enumerate(widths, start=1):
        stages[f"stage{i}"] = nn.Sequential(_conv(before, width), _conv(width, width))
        if i < len(widths):
            stages[f"pool{i}"] = nn.MaxPool2d(2, ceil_mode=True)  # rounding up keeps a single pixel
        before = width
    return stages


def _residual_stages(widths: list[int], blocks: int) -> "OrderedDict[str, nn.Module]":
    stages = OrderedDict[str, nn.Module](stem=_conv(3, widths[0]))
    before = widths[0]
    for i, width in enumerate(widths, start=1):
        first = _basic_block(before, width, stride=1 if i == 1 else 2)
        stages[f"stage{i}"] = nn.Sequential(first, *(_basic_block(width, width) for _ in range(blocks - 1)))
        before = width
    return stages


def _basic_block(before: int, width: int, stride: int = 1) -> nn.Module:
    shortcut = None
    if stride != 1 or before != width:
        shortcut = nn.Sequential(nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    block: nn.Module = BasicBlock(before, width, stride, shortcut)
    return block


def _conv(before: int, width: int, kernel: int = 3) -> nn.Module:
    conv = nn.Conv2d(before, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def _numbers_fit(pattern: re.Pattern[str]) -> Callable[[str], bool]:
    def knows(name: str) -> bool:
        match = pattern.fullmatch(name)
        numbers = [int(part) for part in (match.groups() if match else ()) if part and part.isdecimal()]
        named = match.groupdict() if match else {}
        divided = not named or int(named["width"]) % max(1, int(named["heads"])) == 0
        return match is not None and min(numbers) >= 1 and divided

    return knows


LIBRARIES = {
    "torchvision": Library(lambda name: name in _torchvision_names(), _torchvision, _torchvision_names),
    "timm": Library(_timm_knows, _timm, _timm_names),
    "small": Library(_small_knows, _small, _small_names),
    "resnet": Library(_numbers_fit(resnets.NAME), resnets.build_resnet, lambda: ["18-cifar2", "50-same", "50-w128"]),
    "vit": Library(_numbers_fit(vits.NAME), vits.build_vit, lambda: ["384x12-h6-m1536-p16-s224"]),
}
