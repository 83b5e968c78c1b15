"""What two publishers write alike: refused, or loaded with a note, and settled by an option."""

import json
import time

import pytest
import torch
from reference.checkpoints import cifar, mlp, narrow, noise, prefixed, small_vit, solo
from typer.testing import CliRunner

from qscore._validate import QScoreError
from qscore.cli.app import app
from qscore.encoders import Preprocessing, build_backbone, load_encoder
from qscore.encoders.released import _hints


@pytest.fixture(scope="module")
def weights():
    return narrow().state_dict()


@pytest.fixture
def save(tmp_path):
    def write(content, name="checkpoint.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write


def notes(encoder):
    return " ".join(encoder.source.notes)


def without(weights, *keys):
    return {key: value for key, value in weights.items() if key not in keys}


def test_two_names_of_the_same_weights_are_refused(weights, save):
    with pytest.raises(QScoreError, match=r"'conv1.weight' and '0.weight' are two names of the same weights"):
        load_encoder(save(weights | {"0.weight": weights["conv1.weight"] + 1}))


# Attention heads


@pytest.mark.parametrize("heads", [6, 12])
@pytest.mark.parametrize("where", ["model", "lightning"])
def test_heads_of_small_vits_must_be_said(save, heads, where):
    network = small_vit(num_heads=heads).eval()
    flat = network.state_dict()
    file = save({"model": flat} if where == "model" else {"state_dict": prefixed(flat, "backbone.")})
    with pytest.raises(QScoreError, match=r"with heads= or --heads \(6 or 12\)"):
        load_encoder(file)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_encoder(file, heads=heads)(x), network(x))


def test_heads_of_huge_vits_must_be_said(save):
    flat = build_backbone("vit:1280x1-h16-m64-p8-s32").state_dict()
    with pytest.raises(QScoreError, match=r"--heads \(16 or 20\)"):
        load_encoder(save(flat))
    assert load_encoder(save(flat), heads=16).source.architecture == "vit:1280x1-h16-m64-p8-s32"


def test_solo_learns_moco_v3_looks_like_its_byol(save):
    flat = small_vit().state_dict()
    momentum = prefixed(noise(flat), "momentum_backbone.")
    file = save(solo(flat, mlp("projector.", 0), mlp("predictor.", 0), momentum))
    with pytest.raises(QScoreError, match="--heads"):
        load_encoder(file)
    assert "-h12-" in load_encoder(file, heads=12).source.architecture


@pytest.mark.parametrize(
    ("heads", "message"), [(7, "384 features are no multiple"), (0, "a number from 1"), ("6", "a number")]
)
def test_heads_that_cannot_be(save, heads, message):
    with pytest.raises(QScoreError, match=message):
        load_encoder(save(small_vit().state_dict()), heads=heads)


def test_heads_of_a_resnet_are_refused(weights, save):
    with pytest.raises(QScoreError, match="no vision transformer"):
        load_encoder(save(weights), heads=6)


def test_a_flat_vit_loads_as_dinos_with_a_note(save):
    file = save(small_vit().state_dict())
    encoder = load_encoder(file)
    assert (encoder.source.method, "-h6-" in encoder.source.architecture) == ("dino", True)
    assert "timm" in notes(encoder) and "--preprocessing minus-one-one" in notes(encoder)
    assert "--preprocessing" not in notes(load_encoder(file, preprocessing="imagenet"))


# The padding of a 3x3 stem


def stem_file(prefix, *others):
    extra = {key: value for other in others for key, value in other.items()}
    return {"state_dict": prefixed(cifar().state_dict(), prefix) | extra}


@pytest.mark.parametrize(
    ("prefix", "heads"),
    [
        ("backbone.", ("classifier.",)),
        ("backbone.", ("projector.",)),
        ("encoder.", ("projector.", "predictor.")),
        ("encoder.", ("classifier.",)),
    ],
)
def test_what_may_not_be_solo_learns_needs_its_padding(weights, save, prefix, heads):
    others = [mlp(head, 0) for head in heads]
    with pytest.raises(QScoreError, match="--stem-padding"):
        load_encoder(save(stem_file(prefix, *others)))
    for padding in (1, 2):
        found = load_encoder(save(stem_file(prefix, *others)), stem_padding=padding).source.architecture
        assert found.endswith(f"-cifar{padding}")
    large = {"state_dict": prefixed(weights, prefix) | {key: value for other in others for key, value in other.items()}}
    assert load_encoder(save(large)).source.method is None


# Mean and std


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100", None])
def test_solo_learn_on_cifar_is_noted(save, dataset):
    file = solo(cifar().state_dict(), mlp("projector.", 0))
    file["hyper_parameters"] = {"dataset": dataset} if dataset else {}
    encoder = load_encoder(save(file))
    assert encoder.preprocess == Preprocessing(32, 32)
    assert "give --preprocessing cifar" in notes(encoder)
    assert (f"its stored settings say dataset={dataset}, where" in notes(encoder)) == (dataset is not None)
    assert "give --preprocessing" not in notes(load_encoder(save(file), preprocessing="cifar"))


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("cifar", (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
        ("zero-one", (0.0,) * 3, (1.0,) * 3),
        ("minus-one-one", (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_named_preprocessing(weights, save, name, mean, std):
    file = save(weights)
    assert load_encoder(file, preprocessing=name).preprocess == Preprocessing(224, 256, mean=mean, std=std)
    done = CliRunner().invoke(app, ["inspect", str(file), "--preprocessing", name, "--json"])
    assert json.loads(done.stdout)["preprocessing"]["mean"] == list(mean)


def test_unknown_names_of_preprocessing(weights, save):
    with pytest.raises(QScoreError, match=r"expected a Preprocessing or one of imagenet, .*did you mean 'cifar'"):
        load_encoder(save(weights), preprocessing="cifar1")


def test_the_verbs_take_both(save, tmp_path):
    file, out = str(save({"model": small_vit().state_dict()})), str(tmp_path / "e.safetensors")
    options = ["--heads", "12", "--preprocessing", "zero-one"]
    assert CliRunner().invoke(app, ["convert", file, *options, "--out", out]).exit_code == 0
    encoder = load_encoder(out)
    assert "-h12-" in encoder.source.architecture and encoder.preprocess.std == (1.0, 1.0, 1.0)
    assert "--heads" in CliRunner().invoke(app, ["embed", "--help"], env={"COLUMNS": "200"}).stdout


# Settings, methods, containers


def test_settings_that_share_their_parts_are_read_once(tmp_path):
    node = {"method": "vicreg"}
    for _ in range(5):
        node = {str(k): node for k in range(60)}
    start = time.perf_counter()
    assert "its stored settings say method=vicreg" in list(_hints(tmp_path / "x.pth", {"args": node}))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("method", ["moco", "swav", "simclr"])
def test_vissl_is_of_the_method_that_one_says(weights, save, method):
    file = save({"model_state_dict": prefixed(weights, "_feature_blocks.")})
    assert load_encoder(file).source.method is None
    assert load_encoder(file, method=method).source.method == method


def test_lightly_is_of_the_method_that_one_says(weights, save):
    file = save({"state_dict": prefixed(weights, "backbone.") | prefixed(noise(weights), "teacher_backbone.")})
    assert load_encoder(file, method="BYOL").source.method == "byol"


def test_two_state_dicts_are_named(weights, save):
    with pytest.raises(QScoreError) as refused:
        load_encoder(save({"state_dict": weights, "model": weights}))
    message = str(refused.value)
    assert "at state_dict" in message and "at model" in message
    assert "save the one that you mean in a file of its own" in message and "method=" not in message


def test_a_lone_student_names_what_to_say(weights, save):
    with pytest.raises(QScoreError, match="give --method 'DINO student'"):
        load_encoder(save({"student": weights}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(weights, save, value):
    damaged = weights | {"bn1.running_var": weights["bn1.running_var"] * value}
    with pytest.raises(QScoreError, match=r"'module.bn1.running_var' holds values that are infinite or not a number"):
        load_encoder(save(prefixed(damaged, "module.")))


def test_dinos_resnet_is_evaluated_as_dino_does(weights, save):
    assert load_encoder(save({"teacher": weights})).preprocess.interpolation == "bicubic"
    assert load_encoder(save(weights)).preprocess.interpolation == "bilinear"


def test_padding_of_a_classified_module_with_the_large_stem(weights, save):
    encoder = load_encoder(save({"state_dict": prefixed(weights, "backbone.") | mlp("classifier.", 0)}))
    assert (encoder.source.format, encoder.source.dropped) == ("Lightning module", ("classifier",))
