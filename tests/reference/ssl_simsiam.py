"""SimSiam (arXiv 2011.10566), written with loops from its equations."""


def negative_cosine(predictions, outputs):
    """Equation 1, averaged over the images."""
    total = 0
    for p, z in zip(predictions, outputs, strict=True):
        dot = sum(x * y for x, y in zip(p, z, strict=True))
        total = total - dot / (sum(x * x for x in p) * sum(y * y for y in z)) ** 0.5
    return total / len(predictions)


def loss(module, views):
    """Equation 4: both directions, the output of the other view held fixed."""
    first, second = (module.projector(module.backbone(view)) for view in views)
    return (
        negative_cosine(module.predictor(first), second.detach()) / 2
        + negative_cosine(module.predictor(second), first.detach()) / 2
    )
