import numpy as np
import pytest
from scipy.stats import spearmanr

from qscore.explain.attributes import BACKGROUND, OBJECT, Carried
from qscore.explain.claims import gap_measures, improvement, localisation_measures, scatter, where_features_look
from qscore.explain.localisation import CONTROLS, METRICS, SETS

KINDS = ("core", "spurious")


def samples(rng, n=80, missing=0.2):
    found = {f"{k}_{m}_{s}": rng.random(n) for k in KINDS for m in METRICS for s in (*SETS, *CONTROLS)}
    for name in SETS:
        gone = rng.random(n) < missing
        for column in found:
            if column.endswith(f"_{name}"):
                found[column][gone] = np.nan
    return found


def by_name(measures):
    found = {(of.quantity, of.statistic): of for of in measures}
    assert len(found) == len(measures)
    return found


def naive_mean(rows):
    known = [value for value in rows if not np.isnan(value)]
    return sum(known) / len(known), len(known), len(rows) - len(known)


def test_paired_differences_by_naive_loops(rng):
    table, q = samples(rng), rng.random(80)
    found = by_name(localisation_measures(table, q, np.full(80, np.nan), KINDS, resamples=50))
    iou = {name: {k: table[f"{k}_iou_{name}"] for k in KINDS} for name in (*SETS, *CONTROLS)}
    for kind in KINDS:
        for other in ("outside", "random", "frequent", "gaussian", "random_map"):
            rows = [a - b for a, b in zip(iou["discriminative"][kind], iou[other][kind], strict=True)]
            of = found[f"{kind}_discriminative - {kind}_{other}", "mean"]
            assert (of.value, of.n, of.excluded) == (pytest.approx(naive_mean(rows)[0]), *naive_mean(rows)[1:])
            assert of.low < of.value < of.high
            known = np.array([row for row in rows if not np.isnan(row)])
            assert of.effect == pytest.approx(known.mean() / known.std(ddof=1))
    lifts = [iou["discriminative"][k] - iou["random_map"][k] for k in KINDS]
    of = found["core_lift_discriminative - spurious_lift_discriminative", "mean"]
    assert of.value == pytest.approx(np.nanmean(lifts[0] - lifts[1]))
    of = found["core_outside - core_random_map", "mean"]
    assert of.value == pytest.approx(np.nanmean(iou["outside"]["core"] - iou["random_map"]["core"]))


def test_correlation_with_q_and_correct_against_wrong(rng):
    table, q = samples(rng), rng.random(80)
    correct = np.where(rng.random(80) < 0.3, np.nan, (rng.random(80) < 0.5).astype(float))
    found = by_name(localisation_measures(table, q, correct, KINDS, resamples=50))
    core = table["core_iou_discriminative"]
    known = ~np.isnan(core)
    of = found["q_score ~ core_discriminative", "spearman"]
    assert of.value == pytest.approx(spearmanr(q[known], core[known]).statistic) and of.n == known.sum()
    of = found["core_discriminative", "correct - wrong"]
    assert of.value == pytest.approx(np.nanmean(core[correct == 1]) - np.nanmean(core[correct == 0]))
    assert of.n == (known & ~np.isnan(correct)).sum() and of.low < of.value < of.high


def test_without_outcomes_nothing_is_said_of_them(rng):
    found = by_name(localisation_measures(samples(rng), rng.random(80), np.full(80, np.nan), KINDS, resamples=5))
    of = found["core_discriminative", "correct - wrong"]
    assert np.isnan(of.value) and np.isnan(of.low) and of.n == 0


def test_changes_count_images_that_have_both(rng):
    before, after = samples(rng), samples(rng)
    q = rng.random(80), rng.random(80)
    correct = (rng.random(80) < 0.5).astype(float), (rng.random(80) < 0.5).astype(float)
    found = by_name(improvement(before, after, q, correct, KINDS, resamples=50))
    a, b = before["core_iou_discriminative"], after["core_iou_discriminative"]
    both = ~np.isnan(a) & ~np.isnan(b)
    of = found["core_discriminative", "change"]
    assert of.value == pytest.approx((b - a)[both].mean()) and of.n == both.sum()
    of = found["q_score ~ core_discriminative", "change of spearman"]
    assert of.value == pytest.approx(
        spearmanr(q[1][both], b[both]).statistic - spearmanr(q[0][both], a[both]).statistic
    )
    of = found["core_discriminative", "change of correct - wrong"]
    gaps = [
        values[both & (right == 1)].mean() - values[both & (right == 0)].mean()
        for values, right in zip((a, b), correct, strict=True)
    ]
    assert of.value == pytest.approx(gaps[1] - gaps[0])
    blind = [t["core_iou_random_map"] - t["spurious_iou_random_map"] for t in (before, after)]
    lift = [
        (t["core_iou_discriminative"] - t["spurious_iou_discriminative"]) - r
        for t, r in zip((before, after), blind, strict=True)
    ]
    of = found["core_lift_discriminative - spurious_lift_discriminative", "change"]
    assert of.value == pytest.approx(np.nanmean(lift[1] - lift[0]))


def test_nothing_changed_is_no_change(rng):
    table, q, correct = samples(rng), rng.random(80), (rng.random(80) < 0.5).astype(float)
    found = improvement(table, table, (q, q), (correct, correct), KINDS, resamples=20)
    assert all((of.value, of.low, of.high) == (0, 0, 0) for of in found)


def attributes(rng, r=60):
    information = {name: rng.random(r) for name in (*OBJECT, *BACKGROUND)}
    gap, chance = rng.random(r), 0.1 * rng.random(r)
    for values in (*information.values(), gap, chance):
        values[:5] = np.nan
    return Carried(information, gap, chance, ["shape"] * r)


def test_gaps_of_sets_of_features(rng):
    carried = attributes(rng)
    sets = {name: rng.random(60) < 0.4 for name in ("discriminative", "frequent", "random 0", "random 1", "random 2")}
    found = by_name(gap_measures(carried, sets, resamples=50))
    excess = {j: carried.gap[j] - carried.chance[j] for j in range(5, 60)}

    def mean(*names):
        rows = [excess[j] for name in names for j in range(5, 60) if sets[name][j]]
        return sum(rows) / len(rows)

    random = mean("random 0", "random 1", "random 2")
    assert found["gap_discriminative", "mean"].value == pytest.approx(mean("discriminative"))
    assert found["gap_discriminative", "mean"].n == sets["discriminative"][5:].sum()
    assert found["gap_discriminative", "mean"].excluded == sets["discriminative"][:5].sum()
    assert found["gap_random", "mean"].value == pytest.approx(random)
    of = found["gap_discriminative - gap_random", "mean"]
    assert of.value == pytest.approx(mean("discriminative") - random) and of.low < of.value < of.high
    of = found["gap_discriminative - gap_frequent", "mean"]
    assert of.value == pytest.approx(mean("discriminative") - mean("frequent"))
    expected = np.quantile([mean(f"random {k}") for k in range(3)], 0.95)
    assert found["gap_random", "p95"].value == pytest.approx(expected)


def test_no_feature_has_a_gap(rng):
    nothing = Carried({}, np.full(6, np.nan), np.full(6, np.nan), [None] * 6)
    sets = {name: np.ones(6, bool) for name in ("discriminative", "frequent", "random 0")}
    assert all(np.isnan(of.value) and np.isnan(of.low) for of in gap_measures(nothing, sets, resamples=5))


def test_what_features_carry_against_where_they_look(rng):
    carried = attributes(rng)
    n_images = rng.integers(5, 30, 60)
    looks = rng.random(60)
    looks[7] = np.nan
    found = scatter(carried, looks, n_images, resamples=50)
    known = [j for j in range(5, 60) if n_images[j] >= 10 and j != 7]
    carries = [
        max(carried.information[name][j] for name in OBJECT) - max(carried.information[name][j] for name in BACKGROUND)
        for j in known
    ]
    of_class = [carried.information["shape"][j] - carried.information["background"][j] for j in known]
    assert found["points"] == {
        "feature": known,
        "looks": [looks[j] for j in known],
        "carries": pytest.approx(carries),
        "carries_class": pytest.approx(of_class),
    }
    assert found["carries"].value == pytest.approx(spearmanr(carries, looks[known]).statistic)
    assert found["carries_class"].value == pytest.approx(spearmanr(of_class, looks[known]).statistic)
    assert (found["carries"].n, found["carries"].excluded) == (len(known), 60 - len(known))


def test_where_features_look():
    features = {"core_iou": np.array([0.5, np.nan]), "spurious_iou": np.array([0.25, 0.5])}
    np.testing.assert_array_equal(where_features_look(features, KINDS), [0.25, np.nan])
