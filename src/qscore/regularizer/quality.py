"""Q-Score regularisation: lift the rows that are represented badly, press the features that everything lights."""

import warnings
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qscore._validate import QScoreError, check_epsilon, check_features
from qscore.regularizer.batch import Terms, count_processes, in_double, quality_terms
from qscore.regularizer.features import find_discriminative
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

__all__ = ["QScoreRegularizer"]

LAMBDA = 1e-4  # the paper's, for both terms, as sums
EPSILON = 4.0
NAMES = ("the first term", "the second term")


@final
class QScoreRegularizer(nn.Module):
    r"""Q-Score regularisation of a batch, to be added to a self-supervised loss.

    .. math:: -\lambda_1 \sum_i 1[Q_i < \alpha] \, Q_i
              + \lambda_2 \sum_j 1[\lVert H_{:j} \rVert_1 > \beta] \, \lVert H_{:j} \rVert_1

    Kalibhat et al., AAAI 2024 (arXiv 2203.01881), for fine-tuning a pre-trained encoder. :math:`\alpha` is the mean of
    :math:`Q_i` over the rows whose :math:`L_i \cap D` is not empty, :math:`\beta` the mean of the columns' norms. The
    first term lifts the rows of low quality alone; the second stops the shortcut in which every row lights the same
    few features. Gradients flow through :math:`h_{ij}` and :math:`\mu_i`, and not through sets, indicators and
    thresholds. All is computed in float64, whatever the precision of the training.

    Under ``DistributedDataParallel`` thresholds are those of the batch over all processes, whose shares may differ in
    size; each process's loss comes multiplied by the number of processes, because gradients are averaged, so that
    after averaging they are those of one process with the whole batch.

    Parameters
    ----------
    features : array or sequence of int, shape (k,), or of bool, shape (r,); QScorer; str or Path
        D: indices, a mask, a fitted scorer, or a feature table as :func:`qscore.score` writes it. Found with the
        pre-trained encoder on the training set, preprocessed as for evaluation.
    lambda1, lambda2 : float, default=1e-4
        Weights of the terms, >= 0.
    epsilon : float, optional
        Standard deviations above the row's mean from which a feature is in L_i; with r features, below
        ``sqrt(r - 1)``. By default the one that scorer or table was made with, and the paper's 4 for bare indices.
    reduction : {"sum", "mean"}, default="sum"
        ``"sum"`` is the formula to the letter; ``"mean"`` divides the first term by b and the second by b * r. The
        paper's weights then do nothing: find them by :meth:`calibrate`.
    distributed : bool, default=True
        Whether, where PyTorch runs several processes, the batch is spread over them, as under
        ``DistributedDataParallel``.

    Attributes
    ----------
    features : Tensor of int64, shape (k,)
        D, a buffer: kept by ``state_dict``, as are epsilon and weights that were calibrated.
    lambda1, lambda2, epsilon : float
        Those in force.
    stats : dict of Tensor
        Of the last batch, over all processes; detached, 0-dimensional: ``q`` and ``q_over_sigma`` (means of Q and
        Q / sigma over rows), ``coverage`` (share of the rows that vary with a feature of D in L_i), ``empty_rows``
        (share of rows without; their gradient of the first term is zero), ``below_alpha`` (share of rows that the
        first term lifts), ``above_beta`` (share of columns that the second presses), ``alpha``, ``beta``,
        ``n_active`` (mean size of L_i), ``hoyer`` (mean sparsity of a row, 0 to 1), ``zeros`` (share of exact zeros),
        ``first``, ``second`` (the weighted terms, whose sum is the loss), and ``gradient_ratio_1`` and
        ``gradient_ratio_2`` as last measured.

    Raises
    ------
    QScoreError
        If D is empty, a weight is negative, or another argument cannot be used.

    See Also
    --------
    qscore.QScorer : finds D.
    qscore.LassoRegularizer : the paper's rival.

    Examples
    --------
    >>> h = torch.zeros(3, 20)
    >>> h[0, 3], h[1, 3], h[2, 4] = 20.0, 40.0, 20.0  # Q is 19, 38, 19; alpha is 25.3
    >>> regularizer = QScoreRegularizer([3, 4], lambda1=1e-2, lambda2=0.0)
    >>> regularizer(h), round(float(regularizer.stats["alpha"]), 1), float(regularizer.stats["empty_rows"])
    (tensor(-0.3800), 25.3, 0.0)
    """

    features: Tensor

    def __init__(
        self,
        features: Any,
        lambda1: float = LAMBDA,
        lambda2: float = LAMBDA,
        *,
        epsilon: float | None = None,
        reduction: Reduction = "sum",
        distributed: bool = True,
    ) -> None:
        super().__init__()
        self.lambda1, self.lambda2 = check_weight("lambda1", lambda1), check_weight("lambda2", lambda2)
        self.reduction = check_reduction(reduction)
        self.distributed = distributed
        self.epsilon = EPSILON
        self.n_features: int | None = None
        self.stats: dict[str, Tensor] = {}
        self._ratios: dict[str, Tensor] = {}
        self._calibrated = False
        self._warned: set[str] = set()
        self.register_buffer("features", torch.empty(0, dtype=torch.int64))
        self.set_features(features, epsilon=epsilon)

    def set_features(self, features: Any, *, epsilon: float | None = None) -> None:
        """Take another D, such as one found anew every few epochs; in all processes the same.

        Parameters
        ----------
        features : array or sequence, QScorer, str or Path
            As for the class.
        epsilon : float, optional
            By default the one that scorer or table was made with; for bare indices it stays as it is.

        Raises
        ------
        QScoreError
            If D is empty or cannot be read, or epsilon is not positive or out of the features' reach.
        """
        found = find_discriminative(features)
        epsilon = next(value for value in (epsilon, found.epsilon, self.epsilon) if value is not None)
        check_epsilon(epsilon, n_features=found.n_features)
        self.features = found.indices.to(self.features.device)
        self.n_features, self.epsilon = found.n_features, float(epsilon)

    def forward(self, h: Float[Tensor, "b r"]) -> Float[Tensor, ""]:
        """Return the loss, to be added to this process's self-supervised loss.

        Parameters
        ----------
        h : Tensor of shape (b, r)
            The online encoder's output before the projector, >= 0, of any precision: both global views stacked,
            never local crops, never the teacher's.

        Returns
        -------
        Tensor of shape ()
            In float32, or float64 where h is.

        Raises
        ------
        QScoreError
            If h is no matrix of floating-point numbers, of another width than D, so narrow that every set is empty, or
            holds negative values, NaN or infinity; in all processes alike.
        """
        terms = self._terms(h)
        self._warn(terms)
        first, second = self._scaled(terms)
        loss = self.lambda2 * second - self.lambda1 * first
        return loss.to(h.device, torch.promote_types(h.dtype, torch.float32))

    def calibrate(
        self, ssl_loss: Float[Tensor, ""], h: Float[Tensor, "b r"], share: float = SHARE
    ) -> tuple[float, float]:
        """Set both weights so that each term's gradient norm on h is a share of the self-supervised loss's.

        Called once, at the first step, before ``backward()``; in all processes.

        Parameters
        ----------
        ssl_loss : Tensor of shape ()
            This process's self-supervised loss, computed from ``h``.
        h : Tensor of shape (b, r)
            As for :meth:`forward`: the very tensor, with its graph.
        share : float, default=0.1
            Of the loss's gradient norm, > 0.

        Returns
        -------
        tuple of two floats
            ``lambda1`` and ``lambda2``.

        Raises
        ------
        QScoreError
            As :meth:`forward`; also if the loss or a term has no gradient on h, or its graph is gone.
        """
        share = check_share(share)
        ssl_norm, norms = self._gradient_norms(ssl_loss, h)
        self.lambda1, self.lambda2 = calibrated(ssl_norm, norms, NAMES, share)
        self._calibrated = True
        return self.lambda1, self.lambda2

    def gradient_ratios(self, ssl_loss: Float[Tensor, ""], h: Float[Tensor, "b r"]) -> dict[str, float]:
        """Return each weighted term's gradient norm on h over the self-supervised loss's.

        It costs a backward pass from the loss to h; called every so many steps, before ``backward()``, in all
        processes.

        Parameters
        ----------
        ssl_loss : Tensor of shape ()
            This process's self-supervised loss, computed from ``h``.
        h : Tensor of shape (b, r)
            As for :meth:`forward`: the very tensor, with its graph.

        Returns
        -------
        dict of float
            ``gradient_ratio_1`` and ``gradient_ratio_2``, also added to ``stats``; NaN where the loss has no gradient.

        Raises
        ------
        QScoreError
            As :meth:`forward`; also if the loss does not depend on h, or its graph is gone.
        """
        first, second = ratios(*self._gradient_norms(ssl_loss, h))
        found = {"gradient_ratio_1": self.lambda1 * first, "gradient_ratio_2": self.lambda2 * second}
        self._ratios = {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}
        self.stats |= self._ratios
        return found

    def get_extra_state(self) -> dict[str, Any]:
        """Return what belongs to D, and the weights, for ``state_dict``."""
        names = ("epsilon", "n_features", "lambda1", "lambda2")
        return {name: getattr(self, name) for name in names} | {"calibrated": self._calibrated}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what belongs to D, and weights that were calibrated; given weights stay as they are given now."""
        self.epsilon, self.n_features = state["epsilon"], state["n_features"]
        if state["calibrated"]:
            self.lambda1, self.lambda2, self._calibrated = state["lambda1"], state["lambda2"], True

    def extra_repr(self) -> str:
        """Return the settings."""
        return (
            f"{len(self.features)} features, lambda1={self.lambda1:g}, lambda2={self.lambda2:g}, "
            f"epsilon={self.epsilon:g}, reduction={self.reduction!r}"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}features")
        if isinstance(stored, Tensor):  # D may have had another size when it was stored
            self.features = torch.empty_like(stored, device=self.features.device)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _terms(self, h: Float[Tensor, "b r"]) -> Terms:
        world = count_processes(self.distributed)
        H = in_double(h, world)
        self._check_width(H.shape[1])
        terms = quality_terms(H, self.features.to(H.device), self.epsilon, world)
        first, second = terms.stats.pop("first_sum"), terms.stats.pop("second_sum")
        by_rows, by_values = self._divisors(terms)
        weighted = {"first": -self.lambda1 * first / by_rows, "second": self.lambda2 * second / by_values}
        self.stats = terms.stats | weighted | self._ratios
        return terms

    def _check_width(self, r: int) -> None:
        if self.n_features is None:
            check_features(self.features, r)
        elif self.n_features != r:
            raise QScoreError(f"h: has {r} features, but D was found among {self.n_features}; find D with this encoder")
        check_epsilon(self.epsilon, n_features=r)
        self.n_features = r

    def _divisors(self, terms: Terms) -> tuple[int, int]:
        return (1, 1) if self.reduction == "sum" else (terms.n, terms.n * terms.n_features)

    def _scaled(self, terms: Terms) -> tuple[Tensor, Tensor]:
        """Return both terms, without their weights, as this process adds them to its loss."""
        world = count_processes(self.distributed)
        by_rows, by_values = self._divisors(terms)
        return terms.first * (world / by_rows), terms.second * (world / by_values)

    def _gradient_norms(self, ssl_loss: Tensor, h: Tensor) -> tuple[float, list[float]]:
        terms = self._scaled(self._terms(h))
        return gradient_norms(ssl_loss, terms, h, count_processes(self.distributed))

    def _warn(self, terms: Terms) -> None:
        if not terms.n_full:
            self._warn_once(
                f"no row of the batch has a highly active feature of D at epsilon {self.epsilon:g}, so the first term "
                "is 0 and lifts nothing; find D at a smaller epsilon: "
                "set_features(QScorer(epsilon='auto').fit(H))"
            )
        if self.reduction == "mean" and not self._calibrated and self.lambda1 == self.lambda2 == LAMBDA:
            self._warn_once(
                "reduction='mean' with the paper's weights, which are meant for sums, does next to nothing; call "
                "calibrate(ssl_loss, h) at the first step"
            )

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=6)  # the line that called this module
