"""A regulariser beside a method's loss: when it is calibrated, when D is found anew, and what is noted of it."""

from collections.abc import Callable
from typing import Any, Protocol, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qscore._validate import QScoreError
from qscore.ssl.watch import Diverged

__all__ = ["Addition", "Regularizer"]

EVERY = 50  # steps between notes, each of which costs a backward pass from the loss to h


class Regularizer(Protocol):
    """What `QScoreRegularizer` and `LassoRegularizer` have in common."""

    stats: dict[str, Tensor]

    def __call__(self, h: Tensor) -> Tensor:
        """Return what is added to the loss."""

    def calibrate(self, ssl_loss: Tensor, h: Tensor) -> Any:
        """Set the weights by the gradients of a first batch."""

    def gradient_ratios(self, ssl_loss: Tensor, h: Tensor) -> dict[str, float]:
        """Return each term's gradient norm over the loss's."""


@final
class Addition(nn.Module):
    """A regulariser in a training, whose state and notes survive a resumption.

    Parameters
    ----------
    regularizer : Regularizer
        An nn.Module.
    calibrate : bool
        Whether its weights are set at the first step.
    refresh : callable, optional
        Called with the regulariser, the encoder and the epoch, to give the first another D.
    refresh_every : int, optional
        Epochs between such calls; None never calls.

    Attributes
    ----------
    history : list of dict
        Every 50 steps: ``step``, ``ssl_loss``, and all of the regulariser's ``stats``.
    """

    def __init__(
        self,
        regularizer: Regularizer,
        *,
        calibrate: bool = False,
        refresh: Callable[[Any, nn.Module, int], None] | None = None,
        refresh_every: int | None = None,
    ) -> None:
        super().__init__()
        self.regularizer = regularizer
        self.history: list[dict[str, float]] = []
        self._calibrate = calibrate
        self._refresh = refresh
        self._refresh_every = refresh_every

    def begin(self, method: Any, epoch: int, batch: int) -> None:
        """Find D anew before the first batch of every so many epochs; a resumption comes back to the same place."""
        due = self._refresh_every is not None and batch == 0 and epoch > 0 and epoch % self._refresh_every == 0
        if due and self._refresh is not None:
            self._refresh(self.regularizer, method.backbone, epoch)

    def forward(self, loss: Float[Tensor, ""], h: Float[Tensor, "b r"], step: int) -> Float[Tensor, ""]:
        """Return what is added to the loss.

        Raises
        ------
        Diverged
            If representations are not finite.
        QScoreError
            If the regulariser refuses them for another reason.
        """
        try:
            if self._calibrate and step == 0:
                self.regularizer.calibrate(loss, h)
            noted = step % EVERY == 0 and (not self.history or self.history[-1]["step"] < step)
            if noted:
                self.regularizer.gradient_ratios(loss, h)
            term = self.regularizer(h)
        except QScoreError as error:
            if not (torch.isfinite(h).all() and torch.isfinite(loss)):
                raise Diverged(f"step {step}: {error}") from error
            raise
        if noted:
            stats = {name: float(value) for name, value in self.regularizer.stats.items()}
            self.history.append({"step": step, "ssl_loss": float(loss.detach()), **stats})
        return term

    def latest(self, step: int) -> dict[str, float]:
        """Return the notes of a step for a logger; nothing where there are none."""
        if not self.history or self.history[-1]["step"] != step:
            return {}
        return {f"regularizer/{name}": value for name, value in self.history[-1].items() if name != "step"}

    def get_extra_state(self) -> dict[str, Any]:
        """Return the notes, for ``state_dict``."""
        return {"history": self.history}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take the notes back."""
        self.history = list(state["history"])
