import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qscore import QScoreError, embed, rank_checkpoints, representation_metrics
from qscore.core import automatic_epsilon, discriminative_features, highly_activating, moments, q_score
from qscore.encoders import Preprocessing, save_encoder
from qscore.study.rank import _expand, _order, _sentences
from qscore.tables import open_embeddings

FEW = {"device": "cpu", "batch_size": 32}


@pytest.fixture(scope="module")
def ranked(run, train, test, tmp_path_factory):
    out = tmp_path_factory.mktemp("ranked")
    pattern = str(run / "checkpoints" / "epoch-*")
    return out, rank_checkpoints([pattern, "nowhere"], train, test_images=test, out=out, views=2, **FEW)


def test_three_checkpoints_are_ordered_and_the_bad_one_is_named(ranked, run):
    out, found = ranked
    names = [row["checkpoint"] for row in found["checkpoints"]]
    assert sorted(names) == [str(run / "checkpoints" / f"epoch-000{k}") for k in (1, 2, 3)]
    values = [row["criteria"]["rankme"] for row in found["checkpoints"]]
    assert values == sorted(values, reverse=True) and found["chosen"] == names[0]
    assert [row["checkpoint"] for row in found["refused"]] == ["nowhere"]
    assert found["sentences"][-1].startswith("Left out: nowhere: encoder 'nowhere': expected")
    assert json.loads((out / "rank.json").read_text())["chosen"] == found["chosen"]


def test_criteria_are_those_of_the_held_out_rows(ranked, run, train, test, tmp_path):
    _, found = ranked
    tables = {}
    for k in (1, 2, 3):
        name = str(run / "checkpoints" / f"epoch-000{k}")
        for part, source in (("train", train), ("test", test)):
            embed(source, name, tmp_path / f"{k}-{part}", device="cpu", batch_size=32)
            tables[name, part] = open_embeddings(tmp_path / f"{k}-{part}").read().embedding
    epsilon = max(automatic_epsilon(tables[row["checkpoint"], "train"]) for row in found["checkpoints"])
    assert found["epsilon"] == epsilon
    for row in found["checkpoints"]:
        learned, seen = (tables[row["checkpoint"], part] for part in ("train", "test"))
        L = highly_activating(learned, epsilon)
        D = discriminative_features(L.sum(0))
        Q, (_, sigma) = q_score(seen, D, epsilon), moments(seen)
        assert row["criteria"]["q_over_sigma"] == pytest.approx(np.mean(Q / sigma))
        assert row["criteria"]["coverage"] == pytest.approx(np.mean(Q > 0))
        whole = representation_metrics(seen)
        assert row["criteria"]["rankme"] == pytest.approx(whole.rankme)
        assert row["criteria"]["hoyer"] == pytest.approx(whole.hoyer.value)
        assert 0 < row["criteria"]["alignment"] < 4


def test_regret_and_correlation_stand_beside_every_criterion(ranked):
    _, found = ranked
    accuracy = {row["checkpoint"]: row["accuracy"] for row in found["checkpoints"]}
    for of in found["criteria"].values():
        assert 0 <= of["regret"] <= 1
        assert of["spearman"] is None or -1 <= of["spearman"]["value"] <= 1
    best = found["criteria"]["rankme"]
    assert best["regret"] == pytest.approx(max(accuracy.values()) - accuracy[best["chosen"]])


def test_without_labels_and_by_another_criterion(run, unlabelled):
    found = rank_checkpoints(run / "checkpoints", unlabelled, by="alpha_req", **FEW)
    distance = [abs(row["criteria"]["alpha_req"] - 1) for row in found["checkpoints"]]
    assert distance == sorted(distance) and not found["labelled"]
    assert all(row["accuracy"] is None for row in found["checkpoints"])
    assert found["criteria"]["rankme"].keys() == {"title", "better", "why", "chosen"}
    assert found["sentences"][-1] == "Without labels on all images nothing tells whether that is the best choice."


def test_a_checkpoint_that_gives_no_numbers_is_left_out(run, train, test, tmp_path):
    state = load_file(run / "encoder.safetensors")
    key = next(name for name in state if name.endswith("running_var"))
    state[key] = torch.full_like(state[key], -1.0)
    name = "small:resnet10-2-r32"
    save_encoder(tmp_path / "bad", name, state, Preprocessing(crop=8, resize=8), method=None)
    found = rank_checkpoints([run, tmp_path / "bad"], train, test_images=test, **FEW)
    assert found["refused"] == [
        {"checkpoint": str(tmp_path / "bad"), "reason": "its representations hold NaN or infinity"}
    ]
    with pytest.raises(QScoreError, match="none of 1 checkpoints can be used; the first: its representations hold"):
        rank_checkpoints(tmp_path / "bad", train, test_images=test, **FEW)


def test_fewer_rows_are_taken_at_random(run, train, test):
    found = rank_checkpoints(run, train, test_images=test, rows=30, **FEW)
    assert (found["n_train"], found["n_test"]) == (30, 30)
    assert found["sentences"][0] == "A single checkpoint has no rank; give several."


def test_patterns_and_folders_are_opened_in_the_order_of_their_numbers(tmp_path):
    for k in (1, 2, 10):
        (tmp_path / "c" / f"e-{k}").mkdir(parents=True)
        (tmp_path / "c" / f"e-{k}" / "encoder.safetensors").touch()
    expected = [str(tmp_path / "c" / f"e-{k}") for k in (1, 2, 10)]
    assert _expand([tmp_path / "c" / "e-*"]) == _expand([tmp_path / "c"]) == expected
    assert _expand([expected[2], str(tmp_path / "c")]) == [expected[2], *expected[:2]]
    assert _expand(["timm:resnet18"]) == ["timm:resnet18"]
    with pytest.raises(QScoreError, match=r"x-\*: no checkpoint matches this pattern"):
        _expand([str(tmp_path / "x-*")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "rankmee"}, "by 'rankmee': expected one of rankme, .*; did you mean 'rankme'"),
        ({"by": "alignment"}, "by 'alignment': it needs views of each image; give --views 2"),
        ({"views": 1}, "views: expected 0, or 2 to 127, got 1"),
        ({"rows": 3}, "expected rows >= 10, resamples >= 1, seed >= 0; got 3"),
        ({"epsilon": -2.0}, "epsilon: expected a positive number"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message, run, train):
    with pytest.raises(QScoreError, match=message):
        rank_checkpoints(run, train, **options)


def test_an_epsilon_out_of_reach_is_refused(run, train, test):
    with pytest.raises(QScoreError, match="the first: epsilon: with 32 features no value lies more than 5.57"):
        rank_checkpoints(run, train, test_images=test, epsilon=9.0, **FEW)


def ordered(values, accuracy):
    """What is said of checkpoints a, b, ... whose number of dead features and accuracy are given."""
    measured = {
        name: {"criteria": {"dead": value}, "accuracy": right, "n_features": 32}
        for name, value, right in zip("abcdef", values, accuracy, strict=False)
    }
    found = _order(measured, "dead", resamples=50, seed=0) | {"n_test": 100, "refused": []}
    return found, _sentences(found)


def test_checkpoints_that_tie_are_not_chosen_between_in_words():
    found, said = ordered([3.0, 0.0, 0.0], [0.9, 0.5, 0.7])
    assert (found["chosen"], found["tied"]) == ("b", 2)
    assert [row["checkpoint"] for row in found["checkpoints"]] == ["b", "c", "a"]
    assert said[0].endswith(" 2 checkpoints are equally good; b is only the first of them.")
    assert said[1].endswith("; one of those taken blindly falls 30.00 points short of that on average.")


def test_a_criterion_that_is_undefined_for_all_chooses_none():
    found, said = ordered([math.nan] * 3, [0.9, 0.5, 0.7])
    assert found["chosen"] is None
    assert said == [
        "dead features is undefined for all checkpoints, so none is chosen and their order means nothing.",
        "The linear probe does best on a (90.00% of 100 test rows).",
        "There are too few checkpoints, or no differences, to speak of a rank correlation.",
    ]


def test_a_perfect_order_is_no_proof():
    _, said = ordered([5.0, 4.0, 3.0, 2.0, 1.0], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert said[-1].endswith("correlation of +1.00; resamples that all agree give no interval.")


def test_a_fixed_epsilon_below_the_grid_is_taken_as_it_is(run, train, test):
    found = rank_checkpoints(run, train, test_images=test, epsilon=1.2, **FEW)
    assert found["epsilon"] == 1.2 and not math.isnan(found["checkpoints"][0]["criteria"]["coverage"])
