import json
import os

import pytest
import torch
from reference.checkpoints import LAYOUTS, fc, narrow, prefixed
from typer.testing import CliRunner

from qscore.cli.app import app, main
from qscore.encoders import load_encoder


@pytest.fixture(autouse=True)
def leave_logging_alone(monkeypatch):
    monkeypatch.setattr("qscore.cli.verb._send_to_standard_error", lambda _: None)


@pytest.fixture(scope="module")
def weights():
    return narrow().state_dict()


@pytest.fixture
def checkpoint(tmp_path, weights):
    torch.save({"state_dict": prefixed(weights, "module.encoder_q.")}, tmp_path / "moco.pth.tar")
    return str(tmp_path / "moco.pth.tar")


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize("verb", ["inspect", "convert"])
def test_help_has_an_example(verb):
    assert f"qscore {verb}" in run(verb, "--help").stdout.split("Example:")[1]


def test_inspect_says_what_it_is(checkpoint):
    done = run("inspect", checkpoint)
    assert done.exit_code == 0
    for line in (
        "format: MoCo v2",
        "method: moco",
        "architecture: resnet:18-w16, 702,096 parameters",
        "representation: 128 features, never negative",
        "prefix: module.encoder_q.",
    ):
        assert line in done.stdout
    assert "preprocessing: resize 256 bilinear, crop 224, mean (0.485, 0.456, 0.406), std (0.229, 0.224" in done.stdout


def test_inspect_for_machines(checkpoint):
    data = json.loads(run("inspect", checkpoint, "--json").stdout)
    assert (data["format"], data["method"], data["dim"], data["parameters"]) == ("MoCo v2", "moco", 128, 702096)
    assert data["nonnegative"] is True and data["preprocessing"]["crop"] == 224


@pytest.mark.parametrize("name", [name for name, layout in LAYOUTS.items() if layout.network is narrow])
def test_rows_that_can_be_told_are_named_without_a_flag(tmp_path, weights, name):
    layout = LAYOUTS[name]
    torch.save(layout.write(weights), tmp_path / "checkpoint.pth")
    done = run("inspect", tmp_path / "checkpoint.pth", "--json")
    if layout.ask is None:
        assert json.loads(done.stdout)["format"] == layout.format
    elif done.exit_code:
        assert "say which with method= or --method" in " ".join(done.stderr.split())
    else:  # unasked, it is one of a pair, or of three that behave alike
        assert json.loads(done.stdout)["format"] in ("DINO teacher", "DINO or VICReg or Barlow Twins")


def test_convert_writes_what_loads_to_the_same(tmp_path, weights):
    torch.save(fc(weights), tmp_path / "byol.pth")
    out = tmp_path / "byol.safetensors"
    done = run("convert", tmp_path / "byol.pth", "--method", "byol", "--out", out, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout) == {"encoder": str(out)}
    before, after = load_encoder(tmp_path / "byol.pth", method="byol"), load_encoder(out)
    x = torch.randn(2, 3, 65, 65)
    with torch.no_grad():
        assert torch.equal(before(x), after(x))
    assert after.preprocess == before.preprocess and after.source.method == "byol"
    assert after.source.notes == (f"converted from: BYOL, converted, SHA-256 {before.source.sha256}",)


def test_convert_keeps_the_layer(tmp_path, checkpoint):
    assert run("convert", checkpoint, "--layer", "layer2", "--out", tmp_path / "e.safetensors").exit_code == 0
    encoder = load_encoder(tmp_path / "e.safetensors")
    assert (encoder.dim, encoder.source.layer) == (32, "layer2")
    assert load_encoder(tmp_path / "e.safetensors", layer="layer3").dim == 64


def test_convert_overwrites_only_when_told(tmp_path, checkpoint):
    out = tmp_path / "e.safetensors"
    assert run("convert", checkpoint, "--out", out).exit_code == 0
    done = run("convert", checkpoint, "--out", out)
    assert done.exit_code == 1 and "overwrite it with --overwrite" in " ".join(done.stderr.split())
    assert run("convert", checkpoint, "--out", out, "--overwrite").exit_code == 0


def test_bad_input_is_one_line(tmp_path):
    (tmp_path / "x.pth").write_text("<html>")
    done = run("inspect", tmp_path / "x.pth")
    assert done.exit_code == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert run("inspect", tmp_path / "x.pth", "--stem-padding", "3").exit_code == 2


@pytest.mark.parametrize("before", [None, "debug"])
def test_a_hub_that_is_out_of_reach_is_told_once(monkeypatch, before):
    monkeypatch.delenv("HF_HUB_VERBOSITY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if before:
        monkeypatch.setenv("HF_HUB_VERBOSITY", before)
    monkeypatch.setitem(main.__globals__, "app", lambda: None)
    main()
    assert os.environ["HF_HUB_VERBOSITY"] == (before or "error")  # at its own level, each attempt is a warning
