"""Metrics of a representation from their papers' definitions: singular values of the matrix, and loops over pairs."""

import math
from statistics import fmean, pstdev

import numpy as np


def singular_values(H):
    return np.linalg.svd(np.asarray(H, dtype=np.float64), compute_uv=False)


def variances(H):
    """Eigenvalues of the population covariance, min(n, r) of them."""
    return singular_values(H - np.mean(H, axis=0)) ** 2 / len(H)


def rankme(H):
    """Garrido et al. 2023, equation 1."""
    sigma = [float(s) for s in singular_values(H)]
    p = [s / math.fsum(sigma) + 1e-7 for s in sigma]
    return math.exp(-math.fsum(x * math.log(x) for x in p))


def stable_rank(H):
    return np.linalg.norm(H, "fro") ** 2 / np.linalg.norm(H, 2) ** 2


def nesum(H):
    """He & Ozay 2022."""
    return variances(H).sum() / variances(H).max()


def alpha_req(H):
    """Agrawal et al. 2022: the line of least weighted squares, by NumPy's polyfit, over the ranks 4 to 100."""
    values = variances(H)
    values = values[values > 1e-12 * values.max()]
    rank = np.arange(1, len(values) + 1)
    fitted = (rank >= 4) & (rank <= 100)
    slope, _ = np.polyfit(np.log(rank[fitted]), np.log(values[fitted]), 1, w=np.sqrt(1 / rank[fitted]))
    return -slope


def unit(H):
    return [[x / math.sqrt(math.fsum(y * y for y in row)) for x in row] for row in np.asarray(H).tolist()]


def squared_distance(a, b):
    return math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def uniformity(H):
    """Wang & Isola 2020, t = 2."""
    Z = unit(H)
    kernels = [math.exp(-2 * squared_distance(Z[i], Z[j])) for i in range(len(Z)) for j in range(i)]
    return math.log(fmean(kernels))


def alignment(views, image):
    """Wang & Isola 2020, alpha = 2: mean over images of the mean over pairs of views, in any order."""
    Z = unit(views)
    distances = {}
    for i in range(len(Z)):
        for j in range(i):
            if image[i] == image[j]:
                distances.setdefault(image[i], []).append(squared_distance(Z[i], Z[j]))
    return fmean(fmean(d) for d in distances.values())


def normalized_std(H):
    """Chen & He 2021, figure 2: per channel, of the output scaled to unit length."""
    return fmean(pstdev(channel) for channel in zip(*unit(H), strict=True))


def hoyer(H):
    """Hoyer 2004, section 3.1."""
    root = math.sqrt(len(H[0]))
    rows = np.asarray(H).tolist()
    return fmean(
        (root - math.fsum(map(abs, row)) / math.sqrt(math.fsum(x * x for x in row))) / (root - 1) for row in rows
    )
