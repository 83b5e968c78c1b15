"""The selector: a smaller representation, made of the features that fire neither rarely nor everywhere."""

from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Bool, Float, Shaped
from sklearn.base import BaseEstimator
from sklearn.feature_selection import SelectorMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from qscore import core
from qscore._validate import Epsilon, check_keep
from qscore.estimator.scorer import QScorer, has_fixed_epsilon

__all__ = ["DiscriminativeFeatureSelector"]


class DiscriminativeFeatureSelector(SelectorMixin, BaseEstimator):  # type: ignore[misc]
    """Keep a share of the features of a representation, chosen without labels by how often they fire.

    Features are ranked by their activation rate A, ties by index. ``keep = k`` takes the ranks from the quantile
    ``max(0, 0.95 - k)`` to ``max(0.95, k)``: the discriminative band of Kalibhat et al. (AAAI 2024, arXiv 2203.01881),
    widened downwards. 0.45 is the band itself. Features that never fire stay where those ranks hold some.

    Parameters
    ----------
    keep : float, default=0.6
        Share of the features to keep, in (0, 1].
    epsilon : float, "auto" or "paper", default="auto"
        Standard deviations above the row's mean at which a feature counts as highly activating, as in
        :class:`qscore.QScorer`.
    signed : bool or "auto", default="auto"
        Whether features may be negative, as in :class:`qscore.QScorer`. What is kept is returned as it came, unscaled.

    Attributes
    ----------
    kept_features_ : ndarray of int
        The features kept, ascending.
    scorer_ : QScorer
        The fitted scorer, whose activation rates rank the features.
    n_features_in_ : int
        r.
    feature_names_in_ : ndarray of str
        Column names, where X had them.

    See Also
    --------
    qscore.compress : the same for tables on disk, of any size.

    Examples
    --------
    >>> import numpy as np
    >>> H = np.random.default_rng(0).gamma(0.2, size=(500, 64))
    >>> selector = DiscriminativeFeatureSelector(keep=0.6, epsilon=2.0).fit(H)
    >>> selector.transform(H).shape, selector.scorer_.discriminative_features_.shape
    ((500, 39), (29,))
    """

    kept_features_: np.ndarray
    scorer_: QScorer

    def __init__(
        self,
        keep: float = 0.6,
        epsilon: Epsilon = "auto",
        signed: bool | Literal["auto"] = "auto",
    ) -> None:
        self.keep = keep
        self.epsilon = epsilon
        self.signed = signed

    @property
    def n_features_in_(self) -> int:
        """Number of features fitted."""
        return int(self.scorer_.n_features_in_)

    @property
    def feature_names_in_(self) -> Shaped[np.ndarray, " r"]:
        """Column names, where X had them."""
        names: np.ndarray = self.scorer_.feature_names_in_
        return names

    def fit(self, X: Float[Any, "n r"], y: object = None) -> Self:
        """Choose the features to keep.

        Parameters
        ----------
        X : array-like of shape (n, r)
            Representations, one row per image; no NaN, no infinity.
        y : ignored
            Present for scikit-learn's sake.

        Returns
        -------
        DiscriminativeFeatureSelector
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a finite 2-D table, or a parameter is out of range.
        """
        check_keep(self.keep)
        return self._finish(QScorer(epsilon=self.epsilon, signed=self.signed).fit(X))

    @available_if(has_fixed_epsilon)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Float[Any, "n r"], y: object = None) -> Self:
        """Add rows to the fit; any split of a table into parts gives exactly the fit of the whole.

        Conditions and errors are those of :meth:`qscore.QScorer.partial_fit`: a fixed epsilon, and no signed scaling.
        """
        check_keep(self.keep)
        scorer = self.scorer_ if hasattr(self, "scorer_") else QScorer()
        return self._finish(scorer.set_params(epsilon=self.epsilon, signed=self.signed).partial_fit(X))

    def _finish(self, scorer: QScorer) -> Self:
        self.scorer_ = scorer
        self.kept_features_ = core.kept_features(scorer.counts_, self.keep)
        return self

    def _get_support_mask(self) -> Bool[np.ndarray, " r"]:
        check_is_fitted(self)
        mask = np.zeros(self.n_features_in_, dtype=bool)
        mask[self.kept_features_] = True
        return mask
