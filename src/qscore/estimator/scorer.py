"""The scorer: finds the discriminative features of unlabeled representations, and scores any by them."""

import warnings
from collections.abc import Callable
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from qscore import core
from qscore._validate import Epsilon, QScoreError, check_band, check_epsilon, settle_epsilon
from qscore.estimator.drift import Drift, measure_drift
from qscore.kernels import Scan, automatic_epsilon, row_scorer, scan

__all__ = ["QScorer", "has_fixed_epsilon"]

FLOATS = [np.float64, np.float32, np.float16]


def has_fixed_epsilon(estimator: Any) -> bool:
    """Tell whether an estimator can be fitted in parts; if not, the error's cause says why."""
    if isinstance(estimator.epsilon, str) and estimator.epsilon == "auto":
        raise AttributeError("partial_fit: epsilon='auto' needs all rows at once; use fit, or epsilon='paper'")
    return True


class QScorer(BaseEstimator):  # type: ignore[misc]
    """Score how well each row of a table of representations is represented, without labels.

    Fitting finds the discriminative features D; scoring gives Q, the mean deviation of a row's highly activating
    discriminative features from the row's mean (Kalibhat et al., AAAI 2024, arXiv 2203.01881).

    Parameters
    ----------
    epsilon : float, "auto" or "paper", default="auto"
        Standard deviations above the row's mean at which a feature counts as highly activating. ``"auto"`` takes
        the largest of 4.0, 3.9, ..., 1.5 at which at least 95 % of the rows keep a discriminative feature;
        ``"paper"`` is 4.0, at which narrow or dense representations leave most rows without any.
    lower, upper : float, default=0.50, 0.95
        D's band, in quantiles of the activation rate's rank.
    signed : bool or "auto", default="auto"
        Whether features may be negative (vision transformers, CLIP, text). Signed tables are scaled by each
        feature's median and MAD and thresholded on both sides. ``"auto"``: signed if any row has a negative value.

    Attributes
    ----------
    activation_rates_ : ndarray of shape (r,)
        A: the fraction of fitted rows in which each feature is highly active.
    discriminative_features_ : ndarray of int
        D, ascending.
    counts_ : ndarray of shape (r,)
        The counts behind ``activation_rates_``.
    epsilon_ : float
        The epsilon in force.
    signed_ : bool
        Whether rows are scaled and thresholded on both sides.
    center_, scale_ : ndarray of shape (r,), or None
        Median and 1.4826 MAD of each feature of a signed table.
    n_samples_seen_ : int
        Rows fitted.
    n_features_in_ : int
        r.

    See Also
    --------
    qscore.q_score : the formula as a function.
    qscore.score : the same for tables on disk, of any size.

    Examples
    --------
    >>> import numpy as np
    >>> H = np.zeros((60, 20)); H[np.arange(60), np.arange(60) % 20] = np.arange(60)
    >>> scorer = QScorer(epsilon=4.0, lower=0.25).fit(H)
    >>> scorer.discriminative_features_
    array([ 5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15, 16, 17, 18])
    >>> scorer.score_samples(H[[4, 10, 50]])
    array([ 0. ,  9.5, 47.5])
    """

    epsilon_: float
    center_: np.ndarray | None
    scale_: np.ndarray | None

    def __init__(
        self,
        epsilon: Epsilon = "auto",
        lower: float = 0.50,
        upper: float = 0.95,
        signed: bool | Literal["auto"] = "auto",
    ) -> None:
        self.epsilon = epsilon
        self.lower = lower
        self.upper = upper
        self.signed = signed

    @classmethod
    def from_counts(
        cls,
        counts: Int[np.ndarray, " r"],
        n: int,
        *,
        epsilon: float,
        lower: float = 0.50,
        upper: float = 0.95,
        scaling: tuple[Float[np.ndarray, " r"], Float[np.ndarray, " r"]] | None = None,
    ) -> Self:
        """Rebuild a fitted scorer from what an earlier fit counted.

        Parameters
        ----------
        counts : ndarray of int, shape (r,)
            Rows in which each feature was highly active, 0 to n.
        n : int
            Rows counted over.
        epsilon : float
            The epsilon they were counted at, > 0.
        lower, upper : float, default=0.50, 0.95
            D's band, ``0 <= lower < upper <= 1``.
        scaling : tuple of two ndarrays of shape (r,), optional
            Centre and scale of each feature, where the rows were signed.

        Returns
        -------
        QScorer
            Scores as the scorer that counted them.

        Raises
        ------
        QScoreError
            If epsilon or the band is out of range.

        Examples
        --------
        >>> scorer = QScorer.from_counts(np.array([0] * 10 + [1] * 10), 60, epsilon=4.0)
        >>> scorer.discriminative_features_
        array([10, 11, 12, 13, 14, 15, 16, 17, 18])
        """
        check_epsilon(epsilon)
        scorer = cls(epsilon=epsilon, lower=lower, upper=upper, signed=scaling is not None)
        scorer._check_parameters()
        scorer.epsilon_, scorer.signed_ = float(epsilon), scaling is not None
        scorer.center_, scorer.scale_ = scaling or (None, None)
        scorer.n_features_in_ = len(counts)
        scorer._finish(counts, n)
        return scorer

    def fit(self, X: Float[Any, "n r"], y: object = None) -> Self:
        """Find the discriminative features of X.

        Parameters
        ----------
        X : array-like of shape (n, r)
            Representations, one row per image; no NaN, no infinity.
        y : ignored
            Present for scikit-learn's sake.

        Returns
        -------
        QScorer
            The fitted estimator.

        Raises
        ------
        ValueError
            If X is not a finite 2-D table, or a parameter is out of range.
        """
        self._fit(X)
        return self

    def fit_score(self, X: Float[Any, "n r"], y: object = None) -> Float[np.ndarray, " n"]:
        """Fit X and return its own scores, reading it once (transductive)."""
        return self._fit(X).q_score(self.discriminative_features_)

    @available_if(has_fixed_epsilon)  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Float[Any, "n r"], y: object = None) -> Self:
        """Add rows to the fit; any split of a table into parts gives exactly the fit of the whole.

        There with a fixed epsilon alone, such as ``"paper"``: an automatic one needs all rows at once. So does signed
        scaling: here negative values are warned of, and rows are scored one-sided as with ``signed=False``.

        Raises
        ------
        AttributeError
            If epsilon is ``"auto"``.
        ValueError
            As :meth:`fit`; also if ``signed`` is True.
        """
        epsilon = float(self._check_parameters())
        if not isinstance(self.signed, str) and self.signed:
            raise QScoreError("partial_fit: signed=True needs all rows at once; use fit")
        first = not hasattr(self, "counts_")
        X = validate_data(self, X, dtype=FLOATS, ensure_min_features=2 if first else 1, reset=first)
        if isinstance(self.signed, str) and X.min() < 0:
            warnings.warn("partial_fit: negative values are scored one-sided; use fit for signed tables", stacklevel=2)
        if not first and (self.center_ is not None or self.epsilon_ != epsilon):
            raise QScoreError(
                "partial_fit: cannot continue a fit with another epsilon, or with signed scaling; use fit"
            )
        if first:
            self.epsilon_, self.signed_, self.center_, self.scale_ = epsilon, False, None, None
            self.counts_, self.n_samples_seen_ = np.zeros(X.shape[1], dtype=np.int64), 0
            self._warn_if_out_of_reach()
        self._finish(self.counts_ + scan(X, self.epsilon_).counts, self.n_samples_seen_ + len(X))
        return self

    def score_samples(self, X: Float[Any, "n r"]) -> Float[np.ndarray, " n"]:
        """Return Q for each row of X.

        Parameters
        ----------
        X : array-like of shape (n, r)
            Representations of the fitted width; no NaN, no infinity.

        Returns
        -------
        ndarray of shape (n,)
            Scores >= 0, higher = better represented; 0 where no discriminative feature is highly active.

        Raises
        ------
        ValueError
            If X is not a finite 2-D table of the fitted width.
        """
        return self._scan(X).q_score(self.discriminative_features_)

    def score_one(self, x: Float[np.ndarray, " r"]) -> float:
        """Return Q of a single row, in microseconds: for services that see one embedding at a time.

        The same number as ``score_samples(x[None])[0]``, without scikit-learn's checks of a table. Not for several
        threads at once: give each its own copy of the scorer.

        Parameters
        ----------
        x : ndarray of shape (r,)
            A representation of the fitted width.

        Returns
        -------
        float
            Score >= 0; NaN where x holds NaN or infinity.

        Raises
        ------
        QScoreError
            If x is not an array of numbers of the fitted width.

        Examples
        --------
        >>> import numpy as np
        >>> H = np.zeros((60, 20)); H[np.arange(60), np.arange(60) % 20] = np.arange(60)
        >>> QScorer(epsilon=4.0, lower=0.25).fit(H).score_one(H[10])
        9.5
        """
        features, scorer = getattr(self, "_row_scorer", (None, None))
        if scorer is None or features is not self.discriminative_features_:  # D may have been found anew
            scorer = self._prepare_row_scorer()
        if not isinstance(x, np.ndarray) or x.shape != (self.n_features_in_,) or x.dtype.kind not in "fiu":
            kind = f"{x.dtype} of shape {x.shape}" if isinstance(x, np.ndarray) else type(x).__name__
            raise QScoreError(f"x: expected an array of numbers of shape ({self.n_features_in_},), got {kind}")
        if x.dtype not in (np.float32, np.float64) or not x.dtype.isnative:
            x = x.astype(np.float32 if x.dtype == np.float16 else np.float64)
        if self.signed_:
            x = core.apply_scaling(x[None], self.center_, self.scale_)[0]
        return scorer(np.ascontiguousarray(x))

    def _prepare_row_scorer(self) -> Callable[[np.ndarray], float]:
        check_is_fitted(self)
        chosen = np.zeros(self.n_features_in_, dtype=bool)
        chosen[self.discriminative_features_] = True
        scorer = row_scorer(chosen, self.epsilon_, two_sided=self.signed_)
        self._row_scorer = (self.discriminative_features_, scorer)
        return scorer

    def __getstate__(self) -> dict[str, Any]:
        # Buffers for one row belong to one process and one copy.
        return {name: value for name, value in super().__getstate__().items() if name != "_row_scorer"}

    def drift(self, X: Float[Any, "n r"], *, alpha: float = 0.05) -> Drift:
        """Compare the activation rates of new rows with the fitted ones, feature by feature and as a whole.

        In each feature, Fisher's exact test compares k of the n new rows that are highly active with the K - k of
        the N - n fitted ones. Given K, chance alone makes k hypergeometric, and the two-sided p-value is the
        probability of all outcomes that are no likelier than the one seen::

            p = sum of P(x) over all x with P(x) <= P(k),   P(x) = C(K, x) C(N - K, n - x) / C(N, n)

        The features' p-values are adjusted by Benjamini and Hochberg, which bounds the share of false discoveries
        where features are independent or positively dependent. The global test is Bonferroni's, on the smallest
        p-value, and holds under any dependence. Both count the features that fire in some row; the others cannot move.

        The tests are exact for rows drawn independently, at a fixed epsilon and without scaling. An automatic epsilon
        and the scaling of signed rows were fitted to the old rows alone, which makes them approximate.

        Parameters
        ----------
        X : array-like of shape (n, r)
            New representations of the fitted width; no NaN, no infinity.
        alpha : float, default=0.05
            Adjusted p-value, in (0, 1), up to which a feature counts as moved.

        Returns
        -------
        Drift
            Rates before and now, p-values, the features that moved, and the global test.

        Raises
        ------
        ValueError
            If X is not a finite 2-D table of the fitted width, or alpha is out of range.

        References
        ----------
        Fisher, "The logic of inductive inference", Journal of the Royal Statistical Society 98 (1935). Benjamini and
        Hochberg, "Controlling the false discovery rate", Journal of the Royal Statistical Society B 57 (1995).

        Examples
        --------
        >>> import numpy as np
        >>> H = np.random.default_rng(0).gamma(0.2, size=(600, 64))
        >>> scorer = QScorer(epsilon=2.0).fit(H[:400])
        >>> new = H[400:]; new[:, 7] += 2.0
        >>> drift = scorer.drift(new)
        >>> drift.features, drift.p_value < 1e-9
        (array([7]), True)
        """
        if not 0 < alpha < 1:
            raise QScoreError(f"alpha: expected a number between 0 and 1, got {alpha!r}")
        found = self._scan(X)
        return measure_drift(self.counts_, self.n_samples_seen_, found.counts, len(found), alpha=alpha)

    def _scan(self, X: Any) -> Scan:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=FLOATS, reset=False)
        if self.signed_:
            X = core.apply_scaling(X, self.center_, self.scale_)
        return scan(X, self.epsilon_, two_sided=self.signed_)

    def _fit(self, X: Any) -> Scan:
        epsilon = self._check_parameters()
        X = validate_data(self, X, dtype=FLOATS, ensure_min_features=2)
        self.signed_ = bool(X.min() < 0) if isinstance(self.signed, str) else bool(self.signed)
        self.center_, self.scale_ = core.robust_scaling(X) if self.signed_ else (None, None)
        if self.signed_:
            X = core.apply_scaling(X, self.center_, self.scale_)
        found = scan(X, core.EPSILON_GRID[-1] if epsilon == "auto" else epsilon, two_sided=self.signed_)
        covered = True
        self.epsilon_ = found.epsilon
        if epsilon == "auto":
            self.epsilon_, covered = automatic_epsilon(lambda: [found], X.shape[1], self.lower, self.upper)
            found = found.at(self.epsilon_)
        self._finish(found.counts, len(X))
        self._warn(found, covered)
        return found

    def _finish(self, counts: np.ndarray, n: int) -> None:
        self.counts_ = counts
        self.n_samples_seen_ = n
        self.activation_rates_ = counts / max(n, 1)
        self.discriminative_features_ = core.discriminative_features(counts, self.lower, self.upper)

    def _check_parameters(self) -> float | Literal["auto"]:
        """Return epsilon as a number or ``auto``."""
        check_band(self.lower, self.upper)
        if self.signed not in (True, False, "auto"):
            raise QScoreError(f"signed: expected True, False or 'auto', got {self.signed!r}")
        return settle_epsilon(self.epsilon)

    def _warn_if_out_of_reach(self) -> bool:
        try:
            check_epsilon(self.epsilon_, n_features=self.n_features_in_)
        except QScoreError as error:
            warnings.warn(f"{error}; all scores are 0", stacklevel=4)
            return True
        return False

    def _warn(self, found: Scan, covered: bool) -> None:
        if self._warn_if_out_of_reach():
            return
        sizes, _ = found.select(self.discriminative_features_)
        empty = float((sizes == 0).mean())
        automatic = isinstance(self.epsilon, str) and self.epsilon == "auto"
        if not automatic and empty > 0.5:
            warnings.warn(
                f"{empty:.0%} of the rows have no highly active discriminative feature at epsilon "
                f"{self.epsilon_:g}, and score 0; epsilon='auto' chooses a smaller one",
                stacklevel=4,
            )
        if not covered:
            warnings.warn(
                "no epsilon from 4.0 to 1.5 leaves 95 % of the rows a discriminative feature; using 1.5", stacklevel=4
            )
