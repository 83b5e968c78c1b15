"""Ridge classification from the definition: least squares on the explicit columns, with the penalty as extra rows."""

import numpy as np


def fit(H, codes, n_classes, penalty):
    """Return weights (k, c) and intercepts (c,) that minimise sum |y - x W - b|^2 + penalty |W|^2."""
    H = np.asarray(H, dtype=np.float64)
    k = H.shape[1]
    targets = np.array([[float(code == c) for c in range(n_classes)] for code in codes])
    # The intercept is a column of ones that no extra row penalises.
    rows = np.vstack(
        [np.column_stack([H, np.ones(len(H))]), np.column_stack([np.sqrt(penalty) * np.eye(k), np.zeros(k)])]
    )
    solution, *_ = np.linalg.lstsq(rows, np.vstack([targets, np.zeros((k, n_classes))]), rcond=None)
    return solution[:-1], solution[-1]


def scores(train, codes, n_classes, penalty, test):
    weights, intercepts = fit(train, codes, n_classes, penalty)
    return np.asarray(test, dtype=np.float64) @ weights + intercepts


def principal_components(train, test, k):
    """Return both sets of rows in the first k principal components of the first, by singular value decomposition."""
    mean = np.asarray(train, dtype=np.float64).mean(axis=0)
    _, _, components = np.linalg.svd(train - mean, full_matrices=True)
    return (train - mean) @ components[:k].T, (test - mean) @ components[:k].T


def paired_bootstrap(right, full, resamples, seed):
    """Return the 95 % interval of the change in accuracy, drawing rows."""
    rng = np.random.default_rng(seed)
    change = right.astype(float) - full.astype(float)
    drawn = [change[rng.integers(0, len(change), len(change))].mean() for _ in range(resamples)]
    return np.quantile(drawn, [0.025, 0.975])
