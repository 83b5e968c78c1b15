"""Q's rivals by naive loops, from their definitions."""

import math
from fractions import Fraction
from statistics import fmean

import numpy as np


def unit(row):
    norm = math.sqrt(math.fsum(x * x for x in row))
    return [x / norm for x in row] if norm else [0.0] * len(row)


def cosine(a, b):
    return math.fsum(x * y for x, y in zip(unit(a), unit(b), strict=True))


def distance(a, b):
    return math.sqrt(math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def kurtosis(row):
    """Fourth central moment over the squared second, minus the 3 of a normal distribution."""
    values = [Fraction(x) for x in row]
    mean = sum(values) / len(values)
    second, fourth = (sum((x - mean) ** power for x in values) / len(values) for power in (2, 4))
    return float(fourth / second**2 - 3) if second else -2.0


def hoyer(row):
    l1, l2 = math.fsum(abs(x) for x in row), math.sqrt(math.fsum(x * x for x in row))
    return (math.sqrt(len(row)) - l1 / l2) / (math.sqrt(len(row)) - 1) if l2 else 0.0


def nearest_rows(row, reference, k, without=None):
    """The k most similar reference rows as (similarity, index), most similar first."""
    pairs = [(cosine(row, other), i) for i, other in enumerate(reference) if i != without]
    return sorted(pairs, key=lambda pair: -pair[0])[:k]


def neighborhood_consistency(row, views, reference, k, without=None):
    own = {i for _, i in nearest_rows(row, reference, k, without)}
    return fmean(len(own & {i for _, i in nearest_rows(view, reference, k, without)}) / len(own) for view in views)


def view_cosine(row, views):
    return fmean(cosine(row, view) for view in views)


def prototype_distances(row, centers):
    """The two smallest distances of the row, scaled to unit length."""
    return sorted(distance(unit(row), center) for center in centers)[:2]


def ledoit_wolf_covariance(rows):
    """Ledoit and Wolf 2004, section 3.3, in their symbols: m, d2, b2 and rho = b2 / d2."""
    X = np.asarray(rows, dtype=np.float64)
    n, p = X.shape
    X = X - X.mean(axis=0)
    S = sum(np.outer(x, x) for x in X) / n
    m = np.trace(S) / p
    d2 = ((S - m * np.eye(p)) ** 2).sum() / p
    b2 = min(d2, sum(((np.outer(x, x) - S) ** 2).sum() for x in X) / p / n**2)
    rho = b2 / d2 if d2 else 0.0
    return rho * m * np.eye(p) + (1 - rho) * S


def mahalanobis(row, rows):
    difference = np.asarray(row, dtype=np.float64) - np.mean(np.asarray(rows, dtype=np.float64), axis=0)
    return math.sqrt(difference @ np.linalg.inv(ledoit_wolf_covariance(rows)) @ difference)
