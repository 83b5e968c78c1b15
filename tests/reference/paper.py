"""Q-Score by naive loops, with exact sums (math.fsum), straight from the definitions."""

import math
import statistics


def is_valid(row):
    return all(math.isfinite(x) for x in row)


def mean_and_std(row):
    mu = math.fsum(row) / len(row)
    if all(x == row[0] for x in row):
        return row[0], 0.0
    return mu, math.sqrt(math.fsum((x - mu) ** 2 for x in row) / len(row))


def highly_activating(row, epsilon, two_sided=False):
    """The set L_i."""
    if not is_valid(row):
        return set()
    mu, sigma = mean_and_std(row)
    threshold = epsilon * sigma * (1 + 1e-9)
    return {j for j, x in enumerate(row) if (abs(x - mu) if two_sided else x - mu) > threshold}


def activation_rates(rows, epsilon, two_sided=False):
    valid = [row for row in rows if is_valid(row)]
    rates = [0.0] * len(rows[0])
    for row in valid:
        for j in highly_activating(row, epsilon, two_sided):
            rates[j] += 1 / len(valid)
    return rates


def discriminative_features(rates, lower=0.50, upper=0.95):
    r = len(rates)
    ranked = sorted(range(r), key=lambda j: (rates[j], j))
    start = math.floor(round(lower * r, 9))
    stop = math.ceil(round(upper * r, 9))
    return sorted(j for j in ranked[start:stop] if rates[j] > 0)


def q_score(row, features, epsilon, two_sided=False):
    if not is_valid(row):
        return math.nan
    mu, _ = mean_and_std(row)
    chosen = highly_activating(row, epsilon, two_sided) & set(features)
    if not chosen:
        return 0.0
    return math.fsum((abs(row[j] - mu) if two_sided else row[j] - mu) for j in chosen) / len(chosen)


def q_score_v1(row):
    if not is_valid(row):
        return math.nan
    mu, sigma = mean_and_std(row)
    if sigma == 0:
        return 0.0
    norm = math.sqrt(math.fsum(x * x for x in row))
    unit = [x / norm for x in row]
    return ((max(row) - mu) / sigma) / math.fsum(abs(x) for x in unit)


def automatic_epsilon(rows, lower=0.50, upper=0.95, two_sided=False):
    r = len(rows[0])
    counted = [row for row in rows if is_valid(row) and len(set(row)) > 1]
    for tenths in range(40, 14, -1):
        epsilon = tenths / 10
        if r <= epsilon**2 + 1:
            continue
        features = set(discriminative_features(activation_rates(rows, epsilon, two_sided), lower, upper))
        kept = sum(bool(highly_activating(row, epsilon, two_sided) & features) for row in counted)
        if features and counted and kept >= 0.95 * len(counted):
            return epsilon
    return 1.5


def robust_scaling(rows):
    valid = [row for row in rows if is_valid(row)]
    columns = list(zip(*valid, strict=True))
    center = [statistics.median(column) for column in columns]
    mad = [statistics.median(abs(x - c) for x in column) for column, c in zip(columns, center, strict=True)]
    return center, [1.4826 * m if m > 0 else statistics.pstdev(x) for m, x in zip(mad, columns, strict=True)]


def apply_scaling(row, center, scale):
    if not is_valid(row):
        return [math.nan] * len(row)
    pairs = zip(row, center, scale, strict=True)
    return [max(-20.0, min(20.0, (x - c) / s)) if s > 0 else 0.0 for x, c, s in pairs]
