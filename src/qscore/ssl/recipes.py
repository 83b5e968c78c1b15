"""From a method, the data and the user's wishes to a complete plan of a training."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from qscore._validate import QScoreError, nearest
from qscore.encoders.backbones import resolve_name
from qscore.images import ImageSource
from qscore.ssl.methods import METHODS, TrainingConfig, local_size
from qscore.ssl.overrides import replace_fields

__all__ = ["OPTIMIZERS", "STEPS_PER_EPOCH", "WHOLE_VIEWS", "Plan", "check_config", "make_plan"]

log = logging.getLogger(__name__)

OPTIMIZERS = ("lars", "adamw", "sgd")
LARGE_SIDE = 64  # pixels; above it images count as photographs
MANY_IMAGES = 50_000  # what CIFAR has; with fewer, the published recipes take too few steps
LARGEST_SIDE = 224  # pixels; what networks for photographs are made for
NOT_NEGATIVE = (
    *("lr", "lr_end", "lr_biases", "weight_decay", "weight_decay_end"),
    *("momentum", "trust_coefficient", "clip_gradient"),
)
STEPS_PER_EPOCH = 4  # at least, unless the user sets the batch
WHOLE_VIEWS = ("augment", "augment2")  # views that have the size of the training images


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
    devices: int,
    accumulate: int,
) -> Plan:
    """Settle what was left open by the number and the size of the images, and say what was chosen.

    Parameters
    ----------
    method, source, backbone, recipe, epochs, overrides, image_size, devices, accumulate
        As `pretrain` takes them; the batch is rounded down to a multiple of the last two's product.

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
    backbone = resolve_name(backbone or choose_backbone(recipe, image_size))
    config = _settle(recipes[recipe], n, epochs, overrides, image_size, devices * accumulate)
    check = METHODS[method].check
    if check is not None:
        config = check(config, config.batch_size // accumulate, n)  # losses see what goes through together
    log.info(
        "%s on %s images of %d pixels: recipe %s, backbone %s, image size %d, %d epochs, batches of %d",
        *(method, f"{n:,}", side, recipe, backbone, image_size, config.epochs, config.batch_size),
    )
    if left_over := n % config.batch_size:
        log.info("each epoch leaves out %d images, other ones each time, that do not fill a batch", left_over)
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


def _settle(
    recipe: Any, n: int, epochs: int | None, overrides: Mapping[str, Any], image_size: int, parts: int
) -> TrainingConfig:
    changes = dict(overrides)
    for name in WHOLE_VIEWS:
        if f"{name}.size" in changes:
            raise QScoreError(f"{name}.size: set the image size instead; views have the size of the training images")
    if epochs is not None:
        changes["epochs"] = epochs
    config = replace_fields(recipe, _sizes(recipe, image_size) | changes)
    if "warmup_epochs" not in changes:  # a shorter training keeps the shape of the schedule
        config = replace(config, warmup_epochs=recipe.warmup_epochs * config.epochs / recipe.epochs)
    if "batch_size" not in changes:
        config = replace(config, batch_size=min(config.batch_size, max(2, n // STEPS_PER_EPOCH)))
    check_config(config, n, parts)
    settled: TrainingConfig = replace(config, batch_size=config.batch_size // parts * parts)
    return settled


def _sizes(recipe: Any, image_size: int) -> dict[str, int]:
    """Return the sizes of the views that follow from that of the images."""
    sizes = {f"{name}.size": image_size for name in WHOLE_VIEWS if hasattr(recipe, name)}
    return sizes | ({"local.size": local_size(image_size)} if hasattr(recipe, "local") else {})


def check_config(config: TrainingConfig, n: int, parts: int) -> None:
    """Refuse settings that are out of range, or that ``n`` images in so many parts of a batch cannot serve.

    Raises
    ------
    QScoreError
        Naming the setting.
    """
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
    for name in NOT_NEGATIVE:
        if getattr(config, name, 0) < 0:
            raise QScoreError(f"{name}: expected a number of at least 0, got {getattr(config, name)}")
    lr_end = getattr(config, "lr_end", 0.0)
    if lr_end > config.lr:
        raise QScoreError(f"lr_end: expected at most {config.lr}, the learning rate, got {lr_end}")
