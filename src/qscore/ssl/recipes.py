"""From a method, the data and the user's wishes to a complete plan of a training."""

import logging
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any

import numpy as np

from qscore._validate import QScoreError, nearest
from qscore.images import ImageSource
from qscore.ssl.methods import METHODS, TrainingConfig

__all__ = ["OPTIMIZERS", "Plan", "make_plan", "parse_overrides"]

log = logging.getLogger(__name__)

OPTIMIZERS = ("lars", "adamw", "sgd")
LARGE_SIDE = 64  # pixels; above it images count as photographs
MANY_IMAGES = 50_000  # what CIFAR has; with fewer, the published recipes take too few steps
LARGEST_SIDE = 224  # pixels; what networks for photographs are made for
STEPS_PER_EPOCH = 4  # at least, unless the user sets the batch
KINDS = {int: "an integer", float: "a number", str: "a word", tuple[float, float]: "two numbers with a comma between"}


@dataclass(frozen=True)
class Plan:
    """All that decides what a training computes, apart from the images and the seed."""

    method: str
    """Name in `METHODS`."""
    recipe: str
    """Name of the recipe the settings started from."""
    backbone: str
    """Name for `build_backbone`."""
    image_size: int
    """Side of the training images in pixels."""
    config: TrainingConfig
    """The method's settings, complete."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        config: Any = self.config
        return {
            "method": self.method,
            "recipe": self.recipe,
            "backbone": self.backbone,
            "image_size": self.image_size,
            "config": asdict(config),
        }


def make_plan(
    method: str,
    source: ImageSource,
    *,
    backbone: str | None,
    recipe: str,
    epochs: int | None,
    overrides: Mapping[str, Any],
    image_size: int | None,
    parts: int,
) -> Plan:
    """Settle what was left open by the number and the size of the images, and say what was chosen.

    Parameters
    ----------
    method, source, backbone, recipe, epochs, overrides, image_size
        As `pretrain` takes them.
    parts : int
        Micro-batches that make one batch; the batch is rounded down to a multiple.

    Raises
    ------
    QScoreError
        If a name is unknown, a value is out of range, or there are too few images.
    """
    if method not in METHODS:
        raise QScoreError(f"method {method!r}: expected one of {', '.join(METHODS)}{nearest(method, METHODS)}")
    recipes = METHODS[method].recipes
    if recipe not in ("auto", *recipes):
        raise QScoreError(f"recipe {recipe!r}: expected auto, {', '.join(recipes)}{nearest(recipe, recipes)}")
    n = len(source)
    if n < 2:
        raise QScoreError(f"{source.name}: expected at least 2 images to train on, got {n}")
    side = typical_side(source)
    if image_size is None:
        image_size = min(side, LARGEST_SIDE)
    if recipe == "auto":
        recipe = choose_recipe(n, side)
    if backbone is None:
        backbone = choose_backbone(recipe, image_size)
    config = _settle(recipes[recipe], n, epochs, overrides, image_size, parts)
    log.info(
        "%s on %s images of %d pixels: recipe %s, backbone %s, image size %d, %d epochs, batches of %d",
        *(method, f"{n:,}", side, recipe, backbone, image_size, config.epochs, config.batch_size),
    )
    return Plan(method, recipe, backbone, image_size, config)


def typical_side(source: ImageSource) -> int:
    """Return the median of the shorter sides of up to 32 images, evenly spaced, in pixels."""
    positions = np.unique(np.linspace(0, len(source) - 1, 32).astype(int))
    return int(np.median([min(source.image(int(i)).size) for i in positions]))


def choose_recipe(n: int, side: int) -> str:
    """Return the recipe for ``n`` images whose shorter side has ``side`` pixels."""
    if n < MANY_IMAGES:
        return "small"
    return "cifar" if side <= LARGE_SIDE else "imagenet"


def choose_backbone(recipe: str, image_size: int) -> str:
    """Return the backbone for a recipe and an image size in pixels."""
    if image_size <= LARGE_SIDE:
        return "small:resnet10-16-r256" if recipe == "small" else "small:resnet18-64"
    return "torchvision:resnet18" if recipe == "small" else "torchvision:resnet50"


def parse_overrides(assignments: Sequence[str], config: Any) -> dict[str, Any]:
    """Read ``key=value`` strings by the types of a method's settings.

    Parameters
    ----------
    assignments : sequence of str
        E.g. ``["lr=0.1", "augment.scale=0.2,1"]``; a dot leads into nested settings.
    config : dataclass or type
        The settings, or their class.

    Raises
    ------
    QScoreError
        If a field is unknown, with the nearest match, or a value is not of its type.

    Examples
    --------
    >>> from qscore.ssl.simclr import Config
    >>> parse_overrides(["lr=0.1", "augment.scale=0.2,1"], Config)
    {'lr': 0.1, 'augment.scale': (0.2, 1.0)}
    """
    parsed = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise QScoreError(f"{assignment!r}: expected key=value, such as lr=0.1")
        parsed[key] = _parse(key, text, _field_type(key, config))
    return parsed


def _parse(key: str, text: str, kind: Any) -> Any:
    try:
        if typing.get_origin(kind) is tuple:
            low, high = map(float, text.split(","))
            return low, high
        return kind(text)
    except ValueError as error:
        raise QScoreError(f"{key}: expected {KINDS[kind]}, got {text!r}") from error


def _field_type(key: str, config: Any) -> Any:
    hints = typing.get_type_hints(config if isinstance(config, type) else type(config))
    head, dot, rest = key.partition(".")
    nested = {f"{name}.{inner}" for name, kind in hints.items() if is_dataclass(kind) for inner in _names(kind)}
    flat = {name for name, kind in hints.items() if not is_dataclass(kind)}
    if key not in flat | nested:
        suggestion = nearest(key, flat | nested) or nearest(f"augment.{key}", nested)
        raise QScoreError(f"unknown setting {key!r}{suggestion}; known are {', '.join(sorted(flat))} and augment.*")
    return _field_type(rest, hints[head]) if dot else hints[key]


def _names(kind: Any) -> list[str]:
    return list(typing.get_type_hints(kind))


def _settle(
    recipe: Any, n: int, epochs: int | None, overrides: Mapping[str, Any], image_size: int, parts: int
) -> TrainingConfig:
    changes = dict(overrides)
    if "augment.size" in changes:
        raise QScoreError("augment.size: set the image size instead; views have the size of the training images")
    if epochs is not None:
        changes["epochs"] = epochs
    config = _replace(recipe, changes | {"augment.size": image_size})
    if "warmup_epochs" not in changes:  # a shorter training keeps the shape of the schedule
        config = replace(config, warmup_epochs=recipe.warmup_epochs * config.epochs / recipe.epochs)
    if "batch_size" not in changes:
        config = replace(config, batch_size=min(config.batch_size, max(2, n // STEPS_PER_EPOCH)))
    _check(config, n, parts)
    settled: TrainingConfig = replace(config, batch_size=config.batch_size // parts * parts)
    return settled


def _replace(config: Any, changes: Mapping[str, Any]) -> Any:
    for key, value in changes.items():
        kind = _field_type(key, config)
        if not _fits(value, kind):
            raise QScoreError(f"{key}: expected {KINDS[kind]}, got {value!r}")
    nested = {key.partition(".")[0] for key in changes if "." in key}
    inner = {
        name: replace(
            getattr(config, name),
            **{key.partition(".")[2]: value for key, value in changes.items() if key.startswith(f"{name}.")},
        )
        for name in nested
    }
    return replace(config, **{key: value for key, value in changes.items() if "." not in key}, **inner)


def _fits(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple | list) and len(value) == 2 and all(_fits(part, float) for part in value)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and not isinstance(value, bool)


def _check(config: TrainingConfig, n: int, parts: int) -> None:
    if config.epochs < 1:
        raise QScoreError(f"epochs: expected at least 1, got {config.epochs}")
    if not 0 <= config.warmup_epochs < config.epochs:
        raise QScoreError(f"warmup_epochs: expected from 0 to below {config.epochs} epochs, got {config.warmup_epochs}")
    if not 2 <= config.batch_size <= n:
        raise QScoreError(f"batch_size: expected 2 to {n}, the number of images, got {config.batch_size}")
    if config.batch_size < 2 * parts:
        raise QScoreError(
            f"batch_size: expected at least 2 images in each of {parts} parts, got {config.batch_size} images"
        )
    if config.optimizer not in OPTIMIZERS:
        raise QScoreError(
            f"optimizer {config.optimizer!r}: expected one of {', '.join(OPTIMIZERS)}"
            f"{nearest(config.optimizer, OPTIMIZERS)}"
        )
    for name in ("lr", "weight_decay", "momentum"):
        if getattr(config, name) < 0:
            raise QScoreError(f"{name}: expected a number of at least 0, got {getattr(config, name)}")
