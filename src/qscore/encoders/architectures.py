"""Which network a state dict belongs to, found by its keys and shapes."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from qscore._validate import QScoreError
from qscore.encoders.resnets import infer_resnet, original_resnet_key
from qscore.encoders.vits import infer_vit, original_vit_key

__all__ = ["FAMILIES", "Family", "find_family", "infer_architecture"]

CONVNEXT_SIZES = {
    ("3393", 96): "convnext_tiny",
    ("33273", 96): "convnext_small",
    ("33273", 128): "convnext_base",
    ("33273", 192): "convnext_large",
    ("33273", 256): "convnext_xlarge",
}
CONVNEXT_BY_OTHERS = (
    (re.compile(r"^downsample_layers\.0\."), "stem."),
    (re.compile(r"^downsample_layers\.(\d)\."), r"stages.\1.downsample."),
    (re.compile(r"^(stages\.\d)\.(\d+)\.dwconv\."), r"\1.blocks.\2.conv_dw."),
    (re.compile(r"^(stages\.\d)\.(\d+)\.pwconv([12])\."), r"\1.blocks.\2.mlp.fc\3."),
    (re.compile(r"^(stages\.\d)\.(\d+)\."), r"\1.blocks.\2."),
    (re.compile(r"^norm\."), "head.norm."),
)


class Family(NamedTuple):
    """Networks that share their keys."""

    signature: re.Pattern[str]
    """Some key of every member matches it, wherever the checkpoint came from."""
    rename: Callable[[str], str]
    """From a publisher's key to the one that our network has."""
    classifier: str
    """Pattern of the keys of a linear classifier."""


def find_family(keys: list[str]) -> str | None:
    """Return the name of the family that the keys belong to, or None."""
    return next((name for name, family in FAMILIES.items() if any(map(family.signature.match, keys))), None)


def infer_architecture(
    family: str, tensors: Mapping[str, Tensor], *, cifar_padding: int | None, same: bool, heads: int
) -> str:
    """Return the name for `build_backbone` of the network that the tensors are the state dict of.

    Parameters
    ----------
    family : str
        A key of ``FAMILIES``.
    tensors : mapping of str to Tensor
        By our keys; one missing or wrong does not mislead.
    cifar_padding, same, heads
        What no weight tells: padding of a 3x3 stem, TensorFlow's padding, attention heads.

    Raises
    ------
    QScoreError
        If the family has no such member.
    """
    if family == "resnet":
        return infer_resnet(tensors, cifar_padding=cifar_padding, same=same).name
    if family == "vit":
        return infer_vit(tensors, heads=heads).name
    return _infer_convnext(tensors)


def _original_convnext_key(key: str) -> str:
    for pattern, ours in CONVNEXT_BY_OTHERS:
        key = pattern.sub(ours, key)
    return key


def _infer_convnext(tensors: Mapping[str, Tensor]) -> str:
    library = "torchvision" if any(key.startswith("features.") for key in tensors) else "timm"
    stage = r"features\.([1357])\.(\d+)\." if library == "torchvision" else r"stages\.(\d)\.blocks\.(\d+)\."
    found = {match.groups() for key in tensors if (match := re.match(stage, key))}
    stages = sorted({i for i, _ in found})
    depths = "".join(str(sum(i == j for j, _ in found)) for i in stages)
    stem = [t for key, t in tensors.items() if re.fullmatch(r"(features\.0|stem)\.[01]\.(weight|bias)", key)]
    sizes = sorted(t.shape[0] for t in stem if t.ndim)
    width = sizes[len(sizes) // 2] if sizes else 0
    name = CONVNEXT_SIZES.get((depths, width))
    if name is None or (library == "torchvision" and name.endswith("xlarge")):
        known = ", ".join(
            f"{name} (stages {depths}, width {width})" for (depths, width), name in CONVNEXT_SIZES.items()
        )
        raise QScoreError(f"a ConvNeXt with stages {depths} and width {width} is none of those known: {known}")
    return f"{library}:{name}"


FAMILIES = {
    "resnet": Family(re.compile(r"(layer1|4)\.0\.conv1\.|layer2\.0\."), original_resnet_key, r"fc\.(weight|bias)"),
    "vit": Family(re.compile(r"blocks\.(\d+\.)?\d+\.attn\."), original_vit_key, r"head\.(weight|bias)"),
    "convnext": Family(
        re.compile(r"stages\.0\.(blocks\.)?0\.|features\.1\.0\.block\."),
        _original_convnext_key,
        r"head\.(weight|bias|fc\.(weight|bias))|classifier\.2\.(weight|bias)",
    ),
}
