"""What a training leaves in its folder along the way, and where its images come from."""

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_training import assert_same, at_call, crash, press_ctrl_c, train_tiny, weights_of

from qscore import QScoreError, load_encoder
from qscore.ssl import pixels


@pytest.fixture(scope="module")
def trained(few_digits, tmp_path_factory):
    """The folder of a training that nothing disturbed."""
    return train_tiny(few_digits, tmp_path_factory.mktemp("trained")).parent


@pytest.mark.parametrize("written", ["epoch-0002/encoder.safetensors", "encoder.safetensors"])
def test_a_disk_that_is_full_keeps_what_was_there(few_digits, tmp_path, monkeypatch, written):
    write = Path.write_bytes

    def full_disk(path, content):
        if f"{path.parent.name}/{path.name}".removeprefix(f"{tmp_path.name}/").startswith(
            written.replace("encoder", ".encoder")
        ):
            write(path, content[:100])
            raise OSError(28, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(QScoreError, match=rf"cannot write .*{written}: No space left on device"):
            train_tiny(few_digits, tmp_path, keep_every=1)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == (3 if "epoch" in written else 6)
    assert load_encoder(tmp_path / "checkpoints" / "epoch-0001").dim == 16
    assert not [file for file in tmp_path.rglob(".*")]
    assert load_encoder(train_tiny(few_digits, tmp_path, keep_every=1)).dim == 16
    assert {folder.name for folder in (tmp_path / "checkpoints").iterdir()} == {"epoch-0001", "epoch-0002"}


def test_encoders_are_kept_along_the_way(few_digits, trained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, 11, crash)
        with pytest.raises(RuntimeError):
            train_tiny(few_digits, tmp_path / "a", epochs=5, keep_every=2)
    train_tiny(few_digits, tmp_path / "a", epochs=5, keep_every=2)
    kept = sorted((tmp_path / "a" / "checkpoints").iterdir())
    assert [folder.name for folder in kept] == ["epoch-0002", "epoch-0004"]
    assert {file.name for file in kept[0].iterdir()} == {"encoder.safetensors", "encoder.json"}
    assert json.loads((kept[1] / "encoder.json").read_text())["extra"]["epochs_done"] == 4
    assert load_encoder(kept[0]).preprocess == load_encoder(tmp_path / "a").preprocess
    assert not torch.equal(weights_of(kept[0]), weights_of(kept[1]))
    plain = train_tiny(few_digits, tmp_path / "b", epochs=5)  # what is kept changes nothing
    assert_same(plain, tmp_path / "a")
    train_tiny(few_digits, tmp_path / "a", epochs=2, overwrite=True)
    assert not (tmp_path / "a" / "checkpoints").exists()


def test_the_state_of_a_training_is_no_encoder(few_digits, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_call(patch, 5, crash)
        with pytest.raises(RuntimeError):
            train_tiny(few_digits, tmp_path, keep_every=1)
    for path in (tmp_path, tmp_path / "last.ckpt"):
        with pytest.raises(QScoreError) as error:
            load_encoder(path)
        assert str(error.value) == (
            f"{path}: expected an encoder, got the state of a training; finish it by the call that began it, "
            "or load one of its checkpoints/epoch-*"
        )
    assert load_encoder(tmp_path / "checkpoints" / "epoch-0001" / "encoder.safetensors").dim == 16
    train_tiny(few_digits, tmp_path, keep_every=1)
    with pytest.raises(QScoreError, match=r"last.ckpt: expected an encoder, got the state of a training; load .*"):
        load_encoder(tmp_path / "last.ckpt")
    assert load_encoder(tmp_path).dim == load_encoder(tmp_path / "encoder.safetensors").dim == 16


@pytest.fixture(scope="module")
def streamed(few_digits, tmp_path_factory):
    """The folder of a training on images that were read anew each time."""
    return train_tiny(few_digits, tmp_path_factory.mktemp("streamed"), stream=True, workers=1).parent


@pytest.mark.parametrize(("call", "action"), [(5, crash), (2, press_ctrl_c), (5, press_ctrl_c)])
def test_streams_are_taken_up_where_they_stopped(few_digits, streamed, tmp_path, monkeypatch, call, action):
    with monkeypatch.context() as patch:
        at_call(patch, call, action)
        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            train_tiny(few_digits, tmp_path, stream=True, workers=2)
    assert_same(train_tiny(few_digits, tmp_path, workers=1), streamed)  # what the folder holds goes before the memory
    assert json.loads((tmp_path / "pretrain.json").read_text())["data"] == "stream"


def test_whether_images_are_streamed_is_part_of_the_training(few_digits, trained, streamed):
    assert not torch.equal(weights_of(trained), weights_of(streamed))
    with pytest.raises(QScoreError, match=r"data is 'memory' there and 'stream' here"):
        train_tiny(few_digits, trained, stream=True)


def test_what_no_memory_holds_is_streamed(few_digits, streamed, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(pixels, "HOST_SHARE", 1e-9)
    caplog.set_level(logging.INFO, "qscore.ssl")
    assert_same(train_tiny(few_digits, tmp_path), streamed)
    assert "the images are streamed by " in caplog.text
    with pytest.raises(QScoreError, match=r"24 images of 8 x 8 pixels take .*; stream them"):
        train_tiny(few_digits, tmp_path / "again", stream=False)


def test_an_image_that_cannot_be_streamed_is_named_and_the_last_epoch_kept(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(24):
        Image.new("RGB", (8 + i, 9), (10 * i, 0, 0)).save(folder / f"{i:02}.png")
    at_call(monkeypatch, 4, lambda _: (folder / "05.png").write_bytes(b"no image"))
    with pytest.raises(QScoreError, match=r"05\.png: expected an image"):
        train_tiny(folder, tmp_path / "out", stream=True, workers=1, epochs=10)
    assert torch.load(tmp_path / "out" / "last.ckpt", weights_only=True)["global_step"] >= 3
