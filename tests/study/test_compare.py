import copy
import json
import math
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from tiny_training import crash

from qscore import QScoreError
from qscore.encoders import Encoder, save_again
from qscore.study import compare
from qscore.study.arms import ARMS, Outcome, choose_arms
from qscore.study.compare import contrast
from qscore.study.measure import METRICS, Measured, read_discovered
from qscore.study.verdicts import judge


@pytest.fixture(scope="module")
def compared(run, train, test, quick, tmp_path_factory):
    """A finished comparison of all arms with two seeds, and what it returned."""
    out = tmp_path_factory.mktemp("compared") / "run"
    return out, compare(run, "simclr", train, out, test_images=test, seeds=2, settings=quick)


def weights(out, arm, seed=0):
    return load_file(out / "arms" / arm / f"seed-{seed}" / "encoder.safetensors")


def test_all_arms_with_all_seeds_are_there(compared):
    out, found = compared
    assert list(found["arms"]) == list(ARMS) and found["seeds"] == [0, 1]
    for arm in ARMS:
        for seed in (0, 1):
            record = json.loads((out / "arms" / arm / f"seed-{seed}" / "finetune.json").read_text())
            assert (record["arm"], record["seed"]) == (arm, seed)
            assert record["learning_rate"] == (0.0 if arm == "lr0" else 1e-3)
        assert set(METRICS) | {"auroc"} == set(found["arms"][arm]["metrics"])
    stored = json.loads((out / "compare.json").read_text())
    assert stored["verdicts"] == found["verdicts"] and stored["sentences"] == found["sentences"]


def test_records_of_the_arms_differ_in_nothing_else(compared):
    out, _ = compared
    records = {arm: json.loads((out / "arms" / arm / "seed-1" / "finetune.json").read_text()) for arm in ARMS}
    for record in records.values():
        for name in ("arm", "regularizer", "learning_rate"):
            del record[name]
    assert all(record == records["plain"] for record in records.values())


def test_learning_rate_zero_keeps_the_weights(compared, run):
    before, after = load_file(run / "encoder.safetensors"), weights(compared[0], "lr0")
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved == {key for key in before if "running" in key or "num_batches" in key}


def test_the_random_d_is_another_one_of_the_same_size_for_each_seed(compared):
    out, found = compared
    sets = {}
    for arm in ("qscore", "random-d"):
        for seed in (0, 1):
            state = torch.load(out / "arms" / arm / f"seed-{seed}" / "last.ckpt", weights_only=True)["state_dict"]
            sets[arm, seed] = state["addition.regularizer.features"].tolist()
    D = read_discovered(out / "start" / "train-scores.features.parquet")
    assert sets["qscore", 0] == sets["qscore", 1] == D.indices.tolist()
    assert sets["random-d", 0] != sets["random-d", 1]
    for seed in (0, 1):
        assert len(sets["random-d", seed]) == len(D.indices) == found["n_discriminative"]
        assert (D.counts[sets["random-d", seed]] > 0).all()


def test_pooled_differences_are_by_hand(compared):
    out, found = compared
    rows = {
        (arm, seed): pq.read_table(out / "arms" / arm / f"seed-{seed}" / "rows.parquet").to_pydict()
        for arm in ("qscore", "plain")
        for seed in (0, 1)
    }
    for metric in METRICS:
        total, per_row = [], []
        for i in range(60):
            pairs = [(rows["qscore", s][metric][i], rows["plain", s][metric][i]) for s in (0, 1)]
            if any(math.isnan(value) for pair in pairs for value in pair):
                continue
            total.append(pairs)
            per_row.append(sum(a - b for a, b in pairs) / 2)
        difference = found["differences"]["qscore"]["plain"][metric]
        assert difference["value"] == pytest.approx(sum(per_row) / len(per_row), abs=1e-12)
        for s in (0, 1):
            mean = sum(pairs[s][0] - pairs[s][1] for pairs in total) / len(total)
            assert difference["seeds"][str(s)] == pytest.approx(mean, abs=1e-12)
        least = 2.8 * np.std(per_row, ddof=1) / math.sqrt(len(per_row)) if len(set(per_row)) > 1 else math.nan
        assert difference["minimum_effect"] == pytest.approx(least, abs=1e-12, nan_ok=True)
        plain = sum(pairs[s][1] for pairs in total for s in (0, 1)) / len(total) / 2
        if plain:
            assert difference["relative"]["value"] == pytest.approx(difference["value"] / plain)
    for s in (0, 1):
        one = rows["qscore", s]
        expected = roc_auc_score(np.array(one["accuracy"]) == 1, one["q"])
        assert found["arms"]["qscore"]["metrics"]["auroc"]["seeds"][str(s)] == pytest.approx(expected)


def test_the_tidy_table_holds_the_same_numbers(compared):
    out, found = compared
    table = pq.read_table(out / "compare.parquet").to_pylist()
    [row] = [
        row
        for row in table
        if (row["arm"], row["reference"], row["metric"], row["seed"]) == ("qscore", "random-d", "accuracy", None)
    ]
    expected = found["differences"]["qscore"]["random-d"]["accuracy"]
    for name in ("value", "low", "minimum_effect"):
        assert row[name] == pytest.approx(expected[name], rel=0, abs=0, nan_ok=True)
    assert {row["arm"] for row in table} == {"start", *ARMS}


def test_killed_between_arms_it_goes_on_to_the_same_weights(compared, run, train, test, quick, tmp_path, monkeypatch):
    options = {"test_images": test, "seeds": 1, "settings": quick, "arms": ["plain", "random-d"]}
    with monkeypatch.context() as patch:
        calls = iter(range(10))
        train_one = __import__("qscore.ssl.finetune", fromlist=["fit"]).fit

        def second_dies(*arguments):
            if next(calls) == 1:
                raise KeyboardInterrupt
            train_one(*arguments)

        patch.setattr("qscore.ssl.finetune.fit", second_dies)
        with pytest.raises(KeyboardInterrupt):
            compare(run, "simclr", train, tmp_path, **options)
    assert not (tmp_path / "compare.json").exists()
    compare(run, "simclr", train, tmp_path, **options)
    for arm in ("plain", "random-d"):
        ours, theirs = weights(tmp_path, arm), weights(compared[0], arm)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    with monkeypatch.context() as patch:  # what is finished is not trained again, and more may be asked for
        patch.setattr("qscore.ssl.finetune.fit", crash)
        again = compare(run, "simclr", train, tmp_path, **options | {"arms": ["plain"]})
    assert list(again["arms"]) == ["plain"]
    with pytest.raises(QScoreError, match="holds another training: epochs is 1 there and 2 here"):
        compare(run, "simclr", train, tmp_path, **options | {"settings": replace(quick, epochs=2)})


def test_an_arm_that_diverges_is_reported_and_the_others_go_on(run, train, test, quick, tmp_path, monkeypatch):
    options = {"test_images": test, "seeds": 1, "arms": ["lr0", "plain", "qscore"]}
    options["settings"] = replace(quick, learning_rate=1e30)
    found = compare(run, "simclr", train, tmp_path, **options)
    assert found["arms"]["lr0"]["metrics"]["accuracy"]["value"] > 0
    for arm in ("plain", "qscore"):
        assert found["arms"][arm]["metrics"] == {} and "0" in found["arms"][arm]["failed"]
    assert [row["verdict"] for row in found["verdicts"]] == ["not tested"] * 4
    assert any(sentence.startswith("plain, seed 0, diverged: ") for sentence in found["sentences"])
    assert "of the mean of those of 1 seed that both arms finished;" in found["sentences"][-1]
    monkeypatch.setattr("qscore.ssl.finetune.fit", crash)
    assert compare(run, "simclr", train, tmp_path, **options)["arms"] == found["arms"]


def test_an_arm_whose_representations_are_nan_has_diverged(run, train, test, quick, tmp_path, monkeypatch):
    def spoiled(start, feeds, place, *, extra, learning_rate, **options):
        """An arm whose weights are finite, and BatchNorm's statistics no more."""
        backbone = copy.deepcopy(start.encoder.backbone)
        if learning_rate:
            next(value for name, value in backbone.named_buffers() if name.endswith("running_var")).fill_(-1.0)
        (place.path / "history.json").write_text("[]")
        return save_again(place.path, Encoder(backbone, start.encoder.source), extra=extra)

    monkeypatch.setattr("qscore.study.arms.tune", spoiled)
    options = {"test_images": test, "seeds": 1, "settings": quick, "arms": ["lr0", "plain"]}
    found = compare(run, "simclr", train, tmp_path, **options)
    assert found["arms"]["plain"]["failed"] == {"0": "64 of 64 representations hold NaN or infinity"}
    assert found["arms"]["lr0"]["metrics"]["accuracy"]["value"] > 0


def test_an_empty_d_is_refused_before_any_arm_is_trained(run, train, test, quick, tmp_path, monkeypatch):
    monkeypatch.setattr("qscore.study.arms.tune", crash)
    with pytest.raises(QScoreError) as error:
        compare(run, "simclr", train, tmp_path, test_images=test, settings=replace(quick, epsilon=5.5))
    assert str(error.value) == (
        "D is empty: at epsilon 5.5 no feature of the band is highly active in any training row, so no row can be "
        "lifted; give a smaller --epsilon, or auto"
    )


def test_without_labels_only_what_needs_none_is_compared(run, unlabelled, quick, tmp_path):
    found = compare(run, "simclr", unlabelled, tmp_path, seeds=1, settings=quick, arms=["plain", "qscore"])
    assert set(found["arms"]["qscore"]["metrics"]) == set(METRICS) - {"accuracy"}
    assert found["verdicts"][0]["verdict"] == "not tested" and found["verdicts"][3]["verdict"] != "not tested"
    assert found["sentences"][0] == "Without labels no probe was fitted, so C7 was not tested."


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_an_effect_that_is_there_is_found_and_one_that_is_not_is_not(n_seeds):
    rng = np.random.default_rng(1)
    base = rng.random(800) < 0.6
    outcomes = []
    for seed in range(n_seeds):
        for arm, gain in (("lr0", 0.0), ("plain", 0.0), ("qscore", 0.15), ("random-d", 0.14)):
            correct = base | (rng.random(800) < gain)
            rows = {name: rng.random(800) for name in METRICS} | {"accuracy": correct.astype(float)}
            rows["hoyer"] = rows["hoyer"] + (arm == "qscore")
            outcomes.append(Outcome(arm, seed, Measured(rows, [], None), {}))
    found = contrast(outcomes, resamples=500, seed=0)
    found |= {"start": {"accuracy": {"value": 0.6}}, "n_test": 800, "seeds": list(range(n_seeds))}
    verdicts, said = judge(found)
    assert [row["verdict"] for row in verdicts] == ["holds", "not shown", "holds", "not shown"]
    assert said[1].startswith("C7 holds here: against plain fine-tuning accuracy changes by +")
    assert f"{n_seeds} of {n_seeds} seeds above 0" in said[1]


@pytest.mark.parametrize(
    ("low", "high", "verdict"), [(0.01, 0.02, "holds"), (-0.2, -0.1, "contradicted"), (-0.1, 0.1, "not shown")]
)
def test_verdicts_follow_the_rules(low, high, verdict):
    one = {"value": low, "low": low, "high": high, "relative": {"value": low}, "minimum_effect": 0.1, "seeds": {"0": 1}}
    metrics = {"accuracy": one, "hoyer": one, "zeros": one}
    found = {
        "start": {"accuracy": one},
        "n_test": 10,
        "seeds": [0],
        "arms": {"qscore": {"failed": {}, "gradient_ratios": {}}},
        "differences": {"qscore": {"plain": metrics, "random-d": metrics, "lr0": metrics}},
    }
    assert [row["verdict"] for row in judge(found)[0]] == [verdict] * 4
    metrics["zeros"] = one | {"low": -1.0, "high": 1.0}
    assert judge(found)[0][3]["verdict"] == "not shown"


def test_a_seed_that_failed_leaves_the_others_paired():
    rng = np.random.default_rng(0)
    values = {(arm, seed): rng.random(50) for arm in ("plain", "qscore") for seed in (0, 1)}
    outcomes = [Outcome(arm, seed, Measured({"q": row}, [], None), {}) for (arm, seed), row in values.items()]
    outcomes[-1] = Outcome("qscore", 1, None, {}, "the loss is nan")
    found = contrast(outcomes, resamples=50, seed=0)
    difference = found["differences"]["qscore"]["plain"]["q"]
    assert difference["value"] == pytest.approx((values["qscore", 0] - values["plain", 0]).mean())
    assert list(difference["seeds"]) == ["0"] and found["arms"]["qscore"]["failed"] == {"1": "the loss is nan"}


def test_unknown_arms_are_refused(run, train, tmp_path):
    with pytest.raises(QScoreError, match="arm 'plan': expected some of lr0, plain, .*; did you mean 'plain'"):
        choose_arms(["plan"])
    with pytest.raises(QScoreError, match="arms: expected some of lr0, .* got none"):
        compare(run, "simclr", train, tmp_path, arms=[])
    with pytest.raises(QScoreError, match="seeds: expected at least 1, got 0"):
        compare(run, "simclr", train, tmp_path, seeds=0)
