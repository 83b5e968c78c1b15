import csv
import json
import logging

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_training import at_call, crash, train_method

from qscore import LassoRegularizer, QScoreError, QScoreRegularizer, load_encoder
from qscore.images import open_images, subset
from qscore.ssl.addition import Addition
from qscore.ssl.finetune import Hardware, make_feeds, tune, tuned_history, warm_up
from qscore.ssl.methods import METHODS
from qscore.ssl.module import Training
from qscore.ssl.optim import build_optimizer, set_rates
from qscore.ssl.run import RunFolder
from qscore.ssl.start import find_start
from qscore.ssl.watch import Diverged

CPU = Hardware(device="cpu")
COUNTER = "num_batches_tracked"


@pytest.fixture(scope="module")
def digits():
    return subset(open_images("digits"), range(32))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of tiny trainings, by method."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name) / "run"
            train_method(name, made[name], epochs=2)
        return made[name]

    return folder


def tuned(start, source, out, *, epochs=2, rate=1e-3, **options):
    folder = RunFolder(out, "finetune.json")
    folder.check({"a": 1}, overwrite=False)
    folder.begin({"a": 1}, overwrite=False)
    feeds = make_feeds(start, source, CPU, "memory")
    options = {"seed": 0, "extra": {}} | options
    return tune(start, feeds, folder, epochs=epochs, learning_rate=rate, hardware=CPU, **options)


def qscore(lambda1=1e-4, lambda2=1e-4, calibrate=False, **options):
    reduction = "mean" if calibrate else "sum"
    regularizer = QScoreRegularizer(np.arange(16), lambda1, lambda2, epsilon=1.5, reduction=reduction)
    return Addition(regularizer, calibrate=calibrate, **options)


@pytest.mark.parametrize("name", ["simclr", "moco", "byol", "dino", "swav"])
def test_heads_momentum_encoders_and_queues_are_the_checkpoints(name, trained, digits):
    folder = trained(name)
    stored = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    start = find_start(folder, name, digits)
    state = start.build(0).state_dict()
    of_method = {key: value for key, value in stored.items() if key.startswith("method.")}
    assert {f"method.{key}" for key in state} == of_method.keys()
    assert all(torch.equal(state[key.removeprefix("method.")], value) for key, value in of_method.items())
    assert start.config.batch_size == 8


def test_another_methods_heads_are_refused_and_both_are_named(trained, digits):
    folder = trained("simclr")
    expected = (
        f"{folder} holds the heads of simclr, and the method asked for is moco; fine-tune it by simclr, or give "
        f"{folder / 'encoder.safetensors'} for fresh heads of moco"
    )
    with pytest.raises(QScoreError) as error:
        find_start(folder, "moco", digits)
    assert str(error.value) == expected


def test_heads_of_another_width_are_refused(trained, digits):
    with pytest.raises(QScoreError, match="its heads are not those of simclr with these settings: .*size mismatch"):
        find_start(trained("simclr"), "simclr", digits, overrides={"hidden_dim": 9})


@pytest.mark.parametrize("name", ["lr", "epochs", "warmup_epochs"])
def test_settings_that_finetuning_has_itself_are_refused(name, trained, digits):
    with pytest.raises(QScoreError, match=f"{name}: fine-tuning has settings of its own; give --learning-rate"):
        find_start(trained("simclr"), "simclr", digits, overrides={name: 1})


def test_damaged_states_and_records_are_refused(trained, digits, tmp_path):
    folder = tmp_path / "run"
    train_method("simclr", folder, epochs=1)
    (folder / "last.ckpt").write_bytes(b"nothing")
    with pytest.raises(QScoreError, match="last.ckpt: cannot read this checkpoint"):
        find_start(folder, "simclr", digits)
    record = json.loads((folder / "pretrain.json").read_text())
    del record["config"]["temperature"]
    (folder / "pretrain.json").write_text(json.dumps(record))
    with pytest.raises(QScoreError, match="settings are of another version of qscore, without 'temperature'"):
        find_start(folder, "simclr", digits)
    (folder / "pretrain.json").unlink()
    with pytest.raises(QScoreError, match="last.ckpt is there, but neither of finetune.json and pretrain.json says"):
        find_start(folder, "simclr", digits)


def test_a_batch_larger_than_the_images_is_cut(trained, caplog):
    caplog.set_level(logging.INFO, logger="qscore")
    few = subset(open_images("digits"), range(7))
    start = find_start(trained("simclr"), "simclr", few)
    assert start.config.batch_size == 2 and "batches of 2 images, for want of more" in caplog.text
    with pytest.raises(QScoreError, match="batch_size: expected 2 to 7, the number of images, got 8"):
        find_start(trained("simclr"), "simclr", few, batch_size=8)


@pytest.mark.parametrize("name", ["simclr", "moco", "byol", "dino"])
def test_fresh_heads_learn_while_encoder_and_its_copies_stay(name, trained, digits, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="qscore")
    file = trained("simclr") / "encoder.safetensors"
    small = {"hidden_dim": 8, "output_dim": 4} | ({"bottleneck_dim": 4} if name == "dino" else {})
    start = find_start(file, name, digits, overrides=small, warmup_epochs=2)
    assert f"{file} comes without heads of {name}: fresh ones are made" in caplog.text
    feeds = make_feeds(start, digits, CPU, "memory")
    random = warm_up(start, feeds, tmp_path / "none", 0, seed=3, hardware=CPU).state
    warm = warm_up(start, feeds, tmp_path / "warm", 2, seed=3, hardware=CPU).state
    moved = {key for key in random if not torch.equal(random[key], warm[key])}
    inner = ("backbone.", "keys.0.", "target.0.", "teacher.0.")
    weights = {key for key in moved if key.startswith(inner)}
    assert all(torch.allclose(random[key], warm[key], rtol=1e-6) for key in weights)  # averages of equals round
    assert not any("running" in key or key.endswith(COUNTER) or key.startswith("backbone.") for key in weights)
    assert {key.partition(".")[0] for key in moved - weights} & {"head", "projector"}


def test_an_interrupted_warm_up_goes_on_as_if_nothing_had_been(trained, digits, tmp_path, monkeypatch):
    small = {"hidden_dim": 8, "output_dim": 4}
    start = find_start(trained("simclr") / "encoder.safetensors", "simclr", digits, overrides=small, warmup_epochs=2)
    feeds = make_feeds(start, digits, CPU, "memory")
    unbroken = warm_up(start, feeds, tmp_path / "a", 2, seed=0, hardware=CPU).state
    with monkeypatch.context() as patch:
        at_call(patch, 6, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            warm_up(start, feeds, tmp_path / "b", 2, seed=0, hardware=CPU)
    again = warm_up(start, feeds, tmp_path / "b", 2, seed=0, hardware=CPU).state
    assert all(torch.equal(again[key], value) for key, value in unbroken.items())


def test_views_are_normalised_as_the_encoder_wants_them(trained, digits):
    start = find_start(trained("simclr"), "simclr", digits)
    other = subset(open_images("digits"), range(40, 72))
    for data in ("memory", "stream"):
        feed = make_feeds(start, other, Hardware(device="cpu", workers=1), data)(0)
        assert feed.statistics == (start.encoder.preprocess.mean, start.encoder.preprocess.std)


@pytest.mark.parametrize("name", ["simclr", "byol"])
def test_learning_rate_zero_moves_batch_norms_statistics_alone(name, trained, digits, tmp_path):
    start = find_start(trained(name), name, digits)
    before = load_file(trained(name) / "encoder.safetensors")
    after = load_file(tuned(start, digits, tmp_path / "t", rate=0.0))
    statistics = {key for key in before if "running" in key or key.endswith(COUNTER)}
    assert {key for key in before if not torch.equal(before[key], after[key])} == statistics


@pytest.mark.parametrize("name", ["simclr", "byol", "moco"])
def test_plain_is_the_regulariser_with_weights_of_zero_bit_by_bit(name, trained, digits, tmp_path):
    start = find_start(trained(name), name, digits, overrides={"symmetric": False} if name == "moco" else {})
    plain = load_file(tuned(start, digits, tmp_path / "plain"))
    zero = load_file(tuned(start, digits, tmp_path / "zero", addition=qscore(0.0, 0.0)))
    with_it = load_file(tuned(start, digits, tmp_path / "with", addition=qscore(1.0, 1.0)))
    assert all(torch.equal(plain[key], zero[key]) for key in plain)
    assert not all(torch.equal(plain[key], with_it[key]) for key in plain)


def test_the_encoder_is_written_with_its_preprocessing_and_start_is_untouched(trained, digits, tmp_path):
    start = find_start(trained("simclr"), "simclr", digits)
    kept = {key: value.clone() for key, value in start.encoder.state_dict().items()}
    tuned(start, digits, tmp_path / "t", extra={"note": 1})
    encoder = load_encoder(tmp_path / "t")
    assert encoder.preprocess == start.encoder.preprocess and encoder.source.method == "simclr"
    assert json.loads((tmp_path / "t" / "encoder.json").read_text())["extra"] == {"note": 1}
    assert all(torch.equal(value, kept[key]) for key, value in start.encoder.state_dict().items())


def test_the_learning_rate_is_absolute_and_constant_or_a_cosine(trained, digits, tmp_path, monkeypatch):
    start = find_start(trained("simclr"), "simclr", digits)
    seen = {}
    for schedule in ("constant", "cosine"):
        tuned(start, digits, tmp_path / schedule, schedule=schedule, rate=1e-3)
        with (tmp_path / schedule / "logs" / "version_0" / "metrics.csv").open() as file:
            seen[schedule] = [float(row["lr"]) for row in csv.DictReader(file) if row.get("lr")]
    assert seen["constant"] == [pytest.approx(1e-3)] * len(seen["constant"])
    assert seen["cosine"][-1] < 5e-4


def test_decay_is_that_of_the_end_of_a_pretraining(trained, digits, monkeypatch, tmp_path):
    start = find_start(trained("dino"), "dino", digits)
    assert start.config.weight_decay != start.config.weight_decay_end
    made = []
    init = Training.__init__

    def noted(self, *arguments, **options):
        init(self, *arguments, **options)
        made.append(self)

    monkeypatch.setattr(Training, "__init__", noted)
    tuned(start, digits, tmp_path / "t", rate=2e-5)
    optimizer = build_optimizer(made[0].method, made[0].config)
    for step in (0, 7):
        set_rates(optimizer, made[0].config, step, 8, made[0].warmup_steps)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2e-5] * len(optimizer.param_groups))
        decays = {group["weight_decay"] for group in optimizer.param_groups}
        assert decays == {0.0, start.config.weight_decay_end}
    assert made[0].method.config.freeze_epochs == 0 and made[0].method.config.warmup_teacher_epochs == 0


def _refresh(regularizer, backbone, epoch):
    total = sum(float(p.detach().sum()) for p in backbone.parameters())
    regularizer.set_features(np.arange(4 + round(total * 1000) % 8 + epoch), epsilon=1.5)


@pytest.mark.parametrize("call", [3, 5, 7, 12])
def test_after_a_crash_weights_notes_and_d_are_those_of_an_unbroken_one(call, trained, digits, tmp_path, monkeypatch):
    start = find_start(trained("simclr"), "simclr", digits)

    def addition():
        return qscore(calibrate=True, refresh=_refresh, refresh_every=1)

    monkeypatch.setattr("qscore.ssl.addition.EVERY", 2)
    unbroken = load_file(tuned(start, digits, tmp_path / "a", epochs=3, addition=addition()))
    with monkeypatch.context() as patch:
        at_call(patch, call, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            tuned(start, digits, tmp_path / "b", epochs=3, addition=addition())
    again = load_file(tuned(start, digits, tmp_path / "b", epochs=3, addition=addition()))
    assert all(torch.equal(again[key], value) for key, value in unbroken.items())
    assert tuned_history(tmp_path / "a") == tuned_history(tmp_path / "b")
    assert [row["step"] for row in tuned_history(tmp_path / "a")] == [0, 2, 4, 6, 8, 10]


def test_killed_before_the_encoder_was_written_it_is_written_from_the_state(trained, digits, tmp_path):
    start = find_start(trained("simclr"), "simclr", digits)
    first = load_file(tuned(start, digits, tmp_path / "t", addition=qscore()))
    history = tuned_history(tmp_path / "t")
    for name in ("encoder.safetensors", "encoder.json", "history.json"):
        (tmp_path / "t" / name).unlink()
    again = load_file(tuned(start, digits, tmp_path / "t", addition=qscore()))
    assert all(torch.equal(again[key], value) for key, value in first.items())
    assert tuned_history(tmp_path / "t") == history


def test_means_are_calibrated_at_the_first_step_and_noted(trained, digits, tmp_path):
    start = find_start(trained("simclr"), "simclr", digits)
    tuned(start, digits, tmp_path / "t", addition=qscore(calibrate=True))
    first = tuned_history(tmp_path / "t")[0]
    assert [first["gradient_ratio_1"], first["gradient_ratio_2"]] == [pytest.approx(0.1), pytest.approx(0.1)]
    assert {"ssl_loss", "q", "q_over_sigma", "hoyer", "zeros", "n_active", "empty_rows"} < first.keys()
    with (tmp_path / "t" / "logs" / "version_0" / "metrics.csv").open() as file:
        logged = [row["regularizer/hoyer"] for row in csv.DictReader(file) if row["regularizer/hoyer"]]
    assert [float(value) for value in logged] == [pytest.approx(first["hoyer"])]


def test_lasso_presses_the_features(trained, digits, tmp_path):
    start = find_start(trained("simclr"), "simclr", digits)
    plain = load_encoder(tuned(start, digits, tmp_path / "plain", rate=1e-2, epochs=4))
    lasso = Addition(LassoRegularizer(10.0))
    pressed = load_encoder(tuned(start, digits, tmp_path / "lasso", rate=1e-2, epochs=4, addition=lasso))
    x = torch.stack([plain.preprocess(digits.image(i)) for i in range(len(digits))])
    with torch.no_grad():
        assert pressed(x).sum() < 0.5 * plain(x).sum()


@pytest.mark.parametrize("addition", [None, qscore])
def test_divergence_has_a_kind_of_its_own(addition, trained, digits, tmp_path):
    start = find_start(trained("simclr"), "simclr", digits)
    with pytest.raises(Diverged, match=r"the loss is nan at step|NaN or infinity|weights are not finite"):
        tuned(start, digits, tmp_path / "t", rate=1e30, addition=addition() if addition else None)
    assert not (tmp_path / "t" / "encoder.safetensors").exists()


def test_lars_at_a_low_rate_is_warned_of(trained, digits, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="qscore")
    start = find_start(trained("simclr"), "simclr", digits, overrides={"optimizer": "lars"})
    tuned(start, digits, tmp_path / "t", rate=1e-5)
    assert "8 steps of lars at learning rate 1e-05, constant" in caplog.text
    assert "LARS moves a matrix of weights by about 1e-08 of its norm a step at this learning rate" in caplog.text


def test_the_state_of_a_finetuning_is_no_encoder(trained, digits, tmp_path):
    tuned(find_start(trained("simclr"), "simclr", digits), digits, tmp_path / "t")
    with pytest.raises(QScoreError, match="last.ckpt: expected an encoder, got the state of a training; load"):
        load_encoder(tmp_path / "t" / "last.ckpt")


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_depends_on_the_very_representations_that_are_returned(name, trained, digits):
    start = find_start(trained(name), name, digits)
    method = start.build(0)
    torch.manual_seed(0)
    loss, h = method([torch.rand(8, 3, view.size, view.size) for view in method.views])
    (gradient,) = torch.autograd.grad(loss, h)
    assert h.shape == (16, 16) and gradient[:8].abs().sum() > 0
