"""SwAV (arXiv 2006.09882), written with loops from its equations."""

import math

import torch


def codes(scores, epsilon, iterations):
    """Equation 5 by Sinkhorn's algorithm (appendix A.1): one row of shares per sample, each summing to 1."""
    q = [[math.exp(s / epsilon) for s in row] for row in scores.tolist()]  # q[b][k]
    n, k = len(q), len(q[0])
    for _ in range(iterations):
        for j in range(k):
            of_prototype = sum(row[j] for row in q)
            for row in q:
                row[j] /= of_prototype * k
        for row in q:
            of_sample = sum(row)
            for j in range(k):
                row[j] /= of_sample * n
    return [[share * n for share in row] for row in q]


def prediction(scores, shares, temperature):
    """Equation 2, averaged over the samples."""
    total = 0
    for row, wanted in zip(scores, shares, strict=True):
        powers = [torch.exp(s / temperature) for s in row]
        total = total - sum(q * torch.log(power / sum(powers)) for q, power in zip(wanted, powers, strict=True))
    return total / len(scores)


def outputs(module, views):
    """The unit outputs for each view; the global views are one batch to BatchNorm, the local ones another."""
    groups = [torch.cat(views[:2]), *([torch.cat(views[2:])] if views[2:] else [])]
    z = module.head(torch.cat([module.backbone(group) for group in groups]))
    z = torch.stack([row / sum(x * x for x in row) ** 0.5 for row in z])
    return z.split(len(views[0]))


def loss(module, views, config, queues=None):
    """Equation 6: the code of each global view, predicted from every other view; the mean over pairs."""
    weights = module.prototypes.weight
    z = outputs(module, views)
    scores = [rows @ weights.T for rows in z]
    total = 0
    for i in (0, 1):
        seen = z[i] if queues is None else torch.cat([z[i], queues[i]])
        shares = codes(seen.detach() @ weights.detach().T, config.sinkhorn_epsilon, config.sinkhorn_iterations)
        others = [scores[v] for v in range(len(views)) if v != i]
        own = shares[: len(views[0])]
        total = total + sum(prediction(other, own, config.temperature) for other in others) / len(others)
    return total / 2
