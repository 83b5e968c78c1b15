"""MoCo (v1: arXiv 1911.05722, v2: arXiv 2003.04297), written with loops from its equations."""

import torch


def unit(rows):
    return torch.stack([row / sum(x * x for x in row) ** 0.5 for row in rows])


def info_nce(queries, keys, queue, temperature):
    """Equation 1 of v1, averaged over the queries: the positive key against itself and the queue."""
    total = 0
    for q, k in zip(queries, keys, strict=True):
        positive = torch.exp(sum(x * y for x, y in zip(q, k, strict=True)) / temperature)
        negatives = sum(torch.exp(sum(x * y for x, y in zip(q, old, strict=True)) / temperature) for old in queue)
        total = total - torch.log(positive / (positive + negatives))
    return total / len(queries)


def loss(module, views, queue, temperature):
    """Algorithm 1 of v1; in both directions, averaged, where the method is symmetric."""
    queries = [unit(module.head(module.backbone(view))) for view in views]
    keys = [unit(module.keys(view)).detach() for view in views]
    one_way = info_nce(queries[0], keys[1], queue, temperature)
    return (one_way + info_nce(queries[1], keys[0], queue, temperature)) / 2 if module.config.symmetric else one_way
