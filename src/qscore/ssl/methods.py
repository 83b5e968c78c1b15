"""The methods that can be trained, by name, and what each must offer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from qscore.images.augment import Augmentation
from qscore.ssl import simclr

__all__ = ["METHODS", "Entry", "Method", "TrainingConfig"]


class TrainingConfig(Protocol):
    """The fields of a method's ``Config`` that the training loop reads."""

    epochs: int
    warmup_epochs: float
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    momentum: float
    trust_coefficient: float
    augment: Augmentation


class Method(Protocol):
    """A method's module; it may also offer ``after_step(step, total_steps)``, called after each optimiser step."""

    @property
    def views(self) -> Sequence[Augmentation]:
        """How each view is made; the first two are the global ones."""

    def __call__(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss, and the online encoder's output for both global views, stacked."""


class Entry(NamedTuple):
    """A method's module and its settings."""

    build: Callable[[nn.Module, int, Any], Method]
    recipes: Mapping[str, Any]


METHODS = {"simclr": Entry(simclr.SimCLR, simclr.RECIPES)}
