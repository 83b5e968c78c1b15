import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import at_call, crash

import qscore
from qscore import QScoreError, QScoreRegularizer
from qscore.encoders import Preprocessing, build_backbone, save_encoder
from qscore.ssl.watch import Diverged
from qscore.study import Tuning, finetune
from qscore.study.measure import discover, read_discovered
from qscore.study.settings import make_addition, random_features
from qscore.tables import open_embeddings


@pytest.fixture(scope="module")
def tuned(run, train, test, quick, tmp_path_factory):
    """A finished fine-tuning, and what it returned."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    return out, finetune(run, "simclr", train, out, test_images=test, settings=quick)


def test_everything_is_written(tuned):
    out, metrics = tuned
    assert {"encoder.safetensors", "encoder.json", "last.ckpt", "finetune.json", "metrics.json", "history.json"} <= {
        path.name for path in out.iterdir()
    }
    for part in ("before", "after"):
        assert {"train-embeddings", "embeddings", "scores.parquet", "scores.features.parquet"} <= {
            path.name for path in (out / part).iterdir()
        }
    assert json.loads((out / "metrics.json").read_text())["sentences"] == metrics["sentences"]
    assert metrics["n_train"] == 64 and metrics["n_test"] == 60


def test_d_is_the_one_that_score_finds(tuned, run, train, tmp_path):
    qscore.embed(train, run, tmp_path / "e", device="cpu")
    qscore.score(tmp_path / "e", tmp_path / "s.parquet", epsilon=2.0)
    ours, theirs = (
        read_discovered(path)
        for path in (tuned[0] / "before" / "train-scores.features.parquet", tmp_path / "s.features.parquet")
    )
    assert np.array_equal(ours.indices, theirs.indices) and np.array_equal(ours.counts, theirs.counts)
    state = torch.load(tuned[0] / "last.ckpt", weights_only=True)["state_dict"]
    assert state["addition.regularizer.features"].tolist() == theirs.indices.tolist()
    assert tuned[1]["discriminative"] == len(theirs.indices) and tuned[1]["epsilon"] == 2.0


def test_changes_are_those_of_the_rows_by_hand(tuned):
    out, metrics = tuned
    rows = {part: pq.read_table(out / part / "rows.parquet").to_pydict() for part in ("before", "after")}
    for metric in ("accuracy", "q", "q_over_sigma", "hoyer", "zeros", "n_active", "coverage"):
        pairs = list(zip(rows["before"][metric], rows["after"][metric], strict=True))
        known = [(a, b) for a, b in pairs if a == a and b == b]
        change = sum(b - a for a, b in known) / len(known)
        found = metrics["change"][metric]
        assert found["value"] == pytest.approx(change) and found["low"] <= change <= found["high"]
        before = sum(a for a, _ in known) / len(known)
        if before:
            assert found["relative"]["value"] == pytest.approx(change / before)


def test_rows_are_measured_by_the_formulas(tuned):
    out, _ = tuned
    H = open_embeddings(out / "after" / "embeddings").read().embedding.astype(np.float64)
    D = read_discovered(out / "after" / "train-scores.features.parquet")
    rows = pq.read_table(out / "after" / "rows.parquet").to_pydict()
    for i, h in enumerate(H):
        mean, sigma = h.mean(), h.std()
        active = [j for j in range(len(h)) if h[j] - mean > 2.0 * sigma * (1 + 1e-9)]
        both = [j for j in active if j in D.indices]
        q = np.mean([h[j] - mean for j in both]) if both else 0.0
        assert rows["q"][i] == pytest.approx(q) and rows["q_over_sigma"][i] == pytest.approx(q / sigma)
        assert (rows["n_active"][i], rows["coverage"][i]) == (len(active), bool(both))
        assert rows["zeros"][i] == sum(value == 0 for value in h) / len(h)
        root = len(h) ** 0.5
        assert rows["hoyer"][i] == pytest.approx((root - h.sum() / (h @ h) ** 0.5) / (root - 1))


def test_the_same_call_again_trains_nothing(tuned, run, train, test, quick, monkeypatch):
    out, metrics = tuned
    monkeypatch.setattr("qscore.ssl.finetune.fit", crash)
    again = finetune(run, "simclr", train, out, test_images=test, settings=quick)
    assert json.dumps(again, sort_keys=True) == json.dumps(metrics, sort_keys=True)


def test_a_crash_in_the_middle_changes_nothing(tuned, run, train, test, quick, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, 6, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            finetune(run, "simclr", train, tmp_path / "t", test_images=test, settings=quick)
    finetune(run, "simclr", train, tmp_path / "t", test_images=test, settings=quick)
    ours, theirs = (load_file(folder / "encoder.safetensors") for folder in (tmp_path / "t", tuned[0]))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_another_finetuning_in_the_folder_is_refused(tuned, run, train, test, quick):
    with pytest.raises(QScoreError, match="holds another training: regularizer is 'qscore' there and 'lasso' here"):
        finetune(run, "simclr", train, tuned[0], test_images=test, settings=quick, regularizer="lasso")


def test_overwriting_removes_all_of_the_other(run, train, test, quick, tmp_path):
    finetune(run, "simclr", train, tmp_path, test_images=test, settings=quick, regularizer="none")
    stale = (tmp_path / "after" / "rows.parquet").stat().st_mtime_ns
    again = finetune(
        *(run, "simclr", train, tmp_path), test_images=test, settings=quick, regularizer="lasso", overwrite=True
    )
    assert (tmp_path / "after" / "rows.parquet").stat().st_mtime_ns > stale
    assert again["gradient_ratios"].keys() == {"gradient_ratio"}


def test_the_folder_of_the_checkpoint_itself_is_refused(tuned, train, test, quick):
    folder = tuned[0]
    for checkpoint in (folder, folder / "encoder.safetensors"):
        with pytest.raises(QScoreError, match="holds the checkpoint that is to be fine-tuned; name another folder"):
            finetune(checkpoint, "simclr", train, folder, test_images=test, settings=quick, overwrite=True)
    assert (folder / "encoder.safetensors").exists()


def test_what_it_wrote_can_be_finetuned_again(tuned, train, test, quick, tmp_path):
    again = finetune(tuned[0], "simclr", train, tmp_path, test_images=test, settings=quick, regularizer="none")
    assert again["before"] == tuned[1]["after"] and again["gradient_ratios"] == {}


def test_without_labels_there_is_no_probe(run, unlabelled, quick, tmp_path):
    metrics = finetune(run, "simclr", unlabelled, tmp_path, settings=quick)
    assert "accuracy" not in metrics["before"] and "auroc" not in metrics["after"] and metrics["n_test"] == 12
    assert "Without labels no probe was fitted" in metrics["sentences"][1]


def test_a_given_d_is_used(tuned, run, train, test, quick, tmp_path):
    table = tuned[0] / "after" / "train-scores.features.parquet"
    metrics = finetune(run, "simclr", train, tmp_path, test_images=test, settings=quick, features=table)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert state["addition.regularizer.features"].tolist() == read_discovered(table).indices.tolist()
    assert metrics["discriminative"] == len(read_discovered(table).indices)
    assert metrics["sentences"][0] == f"D: {metrics['discriminative']} features, as {table} gives them, at epsilon 2."
    with pytest.raises(QScoreError) as error:
        finetune(run, "simclr", train, tmp_path, settings=replace(quick, epsilon=3.0), features=table)
    assert str(error.value) == (f"epsilon: {table} was made at 2, and 3 is asked for; leave one of the two out")


def test_d_of_another_width_is_refused_before_anything_is_written(run, train, test, quick, tmp_path):
    H = np.random.default_rng(0).gamma(0.2, size=(200, 48)).astype(np.float32)
    np.save(tmp_path / "e.npy", H)
    qscore.score(tmp_path / "e.npy", tmp_path / "s.parquet", epsilon=2.0)
    table = tmp_path / "s.features.parquet"
    with pytest.raises(QScoreError) as error:
        finetune(run, "simclr", train, tmp_path / "t", test_images=test, settings=quick, features=table)
    assert str(error.value) == (
        f"{table}: D was found among 48 features, and the encoder has 32; find D with this encoder, by leaving "
        "--features out"
    )
    assert not (tmp_path / "t").exists()


@pytest.fixture
def signed(tmp_path):
    name = "vit:16x1-h2-m32-p4-s8"
    weights = build_backbone(name).state_dict()
    return save_encoder(tmp_path / "signed", name, weights, Preprocessing(crop=8, resize=8), method=None)


def test_a_signed_encoder_is_refused_with_the_reason_and_may_have_lasso(signed, train, test, quick, tmp_path):
    with pytest.raises(QScoreError) as error:
        finetune(signed, "simclr", train, tmp_path / "t", test_images=test, settings=quick)
    assert str(error.value) == (
        "vit:16x1-h2-m32-p4-s8 is a signed encoder, but the paper's form needs features that are never negative: L_i "
        "looks above a row's mean only, where a signed encoder's strong negative features are not seen; fine-tune it "
        "with --regularizer lasso or none (--arms lr0,plain,lasso)"
    )
    assert not (tmp_path / "t").exists()
    settings = replace(quick, warmup_heads=1, batch_size=16, reduction="mean")
    small = {"hidden_dim": 8, "output_dim": 4}
    done = finetune(
        *(signed, "simclr", train, tmp_path / "t"),
        test_images=test,
        settings=settings,
        regularizer="lasso",
        overrides=small,
    )
    assert done["gradient_ratios"]["gradient_ratio"]["first"] == pytest.approx(0.1)
    assert (tmp_path / "t" / "warmup" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("regularizer", "message"),
    [
        ("qscore", "small:resnet10-2-r32: its representations hold NaN or infinity: a training that diverged wrote it"),
        ("none", "64 of 64 representations hold NaN or infinity"),
    ],
)
def test_an_encoder_that_gives_nan_is_told_so(regularizer, message, run, train, test, quick, tmp_path):
    state = load_file(run / "encoder.safetensors")
    key = next(name for name in state if name.endswith("running_var"))
    state[key] = torch.full_like(state[key], -1.0)
    bad = save_encoder(tmp_path / "bad", "small:resnet10-2-r32", state, Preprocessing(crop=8, resize=8), method=None)
    with pytest.raises(QScoreError) as error:
        finetune(bad, "simclr", train, tmp_path / "t", test_images=test, settings=quick, regularizer=regularizer)
    assert str(error.value).startswith(message)


def test_an_empty_d_is_refused_before_heads_are_trained(run, train, test, quick, tmp_path):
    settings = replace(quick, epsilon=5.5)
    with pytest.raises(QScoreError, match=r"^D is empty: at epsilon 5\.5 .*; give a smaller --epsilon, or auto$"):
        finetune(run / "encoder.safetensors", "simclr", train, tmp_path, test_images=test, settings=settings)
    assert not (tmp_path / "warmup").exists()


@pytest.mark.filterwarnings("ignore:100% of the rows have no highly active")
def test_a_d_that_becomes_empty_is_a_divergence(run, train, quick, tmp_path):
    encoder = qscore.load_encoder(run)
    settings = replace(quick, epsilon=5.5, refresh_every=1)
    D = discover(tmp_path, encoder, train, 2.0, quick.hardware)
    addition = make_addition("random-d", settings, D, SimpleNamespace(encoder=encoder), train, 0)
    method = SimpleNamespace(backbone=encoder.backbone)
    with pytest.raises(Diverged, match=r"^epoch 2: D found anew is empty at epsilon 5\.5$"):
        addition.begin(method, 1, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"warmup_heads": -1}, "warmup_heads: expected at least 0, got -1"),
        ({"learning_rate": -1e-5}, "learning_rate: expected a number of at least 0, got -1e-05"),
        ({"lambda1": -1.0}, "lambda1: expected a number of at least 0, got -1.0"),
        ({"lasso_lambda": float("nan")}, "lasso_lambda: expected a number of at least 0, got nan"),
        ({"schedule": "cosin"}, "schedule 'cosin': expected one of constant, cosine; did you mean 'cosine'?"),
        ({"reduction": "max"}, "reduction: expected 'sum' or 'mean', got 'max'"),
        ({"epsilon": -1.0}, "epsilon: expected a positive number, got -1.0"),
        ({"epsilon": 6.0}, "epsilon: with 32 features no value lies more than 5.57"),
        ({"reduction": "mean", "lambda1": 1.0}, "lambda1, lambda2: with means give both, or neither"),
        ({"refresh_every": 0}, "refresh_every: expected at least 1, got 0"),
        ({"device": "gpu"}, "device 'gpu': expected one of"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message, run, train, test, quick, tmp_path):
    with pytest.raises(QScoreError) as error:
        finetune(run, "simclr", train, tmp_path / "t", test_images=test, settings=replace(quick, **changes))
    assert str(error.value).startswith(message)
    assert not (tmp_path / "t").exists()


def test_unknown_names_are_refused(run, train, tmp_path):
    with pytest.raises(QScoreError, match="regularizer 'qscor': expected one of qscore, lasso, none; did you mean"):
        finetune(run, "simclr", train, tmp_path, regularizer="qscor")
    with pytest.raises(QScoreError, match="method 'simclrr': expected one of simclr, "):
        finetune(run, "simclrr", train, tmp_path)


def test_a_random_d_has_the_size_of_d_and_features_that_fire(run, train, quick, tmp_path):
    encoder = qscore.load_encoder(run)
    D = discover(tmp_path, encoder, train, 2.0, quick.hardware)
    draws = [random_features(D, seed, 0) for seed in range(40)]
    assert all(len(set(draw.tolist())) == len(D.indices) and (D.counts[draw] > 0).all() for draw in draws)
    assert set(np.concatenate(draws).tolist()) == set(np.flatnonzero(D.counts > 0).tolist())
    assert np.array_equal(random_features(D, 3, 0), draws[3])


def test_weights_are_the_papers_unless_given(run, train, quick, tmp_path):
    D = discover(tmp_path, qscore.load_encoder(run), train, 2.0, quick.hardware)
    made = make_addition("qscore", Tuning(), D, None, train, 0).regularizer
    assert isinstance(made, QScoreRegularizer) and (made.lambda1, made.lambda2, made.reduction) == (1e-4, 1e-4, "sum")
    made = make_addition("qscore", Tuning(lambda1=2.0, lambda2=3.0), D, None, train, 0).regularizer
    assert (made.lambda1, made.lambda2, made.epsilon) == (2.0, 3.0, 2.0)
    assert make_addition("lasso", Tuning(lasso_lambda=5.0), None, None, train, 0).regularizer.lambda_ == 5.0
    assert make_addition("none", Tuning(), None, None, train, 0) is None


def test_d_found_anew_is_that_of_the_moving_encoder(run, train, test, quick, tmp_path):
    settings = replace(quick, epochs=2, learning_rate=1e-2, refresh_every=1)
    finetune(run, "simclr", train, tmp_path / "t", test_images=test, settings=settings)
    one = replace(settings, epochs=1)  # the same first epoch
    finetune(run, "simclr", train, tmp_path / "one", test_images=test, settings=one)
    qscore.embed(train, tmp_path / "one", tmp_path / "e", device="cpu")
    qscore.score(tmp_path / "e", tmp_path / "s.parquet", epsilon=2.0)
    state = torch.load(tmp_path / "t" / "last.ckpt", weights_only=True)["state_dict"]
    expected = read_discovered(tmp_path / "s.features.parquet").indices.tolist()
    assert state["addition.regularizer.features"].tolist() == expected
    first = read_discovered(tmp_path / "t" / "before" / "train-scores.features.parquet").indices.tolist()
    assert expected != first


def test_the_paper_s_epsilon_is_a_word_here_too():
    assert Tuning(epsilon="paper") == Tuning(epsilon=4.0)
