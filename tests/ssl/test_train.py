import csv
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_training import (
    METHODS,
    TINY,
    ask_to_terminate,
    assert_same,
    at_call,
    crash,
    press_ctrl_c,
    spoil_gradient,
    spoil_weights,
    train_method,
    train_tiny,
    weights_of,
)

from qscore import QScoreError, load_encoder, pretrain
from qscore.encoders import Preprocessing
from qscore.ssl import watch
from qscore.ssl.pixels import channel_statistics, load_pixels
from qscore.ssl.simclr import SimCLR


@pytest.fixture(scope="module")
def trained(few_digits, tmp_path_factory):
    """The folder of a training that nothing disturbed."""
    return train_tiny(few_digits, tmp_path_factory.mktemp("trained")).parent


@pytest.fixture(scope="module")
def accumulated(few_digits, tmp_path_factory):
    """The same, each batch taken in two parts."""
    return train_tiny(few_digits, tmp_path_factory.mktemp("accumulated"), accumulate=2).parent


def test_the_encoder_is_written_with_its_preprocessing(trained, few_digits):
    encoder = load_encoder(trained)
    mean, std = channel_statistics(load_pixels(few_digits, 8, workers=1))
    assert encoder.preprocess == Preprocessing(crop=8, resize=8, mean=mean, std=std)
    assert encoder.source.method == "simclr"
    record = json.loads((trained / "encoder.json").read_text())
    assert record["extra"]["config"]["batch_size"] == 8
    assert record["extra"]["images"] == few_digits.fingerprint
    assert {file.name for file in trained.iterdir()} == {
        *("encoder.json", "encoder.safetensors", "last.ckpt", "logs", "pretrain.json")
    }


def test_batch_norm_statistics_are_those_of_the_training(trained):
    state = load_file(trained / "encoder.safetensors")
    tracked = [key for key in state if key.endswith("num_batches_tracked")]
    assert tracked
    assert all(state[key] == 6 for key in tracked)


def test_losses_are_logged_for_each_epoch(trained):
    with (trained / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss_epoch"]]
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "2"), ("1", "5")]
    assert list((trained / "logs" / "version_0").glob("events.*"))


def test_the_seed_decides(few_digits, trained, tmp_path):
    torch.manual_seed(5)
    assert_same(train_tiny(few_digits, tmp_path / "again"), trained)
    other = train_tiny(few_digits, tmp_path / "other", seed=1).parent
    assert not torch.equal(weights_of(other), weights_of(trained))


def test_the_callers_random_numbers_are_left_alone(few_digits, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_tiny(few_digits, tmp_path)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("call", [1, 3, 4, 6])
def test_after_a_crash_the_same_call_gives_the_same_weights(few_digits, trained, tmp_path, monkeypatch, call):
    with monkeypatch.context() as patch:
        at_call(patch, call, crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train_tiny(few_digits, tmp_path)
    assert not (tmp_path / "encoder.safetensors").exists()
    assert (tmp_path / "last.ckpt").exists() == (call > 3)
    assert_same(train_tiny(few_digits, tmp_path), trained)


@pytest.mark.parametrize(("call", "accumulate"), [(1, 1), (2, 1), (3, 1), (4, 1), (6, 1), (3, 2), (6, 2), (8, 2)])
def test_ctrl_c_saves_at_the_end_of_the_step(few_digits, trained, accumulated, tmp_path, monkeypatch, call, accumulate):
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        at_call(patch, call, press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(few_digits, tmp_path, accumulate=accumulate)
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == -(-call // accumulate)
    again = train_tiny(few_digits, tmp_path, accumulate=accumulate)
    assert_same(again, trained if accumulate == 1 else accumulated)


def test_sigterm_saves_at_the_end_of_the_step(few_digits, trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, 5, ask_to_terminate)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(few_digits, tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 5
    assert_same(train_tiny(few_digits, tmp_path), trained)


@pytest.fixture
def interruptible():
    """Ctrl-C raises, even where a shell has started pytest in the background and told it to ignore that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_ctrl_c_stops_at_once(few_digits, tmp_path, monkeypatch):
    def press_twice(method):
        press_ctrl_c(method)
        press_ctrl_c(method)

    at_call(monkeypatch, 4, press_twice)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(few_digits, tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_finished_training_is_not_repeated(few_digits, trained, caplog, monkeypatch):
    at_call(monkeypatch, 1, crash)
    caplog.set_level(logging.INFO, "qscore.ssl")
    assert train_tiny(few_digits, trained) == trained / "encoder.safetensors"
    assert "holds this training, finished" in caplog.text


def test_another_training_in_the_folder_is_refused_with_the_difference(few_digits, trained):
    with pytest.raises(QScoreError, match=r"seed is 0 there and 1 here; .* --overwrite"):
        train_tiny(few_digits, trained, seed=1)
    with pytest.raises(QScoreError, match=r"config.lr is 0.002 there and 0.5 here"):
        train_tiny(few_digits, trained, overrides=TINY["overrides"] | {"lr": 0.5})


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_files_is_refused(few_digits, tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("four years")
    with pytest.raises(QScoreError, match="exists and holds no training; name another folder"):
        train_tiny(few_digits, tmp_path, overwrite=overwrite)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_overwrite_starts_anew(few_digits, trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, 5, crash)
        with pytest.raises(RuntimeError):
            train_tiny(few_digits, tmp_path, seed=1)
    assert_same(train_tiny(few_digits, tmp_path, overwrite=True), trained)


def test_a_damaged_checkpoint_is_named(few_digits, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, 5, crash)
        with pytest.raises(RuntimeError):
            train_tiny(few_digits, tmp_path)
    checkpoint = tmp_path / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(QScoreError, match=r"last.ckpt: cannot read this checkpoint; .* --overwrite"):
        train_tiny(few_digits, tmp_path)


@pytest.mark.parametrize(("call", "kept"), [(2, None), (3, None), (5, 3), (6, 3)])
def test_a_loss_that_is_not_finite_stops_and_names_the_step(few_digits, tmp_path, monkeypatch, call, kept):
    at_call(monkeypatch, call, spoil_weights)
    with pytest.raises(QScoreError, match=rf"the loss is nan at step {call} \(epoch {1 + (call > 3)}\).*learning rate"):
        train_tiny(few_digits, tmp_path)
    checkpoint = tmp_path / "last.ckpt"
    assert checkpoint.exists() == (kept is not None)
    if kept:
        saved = torch.load(checkpoint, weights_only=True)
        assert saved["global_step"] == kept
        assert all(torch.isfinite(tensor).all() for tensor in saved["state_dict"].values())


def test_weights_that_are_not_finite_are_never_saved(few_digits, tmp_path, monkeypatch):
    at_call(monkeypatch, 3, spoil_gradient)  # of the last step of the epoch, whose loss is fine
    with pytest.raises(QScoreError, match="weights are not finite at step 3 "):
        train_tiny(few_digits, tmp_path)
    assert not (tmp_path / "last.ckpt").exists()


def test_a_failure_to_save_keeps_the_older_checkpoint(few_digits, tmp_path, monkeypatch):
    save, calls = torch.save, iter(range(1, 10))

    def full_disk(checkpoint, file):
        if next(calls) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(checkpoint, file)

    monkeypatch.setattr(watch.torch, "save", full_disk)
    with pytest.raises(QScoreError, match=r"cannot write .*last.ckpt: No space left on device"):
        train_tiny(few_digits, tmp_path)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert not list(tmp_path.glob(".*"))


# In processes of their own, whose output is a pipe: a limit on files would also hold for what pytest writes.
FULL_WHILE_SAVING = """
import resource, sys
import torch
from qscore import QScoreError
from qscore.ssl.watch import AtomicCheckpoints

AtomicCheckpoints().save_checkpoint({"weights": torch.zeros(3)}, sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    AtomicCheckpoints().save_checkpoint({"weights": torch.zeros(100_000)}, sys.argv[1])
except QScoreError as error:
    print(error)
"""
FULL_WHILE_LOGGING = """
import resource, sys
import pytest
from qscore import QScoreError
from tiny_training import at_call, train_method
with pytest.MonkeyPatch.context() as patch:
    at_call(patch, 5, lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1)))
    try:
        train_method("simclr", sys.argv[1])
    except QScoreError as error:
        print(error)
"""


def run_apart(code, out):
    """Return what a script prints on standard output and on standard error."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_a_disk_that_is_full_in_fact_keeps_the_older_checkpoint(tmp_path):
    checkpoint = tmp_path / "last.ckpt"
    said, _ = run_apart(FULL_WHILE_SAVING, checkpoint)
    assert said == f"cannot write {checkpoint}: File too large\n"
    assert torch.equal(torch.load(checkpoint, weights_only=True)["weights"], torch.zeros(3))
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_an_error_of_torch_while_saving_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(watch.torch, "save", lambda *_: crash(None))
    with pytest.raises(RuntimeError, match="power cut"):
        watch.AtomicCheckpoints().save_checkpoint({}, tmp_path / "last.ckpt")


def test_logs_that_find_no_room_are_named(tmp_path):
    said, complained = run_apart(FULL_WHILE_LOGGING, tmp_path)
    assert said == f"cannot write {tmp_path / 'logs'}: File too large\n"
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    assert "Traceback" not in complained


def test_a_loss_that_is_not_finite_in_a_part_of_a_batch_is_that_batchs(few_digits, tmp_path, monkeypatch):
    at_call(monkeypatch, 9, spoil_weights)  # the first part of the fifth step
    with pytest.raises(QScoreError, match=r"the loss is nan at step 5 \(epoch 2\)"):
        train_tiny(few_digits, tmp_path, accumulate=2)


def test_images_left_over_by_the_batches_wait_for_another_epoch(tmp_path, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        Image.new("RGB", (8 + i, 8), (40 * i, 0, 0)).save(folder / f"{i}.png")
    caplog.set_level(logging.INFO, "qscore.ssl")
    train_tiny(folder, tmp_path / "out", overrides=TINY["overrides"] | {"batch_size": 2})
    assert "each epoch leaves out 1 images, other ones each time, that do not fill a batch" in caplog.text
    assert torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_optimisers_and_half_precision_run(few_digits, trained, tmp_path):
    seen = [weights_of(trained)]
    for i, changes in enumerate([{"optimizer": "lars"}, {"optimizer": "sgd"}, {}]):
        precision = "bf16-mixed" if not changes else "32-true"
        overrides = TINY["overrides"] | changes
        weights = weights_of(train_tiny(few_digits, tmp_path / str(i), overrides=overrides, precision=precision).parent)
        assert torch.isfinite(weights).all()
        assert not any(torch.equal(weights, other) for other in seen)
        seen.append(weights)


def test_after_step_is_called_once_for_each_optimiser_step(few_digits, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(SimCLR, "after_step", lambda _self, *place: calls.append(place), raising=False)
    train_tiny(few_digits, tmp_path, accumulate=2)
    assert calls == [(step, 6) for step in range(1, 7)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stream", [False, True])
def test_every_method_trains_in_parts_and_from_a_stream(tmp_path, name, stream):
    encoder = load_encoder(train_method(name, tmp_path, epochs=1, accumulate=2, stream=stream))
    assert encoder.source.method == name
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert state["global_step"] == 3
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "simclar"}, "method 'simclar'"),
        ({"backbone": "small:resnet11-2"}, "backbone 'small:resnet11-2'"),
        ({"seed": -1}, "seed: expected an integer of at least 0, got -1"),
        ({"device": "gpu"}, "device 'gpu': expected one of auto, cpu, cuda, mps, cuda:1"),
        ({"device": "cpu:1"}, "device 'cpu:1': expected one of"),
        ({"device": "cuda:99"}, "device 'cuda:99': torch finds "),
        ({"precision": "16"}, "precision '16': expected one of 32-true, 16-mixed, bf16-mixed"),
        ({"accumulate": 0}, "devices, accumulate: expected at least 1, and one device if it is named, got 1, 0"),
        ({"keep_every": 0}, "keep_every: expected at least 1 epoch, got 0"),
        ({"keep_every": 3}, "keep_every: expected 1 to 2 epochs, got 3"),
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"images": "no-such-folder"}, "images 'no-such-folder'"),
    ],
)
def test_bad_arguments_leave_nothing_behind(few_digits, tmp_path, changes, message):
    arguments = {"method": "simclr", "images": few_digits, "out": tmp_path / "out"} | TINY | changes
    with pytest.raises(QScoreError) as error:
        pretrain(**arguments)
    assert str(error.value).startswith(message)
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_read_is_named(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(40):
        Image.new("RGB", (8, 8)).save(folder / f"{i:02}.png")
    (folder / "01.png").write_bytes(b"not a PNG")
    with pytest.raises(QScoreError, match=r"01\.png"):
        train_tiny(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
