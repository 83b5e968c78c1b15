"""What watches over a training: progress, a loss that must stay finite, checkpoints, and Ctrl-C."""

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from qscore._files import atomic_path
from qscore._progress import Advance
from qscore._validate import QScoreError

__all__ = ["AtomicCheckpoints", "Interrupted", "Watch", "hold_interrupts", "quiet_lightning"]


class Interrupted(Exception):  # noqa: N818 (not an error)
    """Ctrl-C was pressed, or SIGTERM came, and the training has been saved."""


@final
class Watch(Callback):
    """Reports progress, refuses a loss that is not finite, and saves after each epoch and when told to stop.

    Parameters
    ----------
    checkpoint : Path
        Where to save.
    batch_size : int
        Images per step, over all processes.
    interrupted : callable
        Whether Ctrl-C was pressed.
    advance : Advance
        Takes the number of images done.
    """

    def __init__(self, checkpoint: Path, batch_size: int, interrupted: Callable[[], bool], advance: Advance) -> None:
        self._checkpoint = checkpoint
        self._batch_size = batch_size
        self._interrupted = interrupted
        self._advance = advance
        self._latest: tuple[int, torch.Tensor] | None = None

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss before this one (waiting for this one's would leave a GPU idle), report, save if asked to.

        Raises
        ------
        QScoreError
            If the loss was not finite.
        Interrupted
            After Ctrl-C or SIGTERM.
        """
        loss = self._check_latest(trainer)
        accumulate = trainer.accumulate_grad_batches
        if (batch_idx + 1) % accumulate:
            return
        self._latest = trainer.global_step, outputs["loss"] * accumulate  # Lightning had divided it
        self._advance(self._batch_size, "" if loss is None else f"loss {loss:.3f}")
        if batch_idx + 1 < trainer.num_training_batches:  # at its end, the epoch is saved in any case
            self._stop_if_asked(trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save, and stop if asked to.

        Raises
        ------
        QScoreError
            If the loss was not finite.
        Interrupted
            After Ctrl-C or SIGTERM.
        """
        self._save(trainer, module)
        self._stop_if_asked(trainer, module, saved=True)

    def _check_latest(self, trainer: Trainer) -> float | None:
        if self._latest is None:
            return None
        step, loss = self._latest
        value = loss.item()
        if not torch.isfinite(loss):
            self._refuse(trainer, f"the loss is {value}", step)
        return value

    def _save(self, trainer: Trainer, module: LightningModule) -> None:
        self._check_latest(trainer)
        if not all(bool(torch.isfinite(p).all()) for p in module.parameters()):
            self._refuse(trainer, "weights are not finite", trainer.global_step)
        trainer.save_checkpoint(self._checkpoint)

    def _stop_if_asked(self, trainer: Trainer, module: LightningModule, *, saved: bool = False) -> None:
        asked = self._interrupted() or trainer.received_sigterm
        if trainer.strategy.reduce_boolean_decision(asked, all=False):  # processes stop together
            if not saved:
                self._save(trainer, module)
            raise Interrupted

    def _refuse(self, trainer: Trainer, what: str, step: int) -> None:
        kept = f"; {self._checkpoint} is from before that" if self._checkpoint.exists() else ""
        raise QScoreError(
            f"{what} at step {step} (epoch {trainer.current_epoch + 1}){kept}; start anew with a lower learning rate"
        )


@final
class AtomicCheckpoints(TorchCheckpointIO):
    """Writes checkpoints whole or not at all; Lightning's own writer holds a second copy in memory."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises
        ------
        QScoreError
            If it cannot be written; an older one is kept.
        """
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)


@contextmanager
def hold_interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C into a flag, so that a step is never cut in two; the second acts at once.

    Yields
    ------
    callable
        Whether Ctrl-C was pressed.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # where Python delivers no signals
        yield pressed.is_set
        return

    def note(_number: int, _frame: Any) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, previous)

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep Lightning's remarks on devices and limits off the screen; its warnings stay, but for one on its own code."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
