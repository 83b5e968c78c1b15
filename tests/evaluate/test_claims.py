import math
from statistics import fmean

import numpy as np
import pyarrow as pa
import pytest
from reference import claims as reference
from reference import paper

import qscore
from qscore import QScoreError
from qscore.evaluate.claims import N_RANDOM, claim_table
from qscore.evaluate.effects import STATISTICS
from qscore.evaluate.judgement import SCOPES, TITLES
from qscore.tables import with_record

OVERALL, WITHIN = SCOPES
EPSILON = 2.0


def tables(H, epsilon=EPSILON, features=None):
    """Return the columns of the score table of H that claims look at, and its feature table."""
    found = qscore.scan(H, epsilon=epsilon)
    D = qscore.discriminative_features(found.counts) if features is None else features
    size, _ = found.select(D)
    indptr = found.indptr.astype(np.int32)
    columns = {name: getattr(found, name).astype(np.float32) for name in ("mean", "std", "max")}
    columns |= {"active": pa.ListArray.from_arrays(indptr, found.active), "n_discriminative": size.astype(np.int32)}
    columns["deviation"] = pa.ListArray.from_arrays(indptr, found.deviation.astype(np.float32))
    members = np.isin(np.arange(H.shape[1]), D)
    return pa.table(columns | {"valid": found.valid}), pa.table({"count": found.counts, "discriminative": members})


def planted(rng, n=1200):
    """Correct rows light two of the three features of their class, high; wrong rows the same three each, low."""
    labels, correct = rng.integers(0, 9, n), rng.random(n) < 0.6
    H = rng.gamma(0.3, 0.05, size=(n, 60))
    for i, (k, right) in enumerate(zip(labels, correct, strict=True)):
        lit = 3 * k + rng.choice(3, 2, replace=False) if right else [57, 58, 59]
        H[i, lit] += rng.uniform(7, 8, 2) if right else rng.uniform(3, 3.2, 3)
    return H.astype(np.float32), correct, labels


def null(rng, n=800):
    return rng.gamma(0.3, size=(n, 60)).astype(np.float32), rng.random(n) < 0.7, rng.integers(0, 5, n)


def test_numbers_equal_the_definitions(rng):
    H, correct, labels = null(rng, 80)
    H[0] = 1.0  # constant: L_i is empty, Z is 0
    rows, features = tables(H)
    found = claim_table(rows, features, correct, labels, resamples=10, n_random=3)
    lists = [sorted(paper.highly_activating(row.tolist(), EPSILON)) for row in H.astype(float)]
    D = paper.discriminative_features(paper.activation_rates(H.astype(float).tolist(), EPSILON))
    order = sorted(range(60), key=lambda j: (features["count"][j].as_py(), j))
    frequent = order[60 - len(D) :]
    spread = [paper.mean_and_std(row.tolist()) for row in H.astype(float)]
    quantities = {
        "n_active": [float(len(some)) for some in lists],
        "z": [float((row.max() - mu) / sigma) if sigma else 0.0 for row, (mu, sigma) in zip(H, spread, strict=True)],
        "deviation": [
            fmean(float(row[j] - mu) / sigma for j in some) if some else None
            for row, some, (mu, sigma) in zip(H.astype(float), lists, spread, strict=True)
        ],
    }
    for name, chosen in (("discriminative", D), ("frequent", frequent)):
        inside = [len(set(some) & set(chosen)) for some in lists]
        quantities[f"n_{name}"] = [float(size) for size in inside]
        quantities[f"share_{name}"] = [k / len(some) if some else None for k, some in zip(inside, lists, strict=True)]
        for scope, of in ((OVERALL, [0] * 80), (WITHIN, labels.tolist())):
            counting = [
                c for c in set(of) if len({ok for ok, other in zip(correct, of, strict=True) if other == c}) > 1
            ]
            expected = reference.excess(lists, chosen, correct.tolist(), of, counting)
            assert found.get(f"purity_{name}", "excess", scope).value == pytest.approx(expected)
    for name, values in quantities.items():
        for scope, of in ((OVERALL, None), (WITHIN, labels.tolist())):
            expected, n_classes = reference.compare(values, correct.tolist(), of)
            measures = [m for m in found.measures if (m.quantity, m.scope) == (name, scope)]
            np.testing.assert_allclose([m.value for m in measures], expected, rtol=2e-5, atol=1e-9)
            assert {m.n_classes for m in measures} == {n_classes}
    share = found.get("purity_discriminative", "purity").value
    assert share == pytest.approx(correct.mean() + found.get("purity_discriminative", "excess").value)
    assert (found.n_empty_correct, found.n_empty_wrong) == (int(correct[0]), int(not correct[0]))


def test_random_sets_are_averaged_and_their_95th_percentile_is_told(rng):
    H, correct, _ = null(rng, 150)
    rows, features = tables(H)
    found = claim_table(rows, features, correct, resamples=5, n_random=4, seed=7)
    lists, counts = rows["active"].to_pylist(), features["count"].to_numpy()
    generator = np.random.default_rng([7, 1])
    sets = [generator.choice(np.flatnonzero(counts > 0), found.n_discriminative, replace=False) for _ in range(4)]
    excesses = [reference.excess(lists, chosen, correct.tolist(), [0] * 150, [0]) for chosen in sets]
    assert len(set(excesses)) == 4
    assert found.get("purity_random", "excess").value == pytest.approx(np.mean(excesses))
    assert found.get("purity_random", "excess_p95").value == pytest.approx(np.quantile(excesses, 0.95))
    deltas = []
    for chosen in sets:
        sizes = [float(len(set(some) & set(chosen))) for some in lists]
        deltas.append(reference.compare(sizes, correct.tolist())[0][3])
    assert found.get("n_random", "cliffs_delta").value == pytest.approx(np.mean(deltas))
    gap = found.get("n_discriminative", "cliffs_delta").value - np.mean(deltas)
    assert found.get("n_discriminative - n_random", "cliffs_delta").value == pytest.approx(gap)


def test_what_was_planted_is_found(rng):
    H, correct, labels = planted(rng)
    found = claim_table(*tables(H), correct, labels, resamples=200)
    assert [verdict.verdict for verdict in found.verdicts] == ["holds", "holds"]
    assert (found.n_correct, found.n_wrong) == (correct.sum(), (~correct).sum())
    assert (found.n_classes, found.n_all_classes, found.n_random) == (9, 9, N_RANDOM)
    backwards = claim_table(*tables(H), ~correct, labels, resamples=200)
    assert [verdict.verdict for verdict in backwards.verdicts] == ["does not hold here"] * 2


def test_nothing_is_found_where_there_is_nothing():
    held = [0, 0]
    for seed in range(40):
        H, correct, labels = null(np.random.default_rng(seed), 300)
        found = claim_table(*tables(H), correct, labels, resamples=100, n_random=20, seed=seed)
        held = [count + (v.verdict != "does not hold here") for count, v in zip(held, found.verdicts, strict=True)]
    assert max(held) <= 4  # 2.5 % of the intervals lie above 0 by chance


def test_easy_classes_alone_do_not_make_a_claim_hold(rng):
    """Rows of easy classes light high features of D; within a class, correct and wrong rows are alike."""
    labels = rng.integers(0, 6, 2400)
    correct = rng.random(2400) < np.where(labels < 3, 0.9, 0.4)
    H = rng.gamma(0.3, 0.05, size=(2400, 60))
    for i, k in enumerate(labels):
        lit = [4 * k, 4 * k + 1] if k < 3 else 40 + rng.choice(20, 6, replace=False)
        H[i, lit] += rng.uniform(7, 8, 2) if k < 3 else rng.uniform(3, 3.2, 6)
    rows, features = tables(H.astype(np.float32), features=np.array([0, 1, 4, 5, 8, 9]))
    found = claim_table(rows, features, correct, labels, resamples=200)
    assert [verdict.verdict for verdict in found.verdicts] == ["holds weakly", "holds weakly"]
    for name, statistic in (("z", "cliffs_delta"), ("purity_discriminative", "excess")):
        assert found.get(name, statistic).low > 0.1
        within = found.get(name, statistic, WITHIN)
        assert within.low < 0 < within.high
    blind = claim_table(rows, features, correct, resamples=200)
    assert [verdict.verdict for verdict in blind.verdicts] == ["holds weakly", "holds weakly"]


def test_contrasts_are_paired_differences_and_random_sets_are_averaged(rng):
    H, correct, _ = null(rng, 200)
    rows, features = tables(H)
    everything = change(features, "discriminative", features["count"].to_numpy() > 0)
    sizes = np.diff(rows["active"].combine_chunks().offsets.to_numpy())
    rows = change(rows, "n_discriminative", sizes.astype(np.int32))
    found = claim_table(rows, everything, correct, resamples=20)
    for measure in found.measures:  # every set is all features, so that nothing differs
        if " - " in measure.quantity:
            assert (measure.value, measure.low, measure.high) == pytest.approx((0, 0, 0), abs=1e-12)
    for statistic in STATISTICS:
        size, random = found.get("n_active", statistic), found.get("n_random", statistic)
        assert (random.value, random.low, random.high) == pytest.approx((size.value, size.low, size.high))


def test_random_sets_differ_and_are_never_of_silent_features(rng):
    """Only D and one other feature ever fire, so that a random set of |D| leaves out one of all of them."""
    H, correct, _ = planted(rng, 300)
    H[:, 58:] = 0
    rows, features = tables(H, features=np.arange(27))
    found = claim_table(rows, features, correct, resamples=5)
    assert (features["count"].to_numpy() > 0).sum() == 28
    shares = [found.get(f"share_{name}", "mean_wrong").value for name in ("discriminative", "random")]
    assert shares[0] == 0.0 and shares[1] in np.arange(1, 21) / 20  # of the 20 sets, those with the other feature
    assert found.get("share_random", "mean_wrong").high == shares[1]


def test_order_of_rows_and_names_of_classes_change_nothing(rng):
    H, correct, labels = null(rng, 200)
    rows, features = tables(H)
    order = rng.permutation(200)
    one = claim_table(rows, features, correct, labels, resamples=5)
    names = np.array([f"class {k}" for k in labels])
    other = claim_table(rows.take(order), features, correct[order], names[order], resamples=5)
    assert [m.value for m in one.measures] == pytest.approx([m.value for m in other.measures], abs=1e-12)
    again = claim_table(pa.concat_tables([rows[:70], rows[70:]]), features, correct, names, resamples=5)
    assert again == one


def test_rows_that_are_not_valid_are_left_out(rng):
    H, correct, labels = null(rng, 150)
    H[3, 5] = np.nan
    H[4] = np.where(np.arange(60) == 7, 1e38, -3e38)  # its standard deviation is beyond float32
    H[5, 7] = 3.0
    with np.errstate(over="ignore"):
        rows, features = tables(np.asarray(H, dtype=np.float64) * np.where(np.arange(150) == 4, 10, 1)[:, None])
    found = claim_table(rows, features, correct, labels, resamples=5)
    kept = np.delete(np.arange(150), [3, 4])
    without = claim_table(rows.take(kept), features, correct[kept], labels[kept], resamples=5)
    assert found.n_invalid == 2 and found.measures == without.measures
    assert found.n_correct + found.n_wrong == 148


def test_signed_tables_have_no_deviation_in_sigmas(rng):
    H, correct, _ = null(rng, 100)
    rows, features = tables(H)
    signed = rows.replace_schema_metadata(with_record(rows.schema, {"kind": "scores", "signed": True}).metadata)
    found = claim_table(signed, features, correct, resamples=5)
    assert found.signed and math.isnan(found.get("deviation", "mean_correct").value)
    plain = claim_table(rows, features, correct, resamples=5)
    assert not math.isnan(plain.get("deviation", "mean_correct").value)
    assert found.get("z", "cliffs_delta") == plain.get("z", "cliffs_delta")


def test_without_d_only_c1_is_tested(rng):
    H, correct, labels = null(rng, 100)
    rows, features = tables(H, features=np.array([], dtype=np.int64))
    found = claim_table(rows, features, correct, labels, resamples=5)
    assert found.n_discriminative == 0 and found.verdicts[1].verdict == "cannot be tested"
    assert found.verdicts[0].conditions and found.get("n_discriminative", "mean_correct").value == 0.0


def test_within_class_nothing_counts_where_classes_are_all_correct_or_all_wrong(rng):
    H, correct, _ = null(rng, 100)
    found = claim_table(*tables(H), correct, correct.astype(str), resamples=5)
    assert (found.n_classes, found.n_all_classes) == (0, 2)
    within = [m for m in found.measures if m.scope == WITHIN]
    assert within and all(math.isnan(m.value) and math.isnan(m.low) and m.n_correct == 0 for m in within)
    assert "not tested within class" in found.sentences()[1]


def test_records_have_one_row_a_number_and_every_quantity_a_title(rng):
    H, correct, labels = null(rng, 100)
    found = claim_table(*tables(H), correct, labels, resamples=5)
    keys = [(m["quantity"], m["scope"], m["statistic"]) for m in found.records()]
    assert len(keys) == len(set(keys))
    assert {part for quantity, _, _ in keys for part in quantity.split(" - ")} == set(TITLES)
    for record in found.records():
        assert record["n"] == record["n_correct"] + record["n_wrong"] <= 100
        if record["statistic"] != "excess_p95":
            assert record["low"] <= record["high"]


def change(rows, name, values):
    return rows.set_column(rows.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"correct": np.ones(30, bool)}, "expected correct and wrong rows to compare, got 30 valid rows, all correct"),
        ({"correct": np.zeros(30, bool)}, "got 30 valid rows, all wrong"),
        ({"correct": np.ones(29, bool)}, r"correct: expected one value for each of 30 rows, got shape \(29,\)"),
        ({"correct": np.ones(30)}, "correct: expected booleans, got float64"),
        ({"labels": np.ones((30, 1))}, r"labels: expected one value for each of 30 rows, got shape \(30, 1\)"),
        ({"features": 20}, "the feature table has 20 features; it belongs to another score table"),
        ({"resamples": 0}, "expected n_random >= 1, resamples >= 1 and seed >= 0, got 20, 0 and 0"),
        ({"n_random": 0}, "expected n_random >= 1"),
        ({"seed": -1}, "seed >= 0, got 20, 2000 and -1"),
    ],
)
def test_bad_input_is_refused(rng, arguments, message):
    H, _, _ = null(rng, 30)
    rows, features = tables(H)
    if "features" in arguments:
        arguments = {**arguments, "features": features[: arguments["features"]]}
    with pytest.raises(QScoreError, match=message):
        claim_table(**{"rows": rows, "features": features, "correct": np.arange(30) % 2 > 0} | arguments)


def test_a_feature_table_of_another_d_is_refused(rng):
    H, correct, _ = null(rng, 50)
    rows, features = tables(H)
    other = change(features, "discriminative", np.arange(60) < 5)
    with pytest.raises(QScoreError, match="D is not the one these rows were scored with"):
        claim_table(rows, other, correct)
