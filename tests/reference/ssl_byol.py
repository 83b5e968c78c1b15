"""BYOL (arXiv 2006.07733), written with loops from its equations."""

import math


def regression(predictions, targets):
    """Equation 2: the squared distance between two vectors of unit length, averaged over the images."""
    total = 0
    for p, t in zip(predictions, targets, strict=True):
        p_length = sum(x * x for x in p) ** 0.5
        t_length = sum(x * x for x in t) ** 0.5
        total = total + sum((x / p_length - y / t_length) ** 2 for x, y in zip(p, t, strict=True))
    return total / len(predictions)


def loss(module, views):
    """Equation 2 in both directions: what the online network predicts for a view, and the target's other view."""
    first, second = (module.predictor(module.projector(module.backbone(view))) for view in views)
    target_first, target_second = (module.target(view).detach() for view in views)
    return regression(first, target_second) + regression(second, target_first)


def kept(k, total, base):
    """Section 3.3: what the target keeps of itself at step k, counted from 0."""
    return 1 - (1 - base) * (math.cos(math.pi * k / total) + 1) / 2
