"""The monitor as a callback, for any Lightning module."""

from typing import Any, final

import torch
from lightning.pytorch import Callback

from qscore._validate import QScoreError
from qscore.monitor.measurement import Measurement
from qscore.monitor.monitor import QScoreMonitor

__all__ = ["QScoreCallback"]


@final
class QScoreCallback(Callback):
    """Logs label-free figures of the representation during anyone's training, and warns of collapse.

    For trainers of ``lightning`` and of ``pytorch_lightning``, with any logger. Before the training one batch is
    embedded, so that a wrong setting is said at once; after every k epochs the images are measured, as
    :class:`qscore.QScoreMonitor` does, and the figures logged under ``qscore/``, where other callbacks
    find them: ``ModelCheckpoint(monitor="qscore/rankme", mode="max", every_n_epochs=k)``, with the same k, as it
    refuses an epoch without figures where a module has a validation.

    Parameters
    ----------
    images : DataLoader, Dataset, Tensor, iterable of batches, ImageSource, str or Path
        Held-out images, as for :class:`qscore.QScoreMonitor`.
    every : int, default=1
        Epochs from one measurement to the next, >= 1.
    prefix : str, default="qscore/"
        Before each name; two callbacks in one trainer need different ones.
    **options
        Further arguments of :class:`qscore.QScoreMonitor`.

    Attributes
    ----------
    history : list of Measurement
        All measurements so far.

    Raises
    ------
    QScoreError
        If an argument cannot be used.

    Examples
    --------
    >>> callback = QScoreCallback(torch.randn(100, 3, 8, 8), every=5, encoder="backbone")
    >>> # Trainer(callbacks=[callback]).fit(module)
    """

    def __init__(self, images: Any, *, every: int = 1, prefix: str = "qscore/", **options: Any) -> None:
        if every < 1:
            raise QScoreError(f"every: expected at least 1, got {every}")
        self.every = every
        self.prefix = prefix
        self.monitor = QScoreMonitor(images, **options)

    @property
    def history(self) -> list[Measurement]:
        """All measurements so far."""
        return self.monitor.history

    @property
    def state_key(self) -> str:
        """Return the name of this callback's state in a checkpoint."""
        return self._generate_state_key(prefix=self.prefix)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Try one batch."""
        self.monitor.check(pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure and log, every k epochs."""
        if (trainer.current_epoch + 1) % self.every:
            return
        found = self.monitor(pl_module, trainer.current_epoch)
        dtype = torch.float32 if pl_module.device.type == "mps" else torch.float64
        figures = {
            f"{self.prefix}{name}": torch.tensor(value, dtype=dtype, device=pl_module.device)
            for name, value in found.figures().items()
        }
        # The figures are the same in all processes; their maximum is exact, as a mean need not be.
        pl_module.log_dict(figures, on_step=False, on_epoch=True, sync_dist=True, reduce_fx="max", batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """Return what later warnings depend on."""
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self.monitor.load_state_dict(state_dict)
