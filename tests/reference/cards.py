"""Feature cards and average representations, row by row."""

from collections import Counter


def q_shares(active, deviation, discriminative):
    """What each feature gives to the sum of Q, from Q's own formula."""
    given = dict.fromkeys(discriminative, 0.0)
    for features, values in zip(active, deviation, strict=True):
        inside = [(j, v) for j, v in zip(features, values, strict=True) if j in given]
        for j, value in inside:
            given[j] += value / len(inside)
    total = sum(given.values())
    return {j: value / total for j, value in given.items()}


def card(feature, ids, active, deviation, labels, correct):
    rows = [i for i, features in enumerate(active) if feature in features]
    values = {i: deviation[i][active[i].index(feature)] for i in rows}
    top = sorted(rows, key=lambda i: (-values[i], i))[:8]
    labelled = [labels[i] for i in rows if labels[i] is not None]
    every = [label for label in labels if label is not None]
    classes = sorted(Counter(labelled).items(), key=lambda pair: (-pair[1], str(pair[0])))[:3]
    known = [correct[i] for i in rows if correct[i] is not None]
    share = [count / len(labelled) for _, count in classes]
    base = every.count(classes[0][0]) / len(every) if classes else None
    return {
        "n_active": len(rows),
        "mean_deviation": sum(values.values()) / len(rows) if rows else None,
        "top_ids": [ids[i] for i in top],
        "top_deviations": [values[i] for i in top],
        "classes": [str(name) for name, _ in classes],
        "class_shares": share,
        "base_rate": base,
        "lift": share[0] / base if classes else None,
        "correct_share": sum(known) / len(known) if known else None,
    }


def means(H, groups, outcomes, features):
    """Mean of features over rows of a group and an outcome: (outcome, group) -> (rows, means)."""
    found = {}
    for key in {(o, g) for o, g in zip(outcomes, groups, strict=True) if o is not None and g is not None}:
        rows = [i for i in range(len(H)) if (outcomes[i], groups[i]) == key]
        found[key] = (len(rows), [sum(float(H[i][j]) for i in rows) / len(rows) for j in features])
    return found
