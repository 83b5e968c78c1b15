"""Effect sizes and purities from their definitions: every pair of rows, every class, every feature by itself."""

import math
from statistics import fmean, variance


def compare(values, correct, classes=None):
    """Means, difference, Cliff's delta and Hedges' g of correct against wrong rows, within classes where there are any.

    `values` may hold None: a row without the quantity.
    """
    classes = [0] * len(values) if classes is None else classes
    rows = [row for row in zip(values, correct, classes, strict=True) if row[0] is not None]
    found, size_of, squares, df = {}, {}, 0.0, 0
    for name in sorted({c for _, _, c in rows}):
        right = [v for v, ok, c in rows if ok and c == name]
        wrong = [v for v, ok, c in rows if not ok and c == name]
        if not right or not wrong:
            continue
        won = sum((a > b) - (a < b) for a in right for b in wrong)
        found[name] = (fmean(right), fmean(wrong), fmean(right) - fmean(wrong), won / (len(right) * len(wrong)))
        size_of[name] = len(right) + len(wrong)
        for group in (right, wrong):
            squares += variance(group) * (len(group) - 1) if len(group) > 1 else 0.0
        df += size_of[name] - 2
    if not found:
        return [math.nan] * 5, 0
    total = sum(size_of.values())
    means = [sum(size_of[name] * found[name][k] for name in found) / total for k in range(4)]
    if squares > 0 and df > 0:
        g = means[2] / math.sqrt(squares / df) * (1 - 3 / (4 * df - 1))
    else:
        g = 0.0 if squares == 0 and means[2] == 0 else math.nan
    return [*means, g], len(found)


def excess(lists, features, correct, classes, counting):
    """The mean over features of the mean over rows they are in of "correct minus accuracy of the row's class".

    Only rows of the classes in `counting` enter.
    """
    accuracy = {c: fmean(ok for ok, other in zip(correct, classes, strict=True) if other == c) for c in set(classes)}
    per_feature = []
    for j in features:
        beyond = [
            ok - accuracy[c] for row, ok, c in zip(lists, correct, classes, strict=True) if j in row and c in counting
        ]
        if beyond:
            per_feature.append(fmean(beyond))
    return fmean(per_feature) if per_feature else math.nan
