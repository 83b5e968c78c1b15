"""VICReg (arXiv 2105.04906), written with loops from its equations."""


def variance(z, gamma=1.0, epsilon=1e-4):
    """Equations 1 and 2: the hinge on the regularised standard deviation, averaged over the columns."""
    total = 0
    for column in z.T:
        mean = sum(column) / len(column)
        deviation = (sum((x - mean) ** 2 for x in column) / (len(column) - 1) + epsilon) ** 0.5
        total = total + (gamma - deviation if deviation < gamma else 0 * deviation)
    return total / z.shape[1]


def covariance(z):
    """Equations 3 and 4: the squared covariances of different columns, over the number of columns."""
    n, d = z.shape
    means = [sum(column) / n for column in z.T]
    total = 0
    for i in range(d):
        for j in range(d):
            if i != j:
                total = total + (sum((row[i] - means[i]) * (row[j] - means[j]) for row in z) / (n - 1)) ** 2
    return total / d


def invariance(first, second):
    """Equation 5, and over the number of columns, as in the authors' code."""
    n, d = first.shape
    return sum((first[i, j] - second[i, j]) ** 2 for i in range(n) for j in range(d)) / (n * d)


def loss(module, views, config):
    """Equation 6, where the authors' code averages the variance terms of both views instead of adding them."""
    first, second = (module.head(module.backbone(view)) for view in views)
    return (
        config.invariance * invariance(first, second)
        + config.variance * (variance(first) + variance(second)) / 2
        + config.covariance * (covariance(first) + covariance(second))
    )
