"""Localisation by the definition, pixel by pixel, and by the formulas of Quantus 0.6 (Hedström et al., JMLR 2023)."""

from itertools import combinations

import numpy as np


def top_iou(heat, mask):
    """IoU of the strongest pixels, as many as the mask has: the intersection averaged over every way to break ties."""
    heat, mask = list(np.ravel(heat)), list(np.ravel(mask))
    area = sum(mask)
    if max(heat) == 0:
        return 0.0
    least = sorted(heat, reverse=True)[area - 1]
    sure = [i for i, value in enumerate(heat) if value > least]
    tied = [i for i, value in enumerate(heat) if value == least]
    ways = [sum(mask[i] for i in (*sure, *some)) for some in combinations(tied, area - len(sure))]
    inside = sum(ways) / len(ways)
    return inside / (2 * area - inside)


def threshold_iou(heat, mask, threshold):
    """IoU of the pixels at or above a fraction of the maximum."""
    if heat.max() == 0:
        return 0.0
    taken = {tuple(p) for p in np.argwhere(heat >= threshold * heat.max())}
    marked = {tuple(p) for p in np.argwhere(mask)}
    return len(taken & marked) / len(taken | marked)


def soft_iou(heat, mask):
    """Sum of minima over sum of maxima, the heatmap scaled to a maximum of 1."""
    if heat.max() == 0:
        return 0.0
    pairs = [(h / heat.max(), m) for h, m in zip(np.ravel(heat).tolist(), np.ravel(mask).tolist(), strict=True)]
    return sum(map(min, pairs)) / sum(map(max, pairs))


def relevance_rank_accuracy(a, s):
    """Quantus' ``RelevanceRankAccuracy.evaluate_instance``."""
    a, s = a.flatten(), np.where(s.flatten().astype(bool))[0]
    ranked = np.argsort(a)[-len(s) :]
    return len(np.intersect1d(s, ranked)) / float(len(s))


def relevance_mass_accuracy(a, s):
    """Quantus' ``RelevanceMassAccuracy.evaluate_batch`` for one image."""
    return (a.flatten() * s.flatten().astype(bool)).sum() / a.sum()


def pointing_game(a, s):
    """Quantus' ``PointingGame.evaluate_instance``, unweighted."""
    a, s = a.flatten(), s.flatten().astype(bool)
    return float(np.any(s[np.argwhere(a == np.max(a))]))
