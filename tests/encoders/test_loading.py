import hashlib
from pathlib import Path

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config, resolve_model_data_config
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from qscore._validate import QScoreError
from qscore.encoders import Encoder, Preprocessing, Source, load_encoder
from qscore.encoders.loading import _timm_preprocessing

TAG = "resnet18.a1_in1k"


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty download cache of torchvision, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints" / Path(ResNet18_Weights.DEFAULT.url).name


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty download cache of Hugging Face, offline; returns where timm's resnet18 would lie in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / f"models--timm--{TAG}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    return snapshot


def no_network(*_args, **_kwargs):
    raise OSError("Name or service not known")


def random_network(make):
    """A network with batch-norm statistics that are not their initial ones."""
    network = make().train()
    with torch.no_grad():
        network(torch.randn(4, 3, 64, 64))
    return network.eval()


@pytest.fixture
def photo(rng):
    return Image.fromarray(rng.integers(0, 256, size=(250, 300, 3)).astype("uint8"))


def test_torchvision_is_bit_identical(torch_home, photo):
    network = random_network(resnet18)
    torch.save(network.state_dict(), torch_home)
    encoder = load_encoder("torchvision:resnet18")
    network.fc = nn.Identity()
    with torch.no_grad():
        expected = network(ResNet18_Weights.DEFAULT.transforms()(photo)[None])
        assert torch.equal(encoder(encoder.preprocess(photo)[None]), expected)
    assert (encoder.dim, encoder.nonnegative) == (512, True)
    assert encoder.source == Source(
        "torchvision",
        "torchvision:resnet18",
        Preprocessing(crop=224, resize=256),
        "supervised",
        hashlib.sha256(torch_home.read_bytes()).hexdigest(),
        ("fc",),
    )


def test_torchvision_refuses_to_run_code(torch_home, tmp_path):
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"fc.weight": Payload()}, torch_home)
    with pytest.raises(QScoreError, match="weights could not be loaded"):
        load_encoder("torchvision:resnet18")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_torchvision_damaged_file(torch_home, content):
    torch_home.write_bytes(content)
    with pytest.raises(
        QScoreError, match="'torchvision:resnet18': its pre-trained weights could not be loaded: "
    ) as refused:
        load_encoder("torchvision:resnet18")
    assert "\n" not in str(refused.value)


def test_torchvision_without_network(torch_home, capsys):
    with pytest.raises(QScoreError, match="Name or service not known; check the name, the network connection"):
        load_encoder("torchvision:resnet18")
    assert capsys.readouterr().out == ""


def test_timm_is_bit_identical(hub, photo):
    network = random_network(lambda: timm.create_model("resnet18"))
    safetensors.torch.save_file(network.state_dict(), hub / "model.safetensors")
    encoder = load_encoder("timm:resnet18")
    transform = create_transform(**resolve_model_data_config(network), is_training=False)
    network.fc = nn.Identity()
    with torch.no_grad():
        expected = network(transform(photo)[None])
        assert torch.equal(encoder(encoder.preprocess(photo)[None]), expected)
    assert (encoder.dim, encoder.nonnegative) == (512, True)
    assert encoder.source == Source(
        "timm",
        f"timm:{TAG}",
        Preprocessing(crop=224, resize=235, interpolation="bicubic"),
        None,
        hashlib.sha256((hub / "model.safetensors").read_bytes()).hexdigest(),
        ("fc",),
    )


def test_timm_without_network(hub):
    with pytest.raises(QScoreError, match="'timm:resnet18': its pre-trained weights could not be loaded: ") as refused:
        load_encoder("timm:resnet18")
    assert "\n" not in str(refused.value)


def test_timm_weights_of_another_network(hub):
    safetensors.torch.save_file(timm.create_model("resnet26").state_dict(), hub / "model.safetensors")
    with pytest.raises(QScoreError, match="Error.* in loading state_dict|Missing|size mismatch"):
        load_encoder("timm:resnet18")


@pytest.mark.parametrize("name", ["vit_base_patch16_siglip_224", "convnext_tiny", "deit3_small_patch16_224"])
def test_timm_preprocessing_is_bit_identical(photo, name):
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = create_transform(**config, is_training=False)
    assert torch.equal(_timm_preprocessing(config, name)(photo), transform(photo))


@pytest.mark.parametrize("change", [{"input_size": (1, 32, 32)}, {"input_size": (3, 32, 64)}, {"crop_mode": "border"}])
def test_timm_preprocessing_that_is_not_ours_is_refused(change):
    config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg("resnet18").to_dict()) | change
    with pytest.raises(QScoreError, match="timm:x: expected square RGB input, centre-cropped or squashed, got"):
        _timm_preprocessing(config, "x")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("torchvision:resnet81", r"torchvision has no network of this name; did you mean 'resnet18'\?"),
        ("timm:hf-hub:someone/something", "timm has no network of this name"),
        ("resnet18", r"no such file or folder; did you mean 'torchvision:resnet18'\?"),
        ("timn:resnet18", r"did you mean 'timm:resnet18'\?"),
        ("small:convnet-8", "small networks have no pre-trained weights: train one first"),
        ("nowhere/encoder.safetensors", "expected torchvision:NAME, timm:NAME, hf:NAME, an encoder"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_unknown_specs(spec, message):
    with pytest.raises(QScoreError, match=message):
        load_encoder(spec)


def test_an_encoder_is_returned_as_it_is():
    encoder = Encoder(nn.Flatten(), Source("test", "flatten", Preprocessing(crop=2)))
    assert load_encoder(encoder) is encoder


def test_the_callers_random_numbers_stay(torch_home):
    torch.save(random_network(resnet18).state_dict(), torch_home)
    state = torch.get_rng_state()
    load_encoder("torchvision:resnet18")
    assert torch.equal(torch.get_rng_state(), state)
