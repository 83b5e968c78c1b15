"""The monitor for plain training loops."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from qscore._validate import Epsilon, QScoreError, settle_epsilon
from qscore.monitor.collapse import Watch
from qscore.monitor.held_out import HeldOut
from qscore.monitor.measurement import Measurement, append_csv, measure
from qscore.monitor.network import embed_batch, find_encoder, unchanged
from qscore.scoring import load_scorer

__all__ = ["QScoreMonitor"]

Rows = list[tuple[int, np.ndarray]]


@final
class QScoreMonitor:
    """Measures a representation during training, on held-out images without labels.

    Called with a module and the epoch, it embeds the images in evaluation mode, measures, and warns of collapse. The
    training does not notice: modes of all submodules, gradients and random states stay as they were. It costs one
    embedding pass over the images, and what is measured on them.

    Where PyTorch runs several processes, each embeds its share of the batches and all return the figures of one.

    Parameters
    ----------
    images : DataLoader, Dataset, Tensor, iterable of batches, ImageSource, str or Path
        Held-out images; the same ones are taken every time, spread evenly over a data set. Batches and items are
        tensors (b, c, h, w) and (c, h, w), or tuples and lists that begin with one; labels are not looked at. A path
        is what `open_images` understands.
    transform : callable, optional
        Makes the encoder's input, a tensor (c, h, w), of an image; required where images are files.
    encoder : str, nn.Module, callable or None, default="backbone"
        Where the representation comes from: an attribute of the module, with dots (lightly's and solo-learn's modules
        have ``backbone``), a network, a function of ``(module, x)``, or None for the module itself. Its output has
        shape (b, r) or (b, r, h, w), which is averaged over h and w; of a tuple the first entry counts.
    features : array, QScorer, str or Path, optional
        D: indices or a mask, a fitted scorer, or a feature table. By default D is found anew on the images each time
        (transductive).
    epsilon : float, "auto" or "paper" (4.0), default="auto"
        Of L_i. ``"auto"`` is found anew each time; a scorer and a table bring their own; indices need a number.
    max_images : int, default=4096
        At most so many, at least 2.
    batch_size : int, default=256
        Of images that do not come in batches, >= 1.
    workers : int, default=0
        Processes that load images which do not come with a loader, >= 0.
    csv : str or Path, optional
        A file to which every measurement is added.

    Attributes
    ----------
    history : list of Measurement
        Of this process, in the order of the calls.

    Raises
    ------
    QScoreError
        If an argument cannot be used, or there are fewer than two images.

    Warns
    -----
    UserWarning
        When signs of collapse or divergence appear, with the evidence: a standard deviation below 5 % of
        ``1 / sqrt(r)``, RankMe below a quarter of its largest value so far, more than half of the features dead, NaN
        or infinity.

    Examples
    --------
    >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
    <torch...>
    >>> model = nn.ModuleDict({"backbone": nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.ReLU())})
    >>> monitor = QScoreMonitor(torch.randn(200, 3, 4, 4), encoder="backbone")
    >>> found = monitor(model, epoch=0)
    >>> found.n, found.n_features, found.n_dead, found.evidence
    (200, 32, 0, ())
    """

    def __init__(
        self,
        images: Any,
        *,
        transform: Callable[[Any], Tensor] | None = None,
        encoder: str | nn.Module | Callable[[Any, Tensor], Any] | None = "backbone",
        features: Any = None,
        epsilon: Epsilon = "auto",
        max_images: int = 4096,
        batch_size: int = 256,
        workers: int = 0,
        csv: str | Path | None = None,
    ) -> None:
        if max_images < 2 or batch_size < 1 or workers < 0:
            raise QScoreError(
                "expected max_images of at least 2, batch_size of at least 1 and workers of at least 0, got "
                f"{max_images}, {batch_size} and {workers}"
            )
        self._epsilon = settle_epsilon(epsilon)
        self._features = _find_features(features, self._epsilon)
        self._encoder = encoder
        self._images = HeldOut(images, transform, max_images, batch_size, workers)
        self._csv = csv
        self._watch = Watch()
        self.history: list[Measurement] = []

    def __call__(self, module: nn.Module, epoch: int) -> Measurement:
        """Measure; in all processes at the same time.

        Parameters
        ----------
        module : nn.Module
            What is trained, on any device.
        epoch : int
            Noted with the figures.

        Returns
        -------
        Measurement
            The same in all processes.

        Raises
        ------
        QScoreError
            If the encoder is not found, does not accept the images, or gives no representations of them.
        """
        rank, world = _place()
        H = _merged(self._embed(module, rank, world), world)
        with unchanged():  # libraries may draw random numbers too: beartype does
            found = _told(lambda: measure(H, epoch, self._features, self._epsilon), rank, world)
        self._watch, found, new = self._watch.judge(found)
        self.history.append(found)
        if rank == 0 and self._csv is not None:
            append_csv(self._csv, found)
        if rank == 0 and new:
            warnings.warn(f"epoch {epoch}: signs of collapse: {'; '.join(found.evidence)}", stacklevel=2)
        return found

    def check(self, module: nn.Module) -> None:
        """Embed one batch, so that what is wrong is said before the training and not after an epoch of it.

        Raises
        ------
        QScoreError
            As a call would.
        """
        encode, network = find_encoder(module, self._encoder)
        with unchanged(module, network):
            for _, x in self._images.batches():
                embed_batch(encode, network, x)
                return
        raise QScoreError("images: expected at least 2, got none")

    def state_dict(self) -> dict[str, Any]:
        """Return what later warnings depend on, for a checkpoint."""
        return self._watch.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._watch = Watch(float(state["rankme"]), int(state["epoch"]), tuple(state["signs"]))

    def _embed(self, module: nn.Module, rank: int, world: int) -> tuple[Rows, str]:
        """Return this process's batches, and why there are none, or the empty string."""
        try:
            encode, network = find_encoder(module, self._encoder)
            with unchanged(module, network):
                batches = self._images.batches(rank, world)
                return [(number, embed_batch(encode, network, x)) for number, x in batches], ""
        except QScoreError as error:
            if world == 1:
                raise
            return [], str(error)  # the others wait


def _find_features(features: Any, epsilon: float | Literal["auto"]) -> Any:
    if isinstance(features, str | Path):
        return load_scorer(features)
    if features is None or hasattr(features, "discriminative_features_"):
        return features
    if hasattr(features, "fit"):
        raise QScoreError("features: the scorer is not fitted; call its fit(H) first")
    if isinstance(epsilon, str):
        raise QScoreError("epsilon: expected the number that these features were found at, got 'auto'")
    return features.cpu().numpy() if isinstance(features, Tensor) else np.asarray(features)


def _place() -> tuple[int, int]:
    """Return which process this is, and of how many."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _merged(share: tuple[Rows, str], world: int) -> np.ndarray:
    """Return all processes' rows, batch by batch, in the order of the images."""
    shares: list[tuple[Rows, str]] = [share]
    if world > 1:
        shares = [([], "")] * world
        torch.distributed.all_gather_object(shares, share)
    for _, reason in shares:
        if reason:
            raise QScoreError(reason)
    batches = sorted((batch for rows, _ in shares for batch in rows), key=lambda batch: batch[0])
    if not batches:
        raise QScoreError("images: expected at least 2, got none")
    return np.concatenate([rows for _, rows in batches])


def _told(work: Callable[[], Measurement], rank: int, world: int) -> Measurement:
    """Let the first process do the work, and tell the others what came of it."""
    message: list[Any] = [None]
    if rank == 0:
        try:
            message = [work()]
        except QScoreError as error:
            message = [error]
    if world > 1:
        torch.distributed.broadcast_object_list(message, src=0)
    if isinstance(message[0], QScoreError):
        raise message[0]
    found: Measurement = message[0]
    return found
