"""The methods that can be trained, by name, and what each must offer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from qscore.images.augment import Augmentation
from qscore.ssl import barlow, byol, dino, moco, simclr, simsiam, swav, vicreg

__all__ = ["METHODS", "Entry", "Method", "TrainingConfig", "local_size"]


class TrainingConfig(Protocol):
    """The fields of a method's ``Config`` that the training loop reads.

    It also reads these where there are any:

    ``augment2`` : Augmentation
        How the second global view is made, where it is made otherwise than the first.
    ``local`` : Augmentation, ``n_local`` : int
        How the local views are made, and how many there are; `local_size` is their size.
    ``lr_end`` : float
        What the learning rate decays to, in the units of ``lr``: for 256 images per step. Else 0.
    ``lr_biases`` : float
        The learning rate of biases and normalisation layers under LARS, in the units of ``lr``.
    ``weight_decay_end`` : float
        What the weight decay moves to, from ``weight_decay``, along half a cosine.
    ``clip_gradient`` : float
        Largest norm of the gradient of all parameters together; 0 leaves it alone.
    """

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
    """A method's module.

    Everything that must survive a resumption is in its ``state_dict``; nothing depends on ``batch_size``. Networks that
    follow others by moving averages have parameters that need no gradient. It may also offer:

    ``after_backward(step, total_steps, epoch)``
        Called once per optimiser step when the gradients are complete, and before they are clipped and used. ``step``
        counts the steps already taken, ``epoch`` the epochs.
    ``after_step(step, total_steps)``
        Called once per optimiser step after it. ``step`` counts the steps already taken, this one included.
    ``constant_lr`` : tuple of nn.Module
        Parts whose learning rate stays at its peak.
    ``h_wanted`` : bool
        True at first; to be set to False by a loop that has no use for the second value of ``__call__``, which may then
        be of the first view alone.
    """

    @property
    def views(self) -> Sequence[Augmentation]:
        """How each view is made; the first two are the global ones, all others smaller."""

    def __call__(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss, in at least float32, and the online encoder's output for both global views, stacked.

        The loss is computed from that very tensor, so that its gradient there can be taken.
        """


class Entry(NamedTuple):
    """A method's module and its settings."""

    build: Callable[[nn.Module, int, Any], Method]
    """Takes a backbone, the number of its features, and a ``Config``."""
    recipes: Mapping[str, Any]
    """Settings by name: ``imagenet``, ``cifar`` and ``small``."""
    check: Callable[[Any, int, int], Any] | None = None
    """Takes a ``Config``, the batch size and the number of images; returns settings in which nothing is None any more,
    and raises a QScoreError where they do not suit the data."""


METHODS = {
    "simclr": Entry(simclr.SimCLR, simclr.RECIPES),
    "moco": Entry(moco.MoCo, moco.RECIPES, moco.settle),
    "swav": Entry(swav.SwAV, swav.RECIPES, swav.settle),
    "byol": Entry(byol.BYOL, byol.RECIPES),
    "simsiam": Entry(simsiam.SimSiam, simsiam.RECIPES),
    "dino": Entry(dino.DINO, dino.RECIPES),
    "vicreg": Entry(vicreg.VICReg, vicreg.RECIPES),
    "barlow": Entry(barlow.BarlowTwins, barlow.RECIPES),
}


def local_size(image_size: int) -> int:
    """Return the side of local views: the multiple of 8 nearest to 96/224 of the images', at least 8, at most theirs.

    Parameters
    ----------
    image_size : int
        Side of the training images in pixels.

    Examples
    --------
    >>> [local_size(side) for side in (224, 96, 64, 32, 8, 4)]
    [96, 40, 24, 16, 8, 4]
    """
    return min(image_size, max(8, 8 * round(image_size * 96 / 224 / 8)))
