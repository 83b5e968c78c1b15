"""Small parts that several methods share: checks, full precision, momentum encoders, a queue."""

import copy
from typing import Any, final

import torch
from jaxtyping import Float
from lightly.models.utils import concat_all_gather, deactivate_requires_grad
from lightly.utils.dist import gather, world_size
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from qscore._validate import QScoreError

__all__ = [
    "Queue",
    "check_fractions",
    "check_positive",
    "check_views",
    "from_all_processes",
    "full_precision",
    "momentum_copy",
    "processes",
    "rising",
]


def check_positive(config: Any, *names: str, zero: bool = False) -> None:
    """Refuse settings that are not above zero.

    Parameters
    ----------
    config : dataclass
        The settings.
    names : str
        Fields; those that are None are left out.
    zero : bool
        Whether zero is accepted.

    Raises
    ------
    QScoreError
        If one is not.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not (value > 0 or (zero and value == 0)):
            raise QScoreError(f"{name}: expected {'0 or more' if zero else 'a positive number'}, got {value}")


def check_fractions(config: Any, *names: str) -> None:
    """Refuse settings that are not from 0 to 1.

    Parameters
    ----------
    config : dataclass
        The settings.
    names : str
        Fields.

    Raises
    ------
    QScoreError
        If one is not.
    """
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise QScoreError(f"{name}: expected a number from 0 to 1, got {getattr(config, name)}")


def check_views(views: list[Tensor], expected: int) -> None:
    """Refuse a batch that no method can learn from.

    Parameters
    ----------
    views : list of Tensor
        Each (b, 3, h, w).
    expected : int
        How many views there should be.

    Raises
    ------
    QScoreError
        If there are more or fewer views, or fewer than two images.
    """
    if len(views) != expected:
        raise QScoreError(f"expected {expected} views of each image, got {len(views)}")
    if len(views[0]) < 2:
        raise QScoreError(
            f"expected at least 2 images in a batch, got {len(views[0])}: "
            "one image has nothing to be told apart from; take a larger batch"
        )


def full_precision(x: Tensor) -> Tensor:
    """Return a tensor in at least float32: losses and their statistics do not bear less."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def momentum_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a network that no gradient reaches, for `lightly.models.utils.update_momentum` to move.

    It stays in the mode of what it is part of: in training its BatchNorm uses the batch's statistics, as published by
    MoCo, BYOL and DINO alike, and its running statistics are its own.
    """
    duplicate = copy.deepcopy(module)
    deactivate_requires_grad(duplicate)
    return duplicate


def rising(step: int, total_steps: int, start: float, end: float) -> float:
    """Return what a momentum encoder keeps of itself after a step: half a cosine from ``start`` towards ``end``.

    Parameters
    ----------
    step : int
        Steps already taken, this one included: 1 to ``total_steps``.
    total_steps : int
        Length of the training.
    start, end : float
        Of the first step, and of one after the last.

    References
    ----------
    Grill et al., "Bootstrap Your Own Latent", 2020, section 3.3: 1 - (1 - start) (cos(pi k / K) + 1) / 2 with k from 0.

    Examples
    --------
    >>> [round(rising(step, 4, 0.9, 1.0), 4) for step in (1, 2, 3, 4)]
    [0.9, 0.9146, 0.95, 0.9854]
    """
    value: float = cosine_schedule(step - 1, total_steps + 1, start, end)  # lightly divides by its total less one
    return value


def from_all_processes(z: Float[Tensor, "b d"]) -> Float[Tensor, "n d"]:
    """Return the rows of all processes, with gradients; those of one process alone are returned as they are."""
    return torch.cat(gather(z)) if processes() > 1 else z


def processes() -> int:
    """Return how many processes train together."""
    return int(world_size()) if torch.distributed.is_available() else 1


@final
class Queue(nn.Module):
    """The last ``size`` rows that were pushed, saved with the module.

    lightly's memory bank is not saved, and drops the end of a batch that goes beyond the bank's. All processes push the
    rows of all of them, so that they hold the same.

    Parameters
    ----------
    size : int
        Number of rows; at first random directions, as MoCo has it.
    dim : int
        Values in each.
    """

    rows: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", nn.functional.normalize(torch.randn(size, dim), dim=1))
        self.pushed = 0  # a Python number, since reading one from a GPU would wait for it

    @property
    def full(self) -> bool:
        """Whether the random rows are all gone."""
        return self.pushed >= len(self.rows)

    def forward(self, output: Tensor, update: bool = False) -> tuple[Tensor, Float[Tensor, "dim size"]]:
        """Return what was given, and the rows as columns: what lightly's losses ask of a memory bank."""
        return output, self.rows.clone().T  # a copy: `push` comes before the backward pass

    @torch.no_grad()
    def push(self, rows: Float[Tensor, "b dim"]) -> None:
        """Put rows in the place of the oldest ones."""
        if processes() > 1:
            rows = concat_all_gather(rows)
        self.pushed += len(rows)
        rows = rows[-len(self.rows) :]
        places = torch.arange(self.pushed - len(rows), self.pushed, device=rows.device) % len(self.rows)
        self.rows[places] = rows.to(self.rows.dtype)

    def get_extra_state(self) -> Tensor:
        """Return what belongs into a checkpoint besides the rows."""
        return torch.tensor(self.pushed)

    def set_extra_state(self, state: Tensor) -> None:
        """Take it back."""
        self.pushed = int(state)
