import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ridge as reference

from qscore import QScoreError
from qscore.core import kept_features
from qscore.evaluate.compression import KEEPS, METHODS, STRENGTHS, _bootstrap, compression_curve, selection_orders
from qscore.evaluate.curve import Verdict


def planted(rng, n=900, r=60, classes=5, informative=range(30, 45)):
    """Each class lights three of the informative features; rates rise with the index, so ranks are indices."""
    labels = rng.integers(0, classes, n)
    H = rng.gamma(0.3, 0.5, size=(n, r))
    chosen = np.array(list(informative)).reshape(classes, -1)
    for i, k in enumerate(labels):
        H[i, chosen[k]] += rng.uniform(0.5, 1.5, chosen.shape[1])
    return H.astype(np.float32), labels, np.arange(r)


def curve_of(H, labels, rates, split=600, **options):
    options = {"keeps": [0.2, 0.8], "resamples": 200} | options
    return compression_curve(H[:split], labels[:split], H[split:], labels[split:], rates, **options)


def at(curve, method, keep):
    (point,) = [point for point in curve.points if (point.method, point.keep) == (method, keep)]
    return point


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=60), st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5))
def test_the_order_begins_with_what_every_share_keeps(rates, keeps):
    rates = np.array(rates)
    order = selection_orders(rates, rates.astype(float))["rank"]
    for keep in [*keeps, 0.45, 0.6, 0.95, 1.0]:
        kept = kept_features(rates, keep)
        assert sorted(order[: len(kept)].tolist()) == kept.tolist()


def test_orders_by_variance_and_by_rate(rng):
    rates, variances = rng.permutation(50), rng.random(50)
    orders = selection_orders(rates, variances)
    assert orders["rate"].tolist() == sorted(range(50), key=lambda j: -rates[j])
    assert orders["variance"].tolist() == sorted(range(50), key=lambda j: -variances[j])


def test_the_curve_equals_ridge_on_the_explicit_columns(rng):
    H, labels, rates = planted(rng)
    curve = curve_of(H, labels, rates, n_random=3, seed=4)
    train, test = H[:600].astype(float), H[600:].astype(float)
    penalty = curve.strength * train.var(axis=0).sum() * 600 / 60
    shuffles = np.random.default_rng([4, 1])
    orders = selection_orders(rates, train.var(axis=0))
    shuffled = [shuffles.permutation(60) for _ in range(3)]

    def accuracy(columns):
        scores = reference.scores(train[:, columns], labels[:600], 5, penalty, test[:, columns])
        return (scores.argmax(1) == labels[600:]).mean()

    for keep in (0.2, 0.45, 0.6, 0.8, 1.0):
        kept = kept_features(rates, keep)
        assert at(curve, "rank", keep).accuracy == pytest.approx(accuracy(kept))
        assert all(at(curve, method, keep).n_kept == len(kept) for method in METHODS)
        for method in ("variance", "rate"):
            assert at(curve, method, keep).accuracy == pytest.approx(accuracy(orders[method][: len(kept)]))
        random = [accuracy(order[: len(kept)]) for order in shuffled]
        assert at(curve, "random", keep).accuracy == pytest.approx(np.mean(random))
        assert at(curve, "random", keep).high == pytest.approx(np.quantile(random, 0.95))
        train_components, components = reference.principal_components(train, test, len(kept))
        scores = reference.scores(train_components, labels[:600], 5, penalty, components)
        assert at(curve, "pca", keep).accuracy == pytest.approx((scores.argmax(1) == labels[600:]).mean())


def test_the_strength_is_the_best_of_a_validation_on_a_fifth_of_each_class(rng):
    H, labels, rates = planted(rng, n=160, r=150, informative=range(30, 45))
    curve = curve_of(H, labels, rates, split=110, n_random=1, seed=7)
    codes, shuffled = labels[:110], np.random.default_rng([7, 0]).permutation(110)
    held = [i for k in range(5) for i in [j for j in shuffled if codes[j] == k][: round(0.2 * (codes == k).sum())]]
    fit = np.setdiff1d(np.arange(110), held)
    unit = ((H[fit] - H[fit].mean(axis=0, dtype=float)) ** 2).sum() / 150
    right = []
    for strength in STRENGTHS:
        scores = reference.scores(H[fit], codes[fit], 5, strength * unit, H[held])
        right.append((scores.argmax(1) == codes[held]).sum())
    assert curve.strength == max(s for s, value in zip(STRENGTHS, right, strict=True) if value == max(right))


def test_holds_where_the_band_has_all_that_matters(rng):
    curve = curve_of(*planted(rng, n=2600), split=1600)
    band, paper = curve.verdicts
    assert (band.keep, band.n_kept, paper.keep, paper.n_kept) == (0.45, 27, 0.6, 36)
    assert band.holds and paper.holds
    assert band.sentence.startswith("Compression holds at keep = 0.45: with 27 of 60 features, ranked without ")
    assert "of 1,000 test rows correctly" in band.sentence and "20 random subsets of that size" in band.sentence


def test_does_not_hold_where_the_band_has_nothing(rng):
    verdict, _ = curve_of(*planted(rng, informative=range(5, 20))).verdicts
    assert not verdict.holds and verdict.change < -0.2
    assert verdict.sentence.startswith(
        "Compression does not hold at keep = 0.45 (the interval reaches down to a loss of 1 point or more, and as "
    )


@pytest.mark.parametrize(
    ("change_low", "random_high", "holds"),
    [(-0.009, 0.79, True), (-0.01, 0.79, False), (-0.009, 0.80, False), (-0.02, 0.9, False)],
)
def test_the_rule(change_low, random_high, holds):
    verdict = Verdict(0.6, 6, 10, 100, 0.80, 0.80, 0.0, change_low, 0.01, 0.7, random_high, 20)
    assert verdict.holds is holds
    assert ("loss of 1 point" in verdict.sentence) is (change_low <= -0.01)
    assert ("as many random features" in verdict.sentence) is (random_high >= 0.80)


def test_multinomial_resamples_are_resampled_rows(rng):
    full = rng.random(400) < 0.8
    right = np.where(rng.random(400) < 0.1, ~full, full)
    _, change = _bootstrap(right, full, 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(change, reference.paired_bootstrap(right, full, 20_000, 1), atol=0.003)
    accuracy, change = _bootstrap(full, full, 500, np.random.default_rng(0))
    assert change.tolist() == [0, 0] and accuracy[0] < full.mean() < accuracy[1]


def test_records_are_tidy_and_complete(rng):
    curve = curve_of(*planted(rng), keeps=KEEPS, n_random=2)
    records = curve.records()
    assert {(record["method"], record["keep"]) for record in records} == {(m, k) for m in METHODS for k in KEEPS}
    assert len(records) == len(METHODS) * len(KEEPS)
    for record in records:
        assert record["low"] <= record["accuracy"] <= record["high"]
        assert record["change"] == pytest.approx(record["accuracy"] - curve.accuracy)
        if record["keep"] == 1.0:
            assert record["accuracy"] == curve.accuracy and record["change_low"] == record["change_high"] == 0


def test_the_same_seed_gives_the_same_curve_and_strings_the_same_as_integers(rng):
    H, labels, rates = planted(rng)
    names = np.array([f"class {k}" for k in labels])
    assert curve_of(H, labels, rates) == curve_of(H, names, rates) == curve_of(H.astype(float), labels * 7 - 3, rates)


def test_invalid_rows_and_unseen_classes_are_counted(rng):
    H, labels, rates = planted(rng)
    H[3, 1], H[601, 2], H[602, 0] = np.nan, np.inf, np.nan
    labels[700:705] = 99
    curve = curve_of(H, labels, rates)
    assert (curve.n_train, curve.n_test, curve.n_invalid, curve.n_unseen) == (599, 298, 3, 5)
    assert curve.accuracy <= 293 / 298
    assert curve.sentences()[-2:] == [
        "5 test rows are of classes no training row has, and count as wrong.",
        "3 rows with NaN or infinity were left out.",
    ]


def test_labels_that_say_nothing_leave_the_verdict_without_meaning(rng):
    H, _, rates = planted(rng)
    curve = curve_of(H, np.where(np.arange(900) % 10 == 0, 1, 0), rates)
    assert "the verdict means nothing" in curve.sentences()[2]


def test_fewer_rows_than_features_constant_features_and_two_features(rng):
    H, labels, rates = planted(rng)
    H[:, 10:20] = 1.0
    assert curve_of(H[:130], labels[:130], rates, split=40).n_train == 40
    pair = compression_curve(H[:600, 30:32], labels[:600], H[600:, 30:32], labels[600:], np.array([1, 2]), n_random=1)
    assert {point.n_kept for point in pair.points} == {1, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_labels": np.zeros(60, int)}, r"ridge needs at least two classes, got 1: \[0\]"),
        (
            {"train_labels": np.arange(60)},
            "60 training rows for 60 classes are too few to hold a fifth of any class out",
        ),
        ({"train": np.ones((60, 10))}, "all features are constant over the training rows"),
        ({"train": np.full((60, 10), np.nan)}, "the training rows: no row is valid"),
        ({"test": np.ones((20, 9))}, r"expected the same features, got 10, 9 and rates of shape \(10,\)"),
        ({"train_labels": np.zeros(59, int)}, r"train_labels: expected 60 integers or strings, one a row, got int64"),
        ({"test_labels": np.zeros(20)}, "test_labels: expected 20 integers or strings, one a row, got float64"),
        ({"test_labels": np.array(["a"] * 20)}, "those of the training rows are int64, those of the test rows <U1"),
        ({"keeps": [0.0]}, r"expected a share of the features in \(0, 1\], got 0.0"),
        ({"n_random": 0}, "expected n_random >= 1"),
        ({"train": np.ones((60, 10), int)}, "train: expected floating-point values"),
    ],
)
def test_bad_input_is_refused(rng, change, message):
    arguments = {
        "train": rng.random((60, 10)),
        "train_labels": np.arange(60) % 3,
        "test": rng.random((20, 10)),
        "test_labels": np.arange(20) % 3,
        "rates": rng.random(10),
    } | change
    with pytest.raises(QScoreError, match=message) as raised:
        compression_curve(**arguments)
    assert "\n" not in str(raised.value)
