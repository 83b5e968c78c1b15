"""The losses of self-supervised methods, written with loops from their papers' equations."""

import math


def nt_xent(first, second, temperature):
    """Equation 1 of SimCLR (arXiv 2002.05709), averaged over all ordered positive pairs of the 2 n views."""
    views = [row.tolist() for row in first] + [row.tolist() for row in second]
    n = len(first)
    total = 0.0
    for i in range(2 * n):
        positive = math.exp(_cosine(views[i], views[(i + n) % (2 * n)]) / temperature)
        others = sum(math.exp(_cosine(views[i], views[k]) / temperature) for k in range(2 * n) if k != i)
        total -= math.log(positive / others)
    return total / (2 * n)


def _cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def finite_difference(function, x, step=1e-6):
    """The gradient of a function of a 2-D tensor by central differences, one entry after the other."""
    gradient = x.clone()
    for i in range(x.shape[0]):
        for j in range(x.shape[1]):
            up, down = x.clone(), x.clone()
            up[i, j] += step
            down[i, j] -= step
            gradient[i, j] = (function(up) - function(down)) / (2 * step)
    return gradient
