from types import SimpleNamespace

import pytest
from scipy.stats import beta

from qscore.evaluate import SCORES
from qscore.evaluate.verdict import sentences, undefined_because


def interval(value, low, high):
    return {"auroc": {"value": value, "low": low, "high": high}}


def metrics(q=(0.7, 0.6, 0.8), difference=(0.1, 0.05, 0.15), rivals=0.6, n_correct=900, n_wrong=100, **special):
    others = {score.name: interval(rivals, rivals - 0.05, rivals + 0.05) for score in SCORES}
    scores = others | {"q_score": interval(*q)} | {name: interval(*value) for name, value in special.items()}
    n = n_correct + n_wrong
    return {
        "n": n,
        "probe": None,
        "base_rate": {"correct": n_correct / n, "wrong": n_wrong / n},
        "n_duplicates": {"train": 0, "test": 0},
        "scores": scores,
        "q_minus": {name: interval(*difference) for name in scores if name != "q_score"},
        "class_mean": {},
        "gain": {},
        "claims": None,
        "calibration": None,
        "left_out": {},
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
    n = sum(score.kind == "rival" for score in SCORES)
    assert said.startswith(f"Of the {n} label-free rivals, Hoyer sparsity came out highest on these rows")


def test_few_of_either_outcome_are_confessed():
    assert sentences(metrics(n_wrong=7))[-1].startswith("Only 7 rows are wrong")
    assert "Only" not in sentences(metrics())[-1]
    assert sentences(metrics(n_correct=5))[-1].startswith("Only 5 rows are correct")


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        ((0.02, 0.01, 0.03), "Q adds to the feature norm: together their AUROC, out of fold, changes by +0.020"),
        ((0.02, -0.01, 0.03), "Q cannot be shown to add to the feature norm"),
    ],
)
def test_what_q_adds_to_the_norm(gain, verdict):
    found = metrics()
    found["gain"] = {"q_on_top_of": {"l2_norm": interval(*gain)["auroc"]}, "on_top_of_q": {}}
    assert any(sentence.startswith(verdict) for sentence in sentences(found))


@pytest.mark.parametrize(("n_correct", "undefined"), [(300, True), (325, True), (340, False)])
def test_a_probe_is_at_chance_unless_its_whole_interval_lies_above_the_commonest_class(n_correct, undefined):
    found = metrics(n_correct=n_correct, n_wrong=1000 - n_correct)
    probe = SimpleNamespace(title="linear probe", n_train=500, sentences=list)
    found["probe"] = {"majority": 0.3, "n_correct": n_correct}
    low = beta.ppf(0.025, n_correct, 1000 - n_correct + 1)
    assert (low <= 0.3) == undefined
    assert any("failure prediction is undefined" in s for s in sentences(found, probe)) == undefined


def test_duplicates_are_no_fault_of_a_probe_that_is_not_there():
    found = metrics()
    found["n_duplicates"] = {"train": 3, "test": 0}
    said = sentences(found)[1]
    assert said == "3 rows under test equal a training row bit by bit: neighbour scores find the row itself."
    found["probe"] = {"majority": 0.1, "n_correct": 900}
    assert "the probe has seen them" in sentences(found, SimpleNamespace(title="p", n_train=9, sentences=list))[1]


def test_a_probe_above_the_commonest_class_by_chance_is_not_said_to_be_below():
    found = metrics(n_correct=8, n_wrong=2)
    found["probe"] = {"majority": 0.5, "n_correct": 8}
    said = undefined_because(found)
    assert said is not None and said.startswith("That is not shown to be better than always naming")
