from statistics import NormalDist

import numpy as np
import pytest
from reference import ranking as reference
from sklearn.model_selection import StratifiedKFold

from qscore import QScoreError
from qscore.evaluate import failure_statistics
from qscore.evaluate.gain import gain_on_top, gains


def normal_quantiles(score):
    """The normal quantile of each value's mid-rank, by counting."""
    n = len(score)
    middle = [sum(other < s for other in score) + sum(other == s for other in score) / 2 for s in score]
    return [NormalDist().inv_cdf(m / n) for m in middle]


def out_of_fold(inputs, correct, folds, seed):
    """Logistic regression with half the squared norm of its coefficients as penalty, by Newton steps, fold by fold."""
    X = np.column_stack([normal_quantiles(score.tolist()) for score in inputs])
    predicted = np.empty(len(X))
    for fit, held in StratifiedKFold(folds, shuffle=True, random_state=seed).split(X, correct):
        Z = np.column_stack([np.ones(len(fit)), X[fit]])
        penalty = np.diag([0.0] + [1.0] * X.shape[1])
        w = np.zeros(Z.shape[1])
        for _ in range(50):
            p = 1 / (1 + np.exp(-Z @ w))
            hessian = Z.T @ (Z * (p * (1 - p))[:, None]) + penalty
            w -= np.linalg.solve(hessian, Z.T @ (p - correct[fit]) + penalty @ w)
        predicted[held] = X[held] @ w[1:] / np.sqrt(np.sum(w[1:] ** 2))
    return predicted.round(12)


def related(rng, n=200):
    base = np.round(rng.normal(size=n), 1)
    score = np.exp(base + rng.normal(size=n))
    return score, base, base + np.log(score) + 2 * rng.normal(size=n) > -0.5


def test_the_gain_is_that_of_held_out_predictions(rng):
    score, base, correct = related(rng)
    found = gain_on_top(score, base, correct, resamples=150, seed=6)
    alone = out_of_fold([base], correct, 5, 6)
    both = out_of_fold([score, base], correct, 5, 6)
    assert found.base.value == pytest.approx(reference.auroc(alone, correct), abs=1e-12)
    assert found.base.value == pytest.approx(reference.auroc(base, correct), abs=1e-12)
    assert found.both.value == pytest.approx(reference.auroc(both, correct), abs=1e-4)
    assert found.gain.value == pytest.approx(found.both.value - found.base.value, abs=1e-12)
    generator = np.random.default_rng(6)
    drawn = [generator.integers(0, len(correct), len(correct)) for _ in range(150)]
    differences = [
        failure_statistics(both[i], correct[i])["auroc"] - failure_statistics(alone[i], correct[i])["auroc"]
        for i in drawn
    ]
    expected = tuple(np.quantile(differences, [0.025, 0.975]))
    assert (found.gain.low, found.gain.high) == pytest.approx(expected, abs=1e-3)


def test_a_perfect_score_gains_what_a_constant_base_lacks():
    correct = np.arange(100) % 4 > 0
    found = gain_on_top(correct + 0.0, np.zeros(100), correct, resamples=20)
    assert (found.base.value, found.both.value, found.gain.value) == (0.5, 1.0, 0.5)
    assert (found.gain.low, found.gain.high) == (0.5, 0.5)


@pytest.mark.parametrize("again", ["the base", "twice the base", "its exponential", "a constant"])
def test_what_says_nothing_new_gains_nothing(rng, again):
    base = np.round(rng.normal(size=300), 1)
    correct = base + rng.normal(size=300) > 0
    score = {"the base": base, "twice the base": 2 * base, "its exponential": np.exp(base), "a constant": np.ones(300)}
    found = gain_on_top(score[again], base, correct, resamples=50)
    assert found.both == found.base
    assert (found.gain.value, found.gain.low, found.gain.high) == (0.0, 0.0, 0.0)


def test_only_ranks_matter(rng):
    score, base, correct = related(rng)
    expected = gain_on_top(score, base, correct, resamples=30)
    assert gain_on_top(np.log(score), np.sinh(base), correct, resamples=30) == expected


def test_a_base_that_ranks_backwards_is_turned_round(rng):
    score, base, correct = related(rng)
    found, turned = (gain_on_top(score, sign * base, correct, resamples=30) for sign in (1, -1))
    assert turned.base.value == pytest.approx(found.base.value, abs=1e-12) and found.base.value > 0.6
    assert turned.gain.value == pytest.approx(found.gain.value, abs=1e-12)


def test_on_an_informative_base_noise_gains_nothing_and_loses_a_little():
    """Its coefficient is noise, and held-out rows do not reward it: no interval above 0, and a mean below."""
    values, above = [], 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        base = rng.normal(size=300)
        correct = base + rng.logistic(size=300) > -0.5
        gain = gain_on_top(rng.normal(size=300), base, correct, resamples=200, seed=seed).gain
        values.append(gain.value)
        above += gain.low > 0
    assert above <= 3  # of 60 intervals, whose lower bounds may lie above 0 in 2.5 %
    assert -0.01 < np.mean(values) < 0


def test_on_a_base_of_noise_noise_seldom_seems_to_gain():
    above = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        noise, base, correct = rng.normal(size=300), rng.normal(size=300), rng.random(300) < 0.6
        above += gain_on_top(noise, base, correct, resamples=200, seed=seed).gain.low > 0
    assert above <= 5


def test_what_is_new_gains():
    rng = np.random.default_rng(3)
    base, score = rng.normal(size=(2, 3000))
    correct = base + score + rng.logistic(size=3000) > 0
    found = gain_on_top(score, base, correct, resamples=100)
    assert found.gain.low > 0.05 and found.base.value == pytest.approx(found.both.value - found.gain.value)


def test_both_ways_agree_with_single_gains(rng):
    score, base, correct = related(rng)
    draws = np.round(rng.normal(size=(200, 3)), 1)
    values = {"q_score": score, "norm": base, "random": draws}
    found = gains(values, correct, resamples=40, seed=2)
    assert found.reference == "q_score" and list(found.on_top_of) == list(found.on_top) == ["norm", "random"]
    assert found.on_top_of["norm"] == gain_on_top(score, base, correct, resamples=40, seed=2)
    reverse = gain_on_top(base, score, correct, resamples=40, seed=2)
    for name in ("base", "both", "gain"):
        ours, theirs = getattr(found.on_top["norm"], name), getattr(reverse, name)
        assert (ours.value, ours.low, ours.high) == pytest.approx((theirs.value, theirs.low, theirs.high), abs=1e-3)
    single = [gain_on_top(score, column, correct, resamples=40, seed=2) for column in draws.T]
    for name in ("base", "both", "gain"):
        expected = np.mean([getattr(gain, name).value for gain in single])
        assert getattr(found.on_top_of["random"], name).value == pytest.approx(expected)


def test_only_the_scores_of_interest_are_compared(rng):
    score, base, correct = related(rng)
    found = gains({"q": score, "a": base, "b": -base}, correct, reference="q", names=["b"], resamples=5)
    assert list(found.on_top_of) == ["b"]


def test_gains_do_not_depend_on_threads(rng):
    score, base, correct = related(rng)
    one, many = (gain_on_top(score, base, correct, resamples=30, threads=threads) for threads in (1, 4))
    assert one == many


def test_few_rows_of_an_outcome_make_few_folds(rng):
    correct = np.arange(60) > 1
    found = gain_on_top(rng.normal(size=60), rng.normal(size=60), correct, resamples=20)
    assert 0 <= found.both.value <= 1


@pytest.mark.parametrize(("n_correct", "n_wrong"), [(10, 0), (0, 10), (9, 1)])
def test_one_outcome_teaches_nothing(rng, n_correct, n_wrong):
    correct = np.arange(10) < n_correct
    with pytest.raises(QScoreError, match=f"at least 2 of each, got {n_correct} correct and {n_wrong} wrong"):
        gain_on_top(rng.normal(size=10), rng.normal(size=10), correct)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "q_score"}, "gains: expected names among a, b, got 'q_score'"),
        ({"reference": "a", "names": ["c"]}, "gains: expected names among a, b, got 'c'"),
        ({"reference": "a", "folds": 1}, "folds: expected at least 2, got 1"),
        ({"reference": "a", "resamples": 0}, "resamples: expected at least 1, got 0"),
    ],
)
def test_gains_that_cannot_be_are_refused(rng, options, message):
    values = {"a": rng.normal(size=10), "b": rng.normal(size=10)}
    with pytest.raises(QScoreError, match=message):
        gains(values, np.arange(10) < 5, **options)


def test_scores_that_are_not_finite_are_refused():
    with pytest.raises(QScoreError, match="base: 1 of 4 values are not finite"):
        gain_on_top(np.arange(4.0), np.array([1, np.nan, 2, 3]), np.array([True, True, False, False]))
