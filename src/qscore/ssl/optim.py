"""Optimisers by name, and the one learning-rate schedule."""

import math
from typing import Any

from lightly.utils.lars import LARS
from torch import nn, optim

from qscore.ssl.methods import TrainingConfig

__all__ = ["build_optimizer", "learning_rate_factor"]


def build_optimizer(module: nn.Module, config: TrainingConfig) -> optim.Optimizer:
    """Return LARS, AdamW or SGD over the trainable parameters, at the peak learning rate.

    Biases and the parameters of normalisation layers, all that has one axis, are neither decayed nor, under LARS,
    scaled (SimCLR, section 2.2).

    Parameters
    ----------
    module : nn.Module
        What to train.
    config : TrainingConfig
        ``optimizer``, ``lr`` (for 256 images), ``batch_size``, ``weight_decay``, ``momentum``, ``trust_coefficient``.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim > 1]},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    lr = config.lr * config.batch_size / 256
    decay = config.weight_decay
    if config.optimizer == "adamw":
        return optim.AdamW(groups, lr, weight_decay=decay)
    if config.optimizer == "sgd":
        return optim.SGD(groups, lr, config.momentum, weight_decay=decay)
    lars: optim.Optimizer = LARS(
        groups, lr, config.momentum, weight_decay=decay, trust_coefficient=config.trust_coefficient
    )
    return lars


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the fraction of the peak learning rate: a linear rise, then half a cosine towards 0.

    Parameters
    ----------
    step : int
        Steps already taken.
    total_steps, warmup_steps : int
        Length of the whole training and of the rise.

    Examples
    --------
    >>> [round(learning_rate_factor(step, 6, 2), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))
