"""Lasso, the paper's rival: all features of all rows are pressed alike."""

from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qscore.regularizer.batch import count_processes, in_double, sparsity
from qscore.regularizer.gradients import gradient_norms
from qscore.regularizer.weights import (
    SHARE,
    Reduction,
    calibrated,
    check_reduction,
    check_share,
    check_weight,
    ratios,
)

__all__ = ["LassoRegularizer"]


@final
class LassoRegularizer(nn.Module):
    r"""Lasso on representations, to be added to a self-supervised loss.

    .. math:: \lambda \sum_i \lVert h_i \rVert_1

    What the paper compares Q-Score regularisation with. Features may have either sign.

    Parameters
    ----------
    lambda_ : float, default=1e-4
        Weight, >= 0.
    reduction : {"sum", "mean"}, default="sum"
        ``"mean"`` divides by b * r; find its weight by :meth:`calibrate`.
    distributed : bool, default=True
        Whether, where PyTorch runs several processes, the batch is spread over them, as under
        ``DistributedDataParallel``.

    Attributes
    ----------
    lambda_ : float
        The weight in force.
    stats : dict of Tensor
        Of the last batch, over all processes: ``hoyer``, ``zeros``, and ``gradient_ratio`` as last measured; see
        :class:`QScoreRegularizer`.

    Raises
    ------
    QScoreError
        If an argument is out of range.

    Examples
    --------
    >>> h = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    >>> LassoRegularizer(0.1)(h), LassoRegularizer(0.1, reduction="mean")(h)
    (tensor(0.5000), tensor(0.1250))
    """

    def __init__(self, lambda_: float = 1e-4, *, reduction: Reduction = "sum", distributed: bool = True) -> None:
        super().__init__()
        self.lambda_ = check_weight("lambda_", lambda_)
        self.reduction = check_reduction(reduction)
        self.distributed = distributed
        self.stats: dict[str, Tensor] = {}
        self._ratios: dict[str, Tensor] = {}
        self._calibrated = False

    def forward(self, h: Float[Tensor, "b r"]) -> Float[Tensor, ""]:
        """Return the loss, to be added to this process's self-supervised loss.

        Parameters
        ----------
        h : Tensor of shape (b, r)
            Representations.

        Raises
        ------
        QScoreError
            If h is no matrix of finite floating-point numbers.
        """
        return (self.lambda_ * self._term(h)).to(torch.promote_types(h.dtype, torch.float32))

    def calibrate(self, ssl_loss: Float[Tensor, ""], h: Float[Tensor, "b r"], share: float = SHARE) -> float:
        """Set the weight so that the term's gradient norm on h is a share of the loss's; return it.

        Parameters, errors and behaviour are those of :meth:`QScoreRegularizer.calibrate`.
        """
        share = check_share(share)
        ssl_norm, norms = gradient_norms(ssl_loss, [self._term(h)], h, count_processes(self.distributed))
        (self.lambda_,) = calibrated(ssl_norm, norms, ["the term"], share)
        self._calibrated = True
        return self.lambda_

    def gradient_ratios(self, ssl_loss: Float[Tensor, ""], h: Float[Tensor, "b r"]) -> dict[str, float]:
        """Return the weighted term's gradient norm on h over the loss's, as ``gradient_ratio``.

        Parameters, errors and behaviour are those of :meth:`QScoreRegularizer.gradient_ratios`.
        """
        ssl_norm, norms = gradient_norms(ssl_loss, [self._term(h)], h, count_processes(self.distributed))
        found = {"gradient_ratio": self.lambda_ * ratios(ssl_norm, norms)[0]}
        self._ratios = {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
        self.stats |= self._ratios
        return found

    def get_extra_state(self) -> dict[str, Any]:
        """Return the weight, for ``state_dict``."""
        return {"lambda_": self.lambda_, "calibrated": self._calibrated}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take back a weight that was calibrated; one that was given stays as it is given now."""
        if state["calibrated"]:
            self.lambda_, self._calibrated = state["lambda_"], True

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"lambda_={self.lambda_:g}, reduction={self.reduction!r}"

    def _term(self, h: Float[Tensor, "b r"]) -> Float[Tensor, ""]:
        world = count_processes(self.distributed)
        H = in_double(h, world)
        n, stats = sparsity(H, world)
        self.stats = stats | self._ratios
        return H.abs().sum() * world / (1 if self.reduction == "sum" else n * H.shape[1])
