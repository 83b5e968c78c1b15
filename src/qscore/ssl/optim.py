"""Optimisers by name, and the schedules of learning rate and weight decay as functions of the step."""

import math
import sys
from collections.abc import Iterable
from typing import Any

from lightly.utils.lars import LARS
from torch import nn, optim

from qscore.ssl.methods import TrainingConfig

__all__ = ["build_optimizer", "learning_rate_factor", "set_rates", "weight_decay_at"]

BATCH_OF_RATES = 256  # images per step that learning rates are given for


def build_optimizer(module: nn.Module, config: TrainingConfig, constant: Iterable[nn.Module] = ()) -> optim.Optimizer:
    """Return LARS, AdamW or SGD over the trainable parameters, at the peak learning rate.

    Biases and the parameters of normalisation layers, all that has one axis, are neither decayed nor, under LARS,
    scaled (SimCLR, section 2.2).

    Parameters
    ----------
    module : nn.Module
        What to train.
    config : TrainingConfig
        ``optimizer``, ``lr`` (for 256 images), ``batch_size``, ``weight_decay``, ``momentum``, ``trust_coefficient``;
        ``lr_biases`` where LARS has another learning rate for all that has one axis.
    constant : iterable of nn.Module
        Parts of ``module`` whose learning rate `set_rates` leaves at its peak.
    """
    fixed = {id(p) for part in constant for p in part.parameters()}
    trainable = [p for p in module.parameters() if p.requires_grad]
    scale = config.batch_size / BATCH_OF_RATES
    biases = getattr(config, "lr_biases", config.lr) if config.optimizer == "lars" else config.lr
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in trainable if (p.ndim > 1) == decayed and (id(p) not in fixed) == scheduled],
            "weight_decay": _decay(config, config.weight_decay) if decayed else 0.0,
            "decayed": decayed,
            "scheduled": scheduled,
            "lr": (config.lr if decayed else biases) * scale,
            "peak_lr": (config.lr if decayed else biases) * scale,
        }
        for scheduled in (True, False)
        for decayed in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    lr = config.lr * scale
    if config.optimizer == "adamw":
        return optim.AdamW(groups, lr)
    if config.optimizer == "sgd":
        return optim.SGD(groups, lr, config.momentum)
    lars: optim.Optimizer = LARS(groups, lr, config.momentum, trust_coefficient=config.trust_coefficient)
    return lars


def set_rates(
    optimizer: optim.Optimizer, config: TrainingConfig, step: int, total_steps: int, warmup_steps: int
) -> None:
    """Give an optimiser of `build_optimizer` the learning rates and the weight decay of a step.

    Parameters
    ----------
    optimizer : Optimizer
        Changed in place.
    config : TrainingConfig
        ``lr`` and ``weight_decay``; ``lr_end`` and ``weight_decay_end``, where there are any.
    step : int
        Steps already taken.
    total_steps, warmup_steps : int
        Length of the whole training and of the rise of the learning rate.
    """
    end: float = getattr(config, "lr_end", 0.0)
    factor = learning_rate_factor(step, total_steps, warmup_steps, floor=end / config.lr if config.lr else 0.0)
    decay = weight_decay_at(
        step, total_steps, config.weight_decay, getattr(config, "weight_decay_end", config.weight_decay)
    )
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * (factor if group["scheduled"] else 1.0)
        group["weight_decay"] = _decay(config, decay) if group["decayed"] else 0.0


def _decay(config: TrainingConfig, decay: float) -> float:
    """Return what stands for a weight decay: lightly's LARS takes 0 as a sign not to scale the parameters either."""
    return max(decay, sys.float_info.min) if config.optimizer == "lars" else decay


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, floor: float = 0.0) -> float:
    """Return the fraction of the peak learning rate: a linear rise, then half a cosine towards ``floor``.

    Parameters
    ----------
    step : int
        Steps already taken.
    total_steps, warmup_steps : int
        Length of the whole training and of the rise.
    floor : float
        What a step after the last would have, as a fraction of the peak.

    Examples
    --------
    >>> [round(learning_rate_factor(step, 6, 2), 2) for step in range(6)]
    [0.5, 1.0, 1.0, 0.85, 0.5, 0.15]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def weight_decay_at(step: int, total_steps: int, start: float, end: float) -> float:
    """Return the weight decay of a step: half a cosine from ``start`` towards ``end`` (DINO, section 3.2).

    Parameters
    ----------
    step : int
        Steps already taken.
    total_steps : int
        Length of the whole training.
    start, end : float
        Of the first step, and of one after the last.

    Examples
    --------
    >>> [round(weight_decay_at(step, 4, 0.04, 0.4), 3) for step in range(4)]
    [0.04, 0.093, 0.22, 0.347]
    """
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * step / total_steps))
