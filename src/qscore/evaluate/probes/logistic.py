"""Multinomial logistic regression, its strength chosen on held-out training rows.

With z a standardised row, R the correlations of the features over the n training rows, y a row's class, the fit is

    minimise over W (r, c), b (c,):   strength * sum_i -log softmax(z_i W + b)[y_i]  +  tr(W^T (R + I) W) / 2

tr(W^T R W) is the variance of the c logits over the training rows, so that both their variance and the weights are
held small. With R + I = L L^T and theta = L^T W this is plain logistic regression on x = L^-1 z, whose features are
almost uncorrelated, so that the solver, scikit-learn's L-BFGS, needs far fewer steps than on z. The intercept b is not
penalised. Of two classes the first is the reference: its column of W, and its b, are 0.
"""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from scipy.linalg import cholesky, solve_triangular
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.evaluate.probes.devices import Placement
from qscore.evaluate.probes.linear import LinearClassifier, Standardizer, fit_standardizer
from qscore.evaluate.probes.rows import TrainingRows, block_slices

__all__ = ["STRENGTHS", "LogisticFit", "Needs", "fit_logistic", "logistic_needs", "split_rows"]

log = logging.getLogger(__name__)

STRENGTHS = tuple(round(10.0 ** (k / 2), 6) for k in range(-8, 3))  # 1e-4 to 10, strongest penalty first
PATIENCE = 2  # strengths that may predict held-out rows worse than an earlier one did, before the search ends
HELD_OUT = 0.2
LEAST_PROBABILITY = 1e-12  # of a held-out row's class: a single confident mistake must not decide the search
MAX_ITERATIONS = 1000
TOLERANCES = {"float32": 1e-5, "float64": 1e-7}  # of the largest entry of the mean loss's gradient
COARSE = 1e-4  # the same, while strengths are compared
FINE_BYTES = 2**31  # up to which the final fit runs in float64; float32 cannot tell losses apart so near the optimum
MOST_BYTES = 16 * 2**30
MOST_OPERATIONS = {"cpu": 1e15, "cuda": 1e18}  # hours on a core, minutes on a GPU
LOGIT_ARRAYS = {"cpu": 2, "cuda": 6}  # of shape (n, c), float32, that exist at a time
SOLVER_VECTORS = 25  # of the length of the coefficients, float64: ten pairs of the past, and what L-BFGS works on
EVALUATIONS = 300  # of the loss on all rows, over the whole search: rather too many than too few
NOTEWORTHY = 1e12  # operations: half a minute on a core


@dataclass(frozen=True)
class Needs:
    """What a fit takes, roughly."""

    n_bytes: int
    operations: float
    """Floating-point operations."""


@dataclass(frozen=True)
class LogisticFit:
    """A fitted logistic probe, and how it was fitted."""

    classifier: LinearClassifier
    strength: float
    at_edge: bool
    """Whether it is the first or last that was offered, and did better than its neighbour."""
    converged: bool
    """Whether the final fit reached its optimum within the iterations allowed."""
    n_single: int
    """Classes with a single row, which stay out of the choice of the strength."""


def logistic_needs(n: int, n_features: int, n_classes: int, kind: str = "cpu") -> Needs:
    """Say what a fit takes before it begins.

    Parameters
    ----------
    n, n_features, n_classes : int
        Training rows, features r and classes c.
    kind : {"cpu", "cuda"}
        Where it runs.

    Examples
    --------
    >>> needs = logistic_needs(1_281_167, 2048, 1000)
    >>> f"{needs.n_bytes / 2**30:.0f} GiB, {needs.operations:.0e}"
    '20 GiB, 3e+15'
    """
    rows, correlations = 4 * n * n_features, 3 * 8 * n_features**2
    rows += 2 * rows if 2 * rows <= FINE_BYTES else 0
    logits = LOGIT_ARRAYS[kind] * 4 * n * n_classes
    solver = SOLVER_VECTORS * 8 * (n_features + 1) * n_classes
    operations = 4.0 * n * n_features * n_classes * EVALUATIONS + 4.0 * n * n_features**2
    return Needs(rows + logits + correlations + solver, operations)


def fit_logistic(training: TrainingRows, *, seed: int, placement: Placement) -> LogisticFit:
    """Choose the strength on a fifth of the rows held out, then fit on all.

    The features' mean, scale and correlations come from all training rows, without their labels. Strengths are tried
    from the strongest penalty to the weakest, each fit beginning where the last ended, until the held-out rows are
    predicted worse; the one with the most held-out rows right is taken, of equals that with the lowest log loss.

    Parameters
    ----------
    training : TrainingRows
        n rows of r features, at least two classes.
    seed : int
        Seed of the split.
    placement : Placement
        Where the solver runs.

    Raises
    ------
    QScoreError
        If the fit would take more memory or time than it is made for, or every class has a single row.
    """
    _check_needs(training, placement)
    fitted, held, n_single = split_rows(training.codes, seed)
    order = np.concatenate([fitted, held])
    standardizer = fit_standardizer(training)
    X, P = _decorrelated(training, order, standardizer)
    fine = 2 * X.nbytes <= FINE_BYTES
    model = LogisticRegression(max_iter=MAX_ITERATIONS, tol=COARSE, warm_start=True)
    with placement.dispatched():
        codes = placement.put(training.codes[order])
        placed = placement.put(X)
        strength, at_edge = _choose(model, placed, codes, len(fitted), placement)
        if fine:
            placed = placement.put(X.astype(np.float64))
        converged = _fit(model.set_params(tol=TOLERANCES["float64" if fine else "float32"]), placed, codes)
        theta, bias = placement.take(model.coef_).astype(np.float64), placement.take(model.intercept_)
    if len(training.classes) == 2:  # scikit-learn holds the second class against the first
        theta, bias = np.vstack([np.zeros_like(theta), theta]), np.append(0.0, bias)
    weights = (P @ theta.T).astype(np.float32)
    return LogisticFit(
        LinearClassifier(standardizer, weights, bias.astype(np.float32)), strength, at_edge, converged, n_single
    )


def split_rows(
    codes: Integer[np.ndarray, " n"], seed: int
) -> tuple[Integer[np.ndarray, " f"], Integer[np.ndarray, " h"], int]:
    """Hold out a fifth of the rows, stratified by class; classes with a single row stay on the fitting side.

    Parameters
    ----------
    codes : ndarray of int, shape (n,)
        Classes 0 .. c - 1.
    seed : int
        Seed of the split.

    Returns
    -------
    fitted, held : ndarray of int
        Places of the rows on either side; every class is on the fitting side.
    n_single : int
        Classes with a single row.

    Raises
    ------
    QScoreError
        If no class has two rows.

    Examples
    --------
    >>> import numpy as np
    >>> fitted, held, n_single = split_rows(np.array([0, 0, 0, 1, 1, 2]), seed=0)
    >>> len(fitted), len(held), n_single
    (4, 2, 1)
    """
    counts = np.bincount(codes)
    n_single = int((counts == 1).sum())
    rows = np.flatnonzero(counts[codes] > 1)
    if not len(rows):
        raise QScoreError(
            f"the probe chooses its strength on held-out rows, but each of the {n_single:,} classes has a single row; "
            "label more rows, or use --probe knn"
        )
    n_held = max(len(counts) - n_single, round(HELD_OUT * len(rows)))
    fitted, held = train_test_split(rows, test_size=n_held, random_state=seed, stratify=codes[rows])
    return np.sort(np.concatenate([fitted, np.flatnonzero(counts[codes] == 1)])), np.sort(held), n_single


def _check_needs(training: TrainingRows, placement: Placement) -> None:
    """Say what a large fit takes, and refuse one that is too large."""
    n, r, c = len(training), training.n_features, len(training.classes)
    needs = logistic_needs(n, r, c, placement.kind)
    most_bytes = placement.free_bytes or MOST_BYTES
    most_operations = MOST_OPERATIONS[placement.kind]
    said = (
        f"logistic probe: {n:,} rows of {r:,} features in {c:,} classes take {needs.n_bytes / 2**30:,.1f} GiB and "
        f"about {needs.operations:.0e} operations"
    )
    if needs.n_bytes > most_bytes or needs.operations > most_operations:
        raise QScoreError(
            f"{said}, more than the {most_bytes / 2**30:,.1f} GiB and {most_operations:.0e} it is allowed on "
            f"{placement.kind}; use --probe sgd, which streams, or --probe knn"
        )
    if needs.operations > NOTEWORTHY:
        log.info(said)


def _decorrelated(
    training: TrainingRows, order: Integer[np.ndarray, " n"], standardizer: Standardizer
) -> tuple[Float[np.ndarray, "n r"], Float[np.ndarray, "r r"]]:
    """Return x_i = L^-1 z_i for all rows in some order, in float32, and P = L^-T with x = z P."""
    n, r = len(training), training.n_features
    X, R = np.empty((n, r), dtype=np.float32), np.zeros((r, r))
    for at, block in training.blocks(order):
        X[at] = standardizer(block)
        R += X[at].T @ X[at]
    R /= n
    R.flat[:: r + 1] += 1.0
    L = cholesky(R, lower=True, overwrite_a=True, check_finite=False)
    P = solve_triangular(L, np.eye(r), lower=True, check_finite=False).T
    narrow = P.astype(np.float32)
    for at in block_slices(n, r):
        X[at] = X[at] @ narrow
    return X, P


def _choose(model: Any, X: Any, codes: Any, n_fitted: int, placement: Placement) -> tuple[float, bool]:
    """Choose the strength, leave the model with its coefficients, and tell whether a further one might do better."""
    truth = placement.take(codes[n_fitted:])
    tried: list[tuple[float, float]] = []  # share of held-out rows right, and minus their mean log loss
    starts = []
    with progress("logistic probe", len(STRENGTHS), "strengths") as advance:
        for strength in STRENGTHS:
            _fit(model.set_params(C=strength), X[:n_fitted], codes[:n_fitted])
            starts.append((model.coef_, model.intercept_))
            probability = placement.take(model.predict_proba(X[n_fitted:])).astype(np.float64)
            likely = np.log(probability[np.arange(len(truth)), truth].clip(min=LEAST_PROBABILITY))
            tried.append((float((probability.argmax(axis=1) == truth).mean()), float(likely.mean())))
            advance(1)
            if max(range(len(tried)), key=lambda k: tried[k][1]) < len(tried) - PATIENCE:
                break
    best = max(range(len(tried)), key=lambda k: tried[k])
    inner = {0: 1, len(STRENGTHS) - 1: len(STRENGTHS) - 2}.get(best)
    at_edge = inner is not None and tried[best][0] > tried[inner][0]
    model.set_params(C=STRENGTHS[best])
    model.coef_, model.intercept_ = starts[best]
    return STRENGTHS[best], at_edge


def _fit(model: Any, X: Any, codes: Any) -> bool:
    """Fit from where the model is, and tell whether it reached its optimum."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(X, codes)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
