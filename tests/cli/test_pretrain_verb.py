import json
import subprocess
import sys

import pytest

from qscore import load_encoder


def pretrain(*arguments, cwd):
    command = [sys.executable, "-m", "qscore", "pretrain", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_all_options_at_once(tmp_path):
    options = ["--recipe", "small", "--epochs", 2, "--backbone", "small:resnet10-2", "--image-size", 12, "--json"]
    options += ["--keep-every", 1, "--accumulate", 2, "--workers", 1, "--stream", "--device", "cpu", "--seed", 3]
    for setting in ("batch_size=599", "n_local=2", "local.scale=0.2,0.5", "augment2.blur=0.1", "output_dim=16"):
        options += ["--set", setting]
    done = pretrain("dino", "--images", "digits", "--out", "e", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"encoder": "e/encoder.safetensors"}
    assert (
        "dino on 1,797 images of 8 pixels: recipe small, backbone small:resnet10-2, image size 12, 2 epochs, "
        "batches of 598\n" in done.stderr
    )
    assert "each epoch leaves out 3 images" in done.stderr
    assert "the images are streamed by 1 processes" in done.stderr
    record = json.loads((tmp_path / "e" / "pretrain.json").read_text())
    config = record["config"]
    assert (config["augment"]["size"], config["local"]["size"], config["augment2"]["blur"]) == (12, 8, 0.1)
    assert (record["data"], record["seed"], record["accumulate"]) == ("stream", 3, 2)
    for folder in ("e", "e/checkpoints/epoch-0001", "e/checkpoints/epoch-0002"):
        assert load_encoder(tmp_path / folder).preprocess.crop == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["dimo"], "method 'dimo': expected one of"),
        (["byol", "--set", "augment2.blurr=0.1"], "did you mean 'augment2.blur'?"),
        (["byol", "--set", "lr"], "expected key=value"),
        (["byol", "--backbone", "resnet81"], "did you mean 'resnet18'?"),
    ],
)
def test_bad_input_is_one_line(tmp_path, options, message):
    done = pretrain(*options, "--images", "digits", "--out", "e", cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not list(tmp_path.iterdir())
