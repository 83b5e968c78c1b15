"""How strongly losses pull at the representations, beside one another."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from qscore._validate import QScoreError, one_line
from qscore.regularizer.batch import sum_over_processes

__all__ = ["gradient_norms"]


def gradient_norms(
    ssl_loss: Float[Tensor, ""], terms: Sequence[Float[Tensor, ""]], h: Float[Tensor, "b r"], world: int
) -> tuple[float, list[float]]:
    """Return the norm of the gradient on the whole batch's representations, of a loss and of each term.

    Graphs are kept for the training's own backward pass; no parameter's gradient changes.

    Parameters
    ----------
    ssl_loss : Tensor of shape ()
        The self-supervised loss.
    terms : sequence of Tensor of shape ()
        Computed from ``h`` as well.
    h : Tensor of shape (b, r)
        This process's rows, as the loss was computed from them.
    world : int
        Processes that share the batch.

    Raises
    ------
    QScoreError
        If no gradient reaches ``h``, or its graph is gone.
    """
    if not h.requires_grad:
        raise QScoreError("h: carries no gradient; pass the encoder's output as it came, not detached")
    squares = []
    for loss in (ssl_loss, *terms):
        if not (isinstance(loss, Tensor) and loss.requires_grad):
            raise _unrelated()
        try:
            (gradient,) = torch.autograd.grad(loss, h, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise QScoreError(
                f"ssl_loss: its gradient cannot be taken ({one_line(error).rstrip('.')}); call this before backward()"
            ) from error
        if gradient is None:
            raise _unrelated()
        squares.append(gradient.double().square().sum())
    ssl_norm, *norms = sum_over_processes(torch.stack(squares), world).sqrt().tolist()
    return ssl_norm, norms


def _unrelated() -> QScoreError:
    return QScoreError("ssl_loss: does not depend on h; pass the very tensor that the loss was computed from")
