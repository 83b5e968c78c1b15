import numpy as np
import pytest

from qscore.evaluate.calibration import calibrate
from qscore.evaluate.few_labels import few_labels
from qscore.evaluate.threshold import choose_threshold


@pytest.fixture
def drawn(rng):
    score = rng.random(4000)
    return score, rng.random(4000) < 0.5 + 0.5 * score


def test_some_rows_are_labelled_and_the_others_test_what_came_of_it(drawn):
    score, correct = drawn
    found = few_labels({"q_score": score, "l2_norm": score}, correct, labelled=1000, error_rate=0.2, seed=1)
    (row,) = found["scores"].values()
    order = np.random.default_rng([1, 3]).permutation(4000)
    k, rest = order[:1000], order[1000:]
    chosen = choose_threshold(score[k], correct[k], score[rest], 0.2, delta=0.1)
    accepted = score[rest] >= chosen.threshold
    assert row["threshold"] == chosen.threshold and row["n_accepted"] == accepted.sum()
    assert row["coverage"] == pytest.approx(accepted.mean())
    assert row["observed_error"] == pytest.approx((~correct[rest][accepted]).mean())
    predicted = calibrate(score[k], correct[k], seed=1).probability(score[rest])
    assert row["brier"] == pytest.approx(np.mean((predicted - ~correct[rest]) ** 2))
    assert row["brier_base"] == pytest.approx(np.mean(((~correct[k]).mean() - ~correct[rest]) ** 2))
    assert sum(b["n"] for b in row["bins"]) == row["n_rest"] == 3000
    assert row["ece"] == pytest.approx(
        sum(b["n"] * abs(b["predicted"] - b["observed"]) for b in row["bins"]) / 3000, abs=1e-12
    )


def test_half_of_the_rows_at_most_and_half_of_the_errors_by_default(drawn):
    score, correct = drawn
    found = few_labels({"q_score": score, "softmax": score}, correct, labelled=3000)
    assert found["labelled"] == 2000 and list(found["scores"]) == ["q_score", "softmax"]
    assert found["wanted"] == pytest.approx((~correct).mean() / 2)


def test_nothing_where_nothing_can_be_learned(drawn):
    score, correct = drawn
    assert few_labels({"q_score": score[:19]}, correct[:19], labelled=500) is None
    assert few_labels({"q_score": score}, np.ones(4000, bool), labelled=500) is None
