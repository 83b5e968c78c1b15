"""Barlow Twins (arXiv 2103.03230), written with loops from its equations."""


def correlation(first, second, epsilon=1e-5):
    """Equation 2, after subtracting the means; the authors' BatchNorm adds epsilon to each variance."""
    n, d = first.shape

    def normalise(z):
        columns = []
        for column in z.T:
            mean = sum(column) / n
            scale = (sum((x - mean) ** 2 for x in column) / n + epsilon) ** 0.5
            columns.append([(x - mean) / scale for x in column])
        return columns

    a, b = normalise(first), normalise(second)
    return [[sum(x * y for x, y in zip(a[i], b[j], strict=True)) / n for j in range(d)] for i in range(d)]


def loss(module, views, weight):
    """Equation 1."""
    first, second = (module.head(module.backbone(view)) for view in views)
    c = correlation(first, second)
    d = len(c)
    diagonal = sum((1 - c[i][i]) ** 2 for i in range(d))
    return diagonal + weight * sum(c[i][j] ** 2 for i in range(d) for j in range(d) if i != j)
