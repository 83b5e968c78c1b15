import hashlib
import json

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qscore import __version__
from qscore._validate import QScoreError
from qscore.encoders import Preprocessing, build_backbone, load_encoder, measure_output, save_encoder

NAME = "small:convnet-4"
PREPROCESSING = Preprocessing(crop=8, resize=9, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))


@pytest.fixture(scope="module")
def backbone():
    """A network whose batch-norm statistics are not their initial ones."""
    network = build_backbone(NAME).train()
    with torch.no_grad():
        network(torch.randn(16, 3, 8, 8))
    return network.eval()


@pytest.fixture
def saved(backbone, tmp_path):
    return save_encoder(tmp_path, NAME, backbone.state_dict(), PREPROCESSING, method="simclr", extra={"epochs": 3})


def rewrite(file, *, tensors=lambda t: t, record=lambda r: r, key="qscore"):
    """Change the tensors or the description in a file that was saved."""
    with safetensors.safe_open(file, "pt") as archive:
        text = archive.metadata()["qscore"]
    text = json.dumps(record(json.loads(text)))
    safetensors.torch.save_file(tensors(safetensors.torch.load_file(file)), file, {key: text})


@pytest.mark.parametrize("what", ["file", "directory"])
def test_round_trip_is_bit_identical(saved, backbone, what):
    encoder = load_encoder(saved if what == "file" else str(saved.parent))
    x = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(encoder(x), backbone(x))
    loaded = encoder.backbone.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in backbone.state_dict().items())
    assert encoder.preprocess == PREPROCESSING
    assert (encoder.dim, encoder.nonnegative) == (32, True)
    assert encoder.source.format == "qscore" and encoder.source.method == "simclr"
    assert encoder.source.architecture == NAME
    assert encoder.source.sha256 == hashlib.sha256(saved.read_bytes()).hexdigest()


def test_files_on_disk(saved):
    assert sorted(file.name for file in saved.parent.iterdir()) == ["encoder.json", "encoder.safetensors"]
    readable = json.loads((saved.parent / "encoder.json").read_text())
    assert readable == {
        "version": 1,
        "architecture": NAME,
        "dim": 32,
        "nonnegative": True,
        "preprocessing": PREPROCESSING.to_json(),
        "method": "simclr",
        "software": f"qscore {__version__}",
        "extra": {"epochs": 3},
    }
    with safetensors.safe_open(saved, "pt") as archive:
        assert json.loads(archive.metadata()["qscore"]) == readable


def test_saving_twice_gives_the_same_bytes(saved, backbone, tmp_path):
    again = save_encoder(
        tmp_path / "again", NAME, backbone.state_dict(), PREPROCESSING, method="simclr", extra={"epochs": 3}
    )
    assert again.read_bytes() == saved.read_bytes()


def test_bare_names_are_stored_with_their_library(tmp_path):
    file = save_encoder(tmp_path, "resnet18", build_backbone("resnet18").state_dict(), Preprocessing(32), method=None)
    encoder = load_encoder(file)
    assert encoder.source.architecture == "torchvision:resnet18" and encoder.source.method is None


def test_the_callers_random_numbers_stay(saved, backbone, tmp_path):
    state = torch.get_rng_state()
    save_encoder(tmp_path / "b", NAME, backbone.state_dict(), PREPROCESSING, method=None)
    load_encoder(saved)
    assert torch.equal(torch.get_rng_state(), state)


def test_half_precision_weights_are_widened(saved, backbone):
    rewrite(saved, tensors=lambda t: {k: v.half() if v.is_floating_point() else v for k, v in t.items()})
    loaded = load_encoder(saved).backbone.state_dict()
    for name, value in backbone.state_dict().items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value.half().to(value.dtype) if value.is_floating_point() else value)


def test_a_failed_save_leaves_the_old_files(saved, backbone, monkeypatch):
    before = {file.name: file.read_bytes() for file in saved.parent.iterdir()}

    def disk_full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(QScoreError, match="cannot write .*: No space left on device"):
        save_encoder(saved.parent, NAME, backbone.state_dict(), Preprocessing(16), method="moco")
    assert {file.name: file.read_bytes() for file in saved.parent.iterdir()} == before


def test_save_refuses_weights_of_another_network(tmp_path):
    with pytest.raises(QScoreError, match="state_dict: the weights do not fit small:convnet-4"):
        save_encoder(tmp_path, NAME, build_backbone("small:convnet-5").state_dict(), PREPROCESSING, method=None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("extra", [{"path": object()}, {"loss": float("nan")}])
def test_save_refuses_what_json_cannot_hold(backbone, tmp_path, extra):
    with pytest.raises(QScoreError, match="extra: expected values that JSON can hold"):
        save_encoder(tmp_path, NAME, backbone.state_dict(), PREPROCESSING, method=None, extra=extra)
    assert list(tmp_path.iterdir()) == []


def test_save_into_a_file(saved, backbone):
    with pytest.raises(QScoreError, match="cannot write .*encoder.json: "):
        save_encoder(saved, NAME, backbone.state_dict(), PREPROCESSING, method=None)


KEY = "features.stage2.0.0.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != KEY}, f"'{KEY}' is missing$"),
        (lambda t: {k.replace(KEY, "conv"): v for k, v in t.items()}, f"'{KEY}' is missing; 'conv' is not part of it$"),
        (lambda t: t | {KEY: t[KEY][:-1]}, rf"'{KEY}' has real values of shape \(7, 4, 3, 3\) instead of"),
        (lambda t: t | {KEY: t[KEY].long()}, rf"'{KEY}' has integer values of shape \(8, 4, 3, 3\) instead of real"),
        (lambda t: t | {"fc.weight": t[KEY].clone()}, "'fc.weight' is not part of it$"),
        (lambda t: {f"module.{k}": v for k, v in t.items()}, "is missing.* more do not fit$"),
    ],
    ids=["missing", "renamed", "shape", "integers", "surplus", "prefix"],
)
def test_weights_that_do_not_fit_are_named(saved, change, message):
    rewrite(saved, tensors=change)
    with pytest.raises(QScoreError, match=message) as refused:
        load_encoder(saved)
    assert str(refused.value).startswith(f"{saved}: the weights do not fit small:convnet-4: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r | {"version": 2}, "expected format version 1, got 2; update qscore"),
        (lambda r: [r], "expected format version 1, got None"),
        (lambda r: r | {"dim": "32"}, "no valid 'dim'"),
        (lambda r: {k: v for k, v in r.items() if k != "method"}, "no valid 'method'"),
        (lambda r: r | {"dim": 33}, r"expected 33 features, .* the network gives 32, True"),
        (lambda r: r | {"nonnegative": False}, "expected 32 features, non-negative: False"),
        (lambda r: r | {"architecture": "small:convnet-999999"}, "backbone 'small:convnet-999999': expected"),
        (lambda r: r | {"preprocessing": {}}, "preprocessing: expected exactly the fields"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(saved, change, message):
    rewrite(saved, record=change)
    with pytest.raises(QScoreError, match=message):
        load_encoder(saved)


def test_a_safetensors_file_from_elsewhere(saved):
    rewrite(saved, key="format")
    with pytest.raises(QScoreError, match=r"its keys are those of no format known .*: features\.stage1"):
        load_encoder(saved)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_truncated_files(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(QScoreError, match=r"encoder\.safetensors: .*(an empty file|damaged)"):
        load_encoder(saved)


def test_a_directory_without_an_encoder(tmp_path):
    with pytest.raises(QScoreError, match=r"encoder\.safetensors: cannot read the encoder: No such file"):
        load_encoder(tmp_path)


def test_measured_size_is_the_preprocessings(backbone, saved):
    assert measure_output(backbone, PREPROCESSING.crop)[0] == load_encoder(saved).dim


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_mutations_load_or_are_refused(backbone, tmp_path, draw):
    file = save_encoder(tmp_path, NAME, backbone.state_dict(), PREPROCESSING, method="simclr")
    mutated = bytearray(file.read_bytes())
    header = int.from_bytes(mutated[:8], "little") + 8
    for _ in range(draw.draw(st.integers(1, 4))):
        last = draw.draw(st.sampled_from([7, header, len(mutated) - 1]))
        mutated[draw.draw(st.integers(0, last))] = draw.draw(st.integers(0, 255))
    file.write_bytes(mutated)
    try:
        assert load_encoder(file).dim > 0
    except QScoreError as error:
        assert "\n" not in str(error)
