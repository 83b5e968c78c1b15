"""Failure prediction from the definitions: every pair, every threshold, every order of ties."""

import itertools
import math
from statistics import fmean


def auroc(score, correct):
    """The share of (correct, wrong) pairs in which the correct row scores higher; half where they tie."""
    pairs = [
        (a, b) for a, x in zip(score, correct, strict=True) if x for b, y in zip(score, correct, strict=True) if not y
    ]
    return fmean(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs)


def average_precision(score, positive):
    """Sum over thresholds of (gain in recall) times precision, for "score >= threshold"."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(score), reverse=True):
        taken = [p for s, p in zip(score, positive, strict=True) if s >= threshold]
        gained = sum(taken) / sum(positive)
        total += (gained - recall) * (sum(taken) / len(taken))
        recall = gained
    return total


def aurc(score, correct):
    """The mean over coverages of the error rate among the highest scores, averaged over all orders of ties."""
    groups = [
        [c for s, c in zip(score, correct, strict=True) if s == level] for level in sorted(set(score), reverse=True)
    ]
    areas = []
    for orders in itertools.product(*(list(itertools.permutations(group)) for group in groups)):
        ranked = [c for group in orders for c in group]
        areas.append(fmean(sum(not c for c in ranked[: k + 1]) / (k + 1) for k in range(len(ranked))))
    return math.fsum(areas) / len(areas)


def selective_risks(score, correct):
    """The error rate among the k highest of scores without ties, for k = 1, ..., n."""
    ranked = [c for _, c in sorted(zip(score, correct, strict=True), reverse=True)]
    return [sum(not c for c in ranked[:k]) / k for k in range(1, len(ranked) + 1)]


def aurc_of_torch_uncertainty(score, correct):
    """Trapezoids over the coverages 1 / n to 1, stretched to the length 1 (its class ``AURC``)."""
    risks = selective_risks(score, correct)
    n = len(risks)
    return math.fsum((a + b) / 2 / n for a, b in itertools.pairwise(risks)) / (1 - 1 / n)


def aurc_of_fd_shifts(score, correct):
    """Trapezoids over the coverages 0 to 1, where the risk at 0 is that at 1 / n, times 1,000 (its ``rc_stats``)."""
    risks = selective_risks(score, correct)
    risks = [risks[0], *risks]
    return 1000 * math.fsum((a + b) / 2 / (len(risks) - 1) for a, b in itertools.pairwise(risks))
