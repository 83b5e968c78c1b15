"""What watches over a training: progress, a loss that must stay finite, checkpoints, and Ctrl-C."""

import errno
import logging
import math
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, final

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from qscore._files import atomic_path
from qscore._progress import Advance
from qscore._validate import QScoreError

__all__ = ["AtomicCheckpoints", "Diverged", "Interrupted", "Watch", "hold_interrupts", "is_full", "quiet_lightning"]

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Diverged(QScoreError):  # noqa: N818 (a fact, not a mistake)
    """The loss, the weights or the representations are no longer finite."""


class Interrupted(Exception):  # noqa: N818 (not an error)
    """Ctrl-C was pressed, or SIGTERM came, and the training has been saved."""


class Sent(NamedTuple):
    """What is to be known of a step."""

    step: int
    values: torch.Tensor
    """The loss, and the share of processes that were told to stop."""
    arrived: Any
    """On a GPU, an event after which they are there; to wait for it leaves the steps behind it under way."""


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
    keep : callable
        Called after each epoch, before it is saved, with the number of epochs done.
    """

    def __init__(
        self,
        checkpoint: Path,
        batch_size: int,
        interrupted: Callable[[], bool],
        advance: Advance,
        keep: Callable[[int], None],
    ) -> None:
        self._checkpoint = checkpoint
        self._batch_size = batch_size
        self._interrupted = interrupted
        self._advance = advance
        self._keep = keep
        self._parts: list[torch.Tensor] = []
        self._latest: Sent | None = None

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check the loss before this one (waiting for this one's would leave a GPU idle), report, save if told to stop.

        Raises
        ------
        QScoreError
            If the loss was not finite.
        Interrupted
            After Ctrl-C or SIGTERM.
        """
        self._parts.append(outputs["loss"])  # Lightning has divided each by their number
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        stop, loss = self._receive(trainer)
        self._send(trainer)
        self._advance(self._batch_size, "" if loss is None else f"loss {loss:.3f}")
        stop = stop or self._told_alone(trainer)
        if stop and batch_idx + 1 < trainer.num_training_batches:  # at its end, the epoch is saved in any case
            self._receive(trainer)
            self._check_weights(trainer, module)
            trainer.save_checkpoint(self._checkpoint)
            raise Interrupted

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save, and stop if told to.

        Raises
        ------
        QScoreError
            If the loss was not finite.
        Interrupted
            After Ctrl-C or SIGTERM.
        """
        stop, _ = self._receive(trainer)
        self._check_weights(trainer, module)
        self._keep(trainer.current_epoch + 1)  # first: were it killed between the two, the epoch would come again
        trainer.save_checkpoint(self._checkpoint)
        if stop or self._told_alone(trainer):
            raise Interrupted

    def _told(self, trainer: Trainer) -> bool:
        return self._interrupted() or trainer.received_sigterm

    def _told_alone(self, trainer: Trainer) -> bool:
        """Return whether to stop, where no other process need agree."""
        return trainer.world_size == 1 and self._told(trainer)

    def _send(self, trainer: Trainer) -> None:
        """Put the processes' mean loss, and whether one was told to stop, on the way to the CPU."""
        loss = torch.stack(self._parts).sum().float()
        self._parts.clear()
        both = torch.stack([loss, torch.full_like(loss, self._told(trainer))])
        both = trainer.strategy.reduce(both, reduce_op="mean")
        arrived = None
        if both.is_cuda:
            both = torch.empty(2, pin_memory=True).copy_(both, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._latest = Sent(trainer.global_step, both, arrived)

    def _receive(self, trainer: Trainer) -> tuple[bool, float | None]:
        """Return what was sent last: whether to stop, on which all processes agree, and the loss."""
        if self._latest is None:
            return False, None
        if self._latest.arrived is not None:
            self._latest.arrived.synchronize()
        loss, told = self._latest.values.tolist()
        if not math.isfinite(loss):
            self._refuse(trainer, f"the loss is {loss}", self._latest.step)
        return told > 0, loss

    def _check_weights(self, trainer: Trainer, module: LightningModule) -> None:
        if not all(bool(torch.isfinite(p).all()) for p in module.parameters()):
            self._refuse(trainer, "weights are not finite", trainer.global_step)

    def _refuse(self, trainer: Trainer, what: str, step: int) -> NoReturn:
        kept = f"; {self._checkpoint} is from before that" if self._checkpoint.exists() else ""
        raise Diverged(
            f"{what} at step {step} (epoch {trainer.current_epoch + 1}){kept}; start anew with a lower learning rate"
        )


def is_full(error: BaseException | None) -> bool:
    """Return whether an error says that a disk takes no more."""
    return isinstance(error, OSError) and error.errno in NO_SPACE


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
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # of torch's writer, which ends a file by itself where the disk is full
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


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
    """Keep Lightning's remarks on devices and limits off the screen; its warnings stay, but for two.

    The traceback of TensorBoard's thread on a full disk is kept off too: the training meets the same error itself.
    """
    report = threading.excepthook
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    threading.excepthook = lambda raised: None if is_full(raised.exc_value) else report(raised)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated")
            warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")  # frozen, and meant to be
            yield
    finally:
        threading.excepthook = report
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
