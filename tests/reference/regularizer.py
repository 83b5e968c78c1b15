"""Q-Score regularisation and its gradient by hand: METHOD's formula over lists, one entry at a time."""

import math

from reference.paper import highly_activating, mean_and_std, q_score


def thresholds(rows, features, epsilon):
    """alpha and beta; alpha is None where every L_i ∩ D is empty."""
    full = [q_score(row, features, epsilon) for row in rows if highly_activating(row, epsilon) & set(features)]
    norms = column_norms(rows)
    return (math.fsum(full) / len(full) if full else None), math.fsum(norms) / len(norms)


def column_norms(rows):
    return [math.fsum(abs(x) for x in column) for column in zip(*rows, strict=True)]


def terms(rows, features, epsilon):
    """Both sums, unweighted."""
    alpha, beta = thresholds(rows, features, epsilon)
    scores = [q_score(row, features, epsilon) for row in rows]
    first = math.fsum(q for q in scores if alpha is not None and q < alpha)
    return first, math.fsum(norm for norm in column_norms(rows) if norm > beta)


def loss(rows, features, epsilon, lambda1, lambda2, reduction="sum"):
    first, second = terms(rows, features, epsilon)
    b, r = len(rows), len(rows[0])
    by_rows, by_values = (1, 1) if reduction == "sum" else (b, b * r)
    return -lambda1 * first / by_rows + lambda2 * second / by_values


def gradient(rows, features, epsilon, lambda1, lambda2, reduction="sum"):
    """d loss / d h_ij, sets, indicators and thresholds held fixed."""
    alpha, beta = thresholds(rows, features, epsilon)
    b, r = len(rows), len(rows[0])
    by_rows, by_values = (1, 1) if reduction == "sum" else (b, b * r)
    norms = column_norms(rows)
    result = []
    for row in rows:
        chosen = highly_activating(row, epsilon) & set(features)
        lifted = bool(chosen) and q_score(row, features, epsilon) < alpha
        result.append([])
        for j, x in enumerate(row):
            value = 0.0
            if lifted:  # Q_i = sum over chosen of h_ij / |chosen| - mu_i, and mu_i holds h_ij / r
                value -= lambda1 * ((j in chosen) / len(chosen) - 1 / r) / by_rows
            if norms[j] > beta:
                value += lambda2 * ((x > 0) - (x < 0)) / by_values
            result[-1].append(value)
    return result


def stats(rows, features, epsilon):
    alpha, beta = thresholds(rows, features, epsilon)
    b, r = len(rows), len(rows[0])
    sets = [highly_activating(row, epsilon) for row in rows]
    full = [bool(s & set(features)) for s in sets]
    scores = [q_score(row, features, epsilon) for row in rows]
    sigmas = [mean_and_std(row)[1] for row in rows]
    directed = [row for row in rows if any(row)]
    hoyers = [
        (math.sqrt(r) - math.fsum(map(abs, row)) / math.sqrt(math.fsum(x * x for x in row))) / (math.sqrt(r) - 1)
        for row in directed
    ]
    return {
        "q": math.fsum(scores) / b,
        "q_over_sigma": math.fsum(q / s for q, s, f in zip(scores, sigmas, full, strict=True) if f) / b,
        "coverage": sum(full) / sum(s > 0 for s in sigmas),
        "empty_rows": (b - sum(full)) / b,
        "below_alpha": sum(f and q < alpha for q, f in zip(scores, full, strict=True)) / b,
        "alpha": alpha if alpha is not None else math.nan,
        "beta": beta,
        "above_beta": sum(norm > beta for norm in column_norms(rows)) / r,
        "n_active": sum(map(len, sets)) / b,
        "hoyer": math.fsum(hoyers) / len(hoyers),
        "zeros": sum(x == 0 for row in rows for x in row) / (b * r),
    }
