import pytest

from qscore.evaluate import SCORES
from qscore.evaluate.verdict import sentences


def interval(value, low, high):
    return {"auroc": {"value": value, "low": low, "high": high}}


def metrics(q=(0.7, 0.6, 0.8), difference=(0.1, 0.05, 0.15), rivals=0.6, n_wrong=100, converged=True, **special):
    others = {score.name: interval(rivals, rivals - 0.05, rivals + 0.05) for score in SCORES}
    scores = others | {"q_score": interval(*q)} | {name: interval(*value) for name, value in special.items()}
    probe = {"n_correct": 900, "n_wrong": n_wrong, "n_train": 500, "accuracy": 0.9, "converged": converged}
    return {
        "n": 900 + n_wrong,
        "probe": probe,
        "scores": scores,
        "q_minus": {name: interval(*difference) for name in scores if name != "q_score"},
    }


@pytest.mark.parametrize(
    ("q", "verdict"),
    [
        ((0.7, 0.6, 0.8), "0.700 (95 % interval 0.600 to 0.800): better than chance"),
        ((0.55, 0.45, 0.65), "not to be told from chance"),
        ((0.3, 0.2, 0.4), "worse than chance, its sign is wrong here"),
    ],
)
def test_against_chance(q, verdict):
    assert verdict in sentences(metrics(q=q))[1]


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        ((0.1, 0.05, 0.15), "Q does better than the feature norm: the difference in AUROC is +0.100"),
        ((-0.1, -0.15, -0.05), "Q does worse than the feature norm: the difference in AUROC is -0.100"),
        ((0.15, -0.001, 0.3), "Q cannot be told apart from the feature norm here"),
    ],
)
def test_against_the_norm(difference, verdict):
    assert verdict in sentences(metrics(difference=difference))[2]


def test_the_highest_rival_is_named_and_the_choice_confessed():
    (said,) = [s for s in sentences(metrics(hoyer=(0.75, 0.7, 0.8))) if "came out highest" in s]
    assert said.startswith("Of the 5 other label-free scores, Hoyer sparsity came out highest on these rows")


def test_few_of_either_outcome_and_an_unfinished_probe_are_confessed():
    assert sentences(metrics(n_wrong=7))[-1].startswith("Only 7 rows are wrong")
    assert "Only" not in sentences(metrics())[-1]
    few = metrics(n_wrong=100)
    few["probe"]["n_correct"] = 5
    assert sentences(few)[-1].startswith("Only 5 rows are correct")
    assert "stopped before its optimum" in sentences(metrics(converged=False))[1]
