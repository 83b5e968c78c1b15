"""Directories and names of Hugging Face, by transformers and by timm, without a network."""

import hashlib
import json

import huggingface_hub
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import transformers
from PIL import Image

from qscore._validate import QScoreError
from qscore.encoders import Preprocessing, convert_encoder, load_encoder
from qscore.encoders.hub import to_preprocessing

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
WIDE = TINY | {"intermediate_size": 64}
RESNET = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}
SIZE = {"size": {"height": 32, "width": 32}}
T = transformers


def clip():
    text = T.CLIPTextConfig(**WIDE | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2})
    return T.CLIPModel(T.CLIPConfig(text_config=text.to_dict(), vision_config=T.CLIPVisionConfig(**WIDE).to_dict()))


def siglip():
    text = T.SiglipTextConfig(**WIDE | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2})
    vision = T.SiglipVisionConfig(**WIDE)
    return T.SiglipModel(T.SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))


def cls(out):
    return out.last_hidden_state[:, 0]


def pooled(out):
    return out.pooler_output.flatten(1)


# The model, its image processor, its vision tower, the representation, tokens before the patches'.
MODELS = {
    "dinov2": (lambda: T.Dinov2Model(T.Dinov2Config(**TINY)), SIZE, cls, 1),
    "dinov2-registers": (lambda: T.Dinov2WithRegistersModel(T.Dinov2WithRegistersConfig(**TINY)), SIZE, cls, 5),
    "dinov3": (lambda: T.DINOv3ViTModel(T.DINOv3ViTConfig(**WIDE, num_register_tokens=2)), SIZE, cls, 3),
    "ijepa": (lambda: T.IJepaModel(T.IJepaConfig(**WIDE)), SIZE, lambda out: out.last_hidden_state.mean(1), 0),
    "vit": (lambda: T.ViTModel(T.ViTConfig(**WIDE), add_pooling_layer=False), SIZE, cls, 1),
    "classifier": (lambda: T.ViTForImageClassification(T.ViTConfig(**WIDE)), SIZE, cls, 1),
    "siglip": (siglip, SIZE, pooled, 0),
    "clip": (clip, SIZE, pooled, 1),
    "resnet": (lambda: T.ResNetModel(T.ResNetConfig(**RESNET)), SIZE, pooled, None),
    "convnext": (lambda: T.ConvNextModel(T.ConvNextConfig(**RESNET, num_stages=4)), SIZE, pooled, None),
}
IGNORED = ("ignore::DeprecationWarning", "ignore::FutureWarning")
pytestmark = [pytest.mark.filterwarnings(text) for text in IGNORED]


@pytest.fixture(scope="module", params=list(MODELS))
def case(request, tmp_path_factory):
    make, processor, representation, prefix = MODELS[request.param]
    torch.manual_seed(0)
    model = make().eval()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    T.ViTImageProcessor(**processor).save_pretrained(folder)
    tower = getattr(model, "vision_model", getattr(model, "vit", model))
    return folder, tower, representation, prefix


def run(tower, x):
    with torch.no_grad():
        return tower(pixel_values=x)


def test_directories_load_offline(case):
    folder, tower, representation, _ = case
    encoder = load_encoder(folder)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(encoder(x), representation(run(tower, x)))
    half = Preprocessing(32, 32, squash=True, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert encoder.preprocess == half
    assert encoder.source.format == "Hugging Face"
    assert encoder.source.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert encoder.nonnegative == (encoder.source.config["model_type"] == "resnet")
    assert torch.equal(load_encoder(folder / "model.safetensors")(x), encoder(x))


def test_converted_they_are_the_same(case, tmp_path):
    folder, _, _, _ = case
    encoder = load_encoder(folder)
    file = convert_encoder(encoder, tmp_path / "encoder.safetensors")
    again = load_encoder(file)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), encoder(x))
    assert again.source.architecture == encoder.source.architecture and again.preprocess == encoder.preprocess
    assert "text" not in " ".join(again.state_dict())


def test_tokens(case):
    folder, tower, _, prefix = case
    x = torch.randn(2, 3, 32, 32)
    if prefix is None:
        with pytest.raises(QScoreError, match="this network has none"):
            load_encoder(folder, tokens="patches")
        return
    tokens = run(tower, x).last_hidden_state
    with torch.no_grad():
        assert torch.equal(load_encoder(folder, tokens="patches")(x), tokens[:, prefix:].mean(1))
        if prefix:
            both = torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], 1)
            assert torch.equal(load_encoder(folder, tokens="both")(x), both)
        else:
            with pytest.raises(QScoreError, match="no class token; use 'patches'"):
                load_encoder(folder, tokens="both")


def save(folder, model=None, processor=None):
    model = model or T.Dinov2Model(T.Dinov2Config(**TINY))
    model.save_pretrained(folder)
    (processor or T.ViTImageProcessor(**SIZE)).save_pretrained(folder)
    return folder


def damage(folder, change):
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    safetensors.torch.save_file(change(weights), file, {"format": "pt"})


KEY = "encoder.layer.0.norm1.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda w: {key: value for key, value in w.items() if "0.norm1.weight" not in key},
        lambda w: {key.replace("0.norm1.weight", "0.norm_1.weight"): value for key, value in w.items()},
        lambda w: {key: value[:-1].clone() if "0.norm1.weight" in key else value for key, value in w.items()},
    ],
    ids=["missing", "renamed", "shape"],
)
def test_a_weight_that_does_not_fit_is_named(tmp_path, change):
    damage(save(tmp_path), change)
    with pytest.raises(QScoreError, match=r"0\.norm1\.weight") as refused:
        load_encoder(tmp_path)
    assert "\n" not in str(refused.value)


def test_other_parts_are_dropped_and_named(tmp_path):
    save(tmp_path, clip())
    assert {"text_model", "logit_scale"} <= set(load_encoder(tmp_path).source.dropped)


def test_half_precision_is_widened(tmp_path):
    save(tmp_path, T.Dinov2Model(T.Dinov2Config(**TINY)).half())
    assert {value.dtype for value in load_encoder(tmp_path).state_dict().values()} == {torch.float32}


def test_images_larger_than_the_positions(tmp_path):
    for model in (T.Dinov2Model(T.Dinov2Config(**TINY)), T.ViTModel(T.ViTConfig(**WIDE)), siglip()):
        save(tmp_path, model, T.ViTImageProcessor(size={"height": 48, "width": 48}))
        assert load_encoder(tmp_path).preprocess.crop == 48


def test_layers(tmp_path):
    encoder = load_encoder(save(tmp_path), layer="model.encoder.layer.0", tokens="patches")
    assert encoder.dim == 32 and encoder.source.layer == "model.encoder.layer.0"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "config.json is damaged"),
        ("config.json", "{}", "could not be loaded"),
        ("config.json", '{"model_type": "no_such_thing"}', "could not be loaded"),
        ("config.json", '{"model_type": "bert"}', "a network of type 'bert' .*: expected one of"),
        ("config.json", '{"architecture": "no_such_thing"}', "could not be loaded"),
        ("config.json", "[]", "could not be loaded"),
        ("preprocessor_config.json", "{", "could not be loaded"),
        ("model.safetensors", "<html>", "could not be loaded"),
    ],
)
def test_damaged_directories(tmp_path, file, content, message):
    (save(tmp_path) / file).write_text(content)
    with pytest.raises(QScoreError, match=message) as refused:
        load_encoder(tmp_path)
    assert "\n" not in str(refused.value)


def test_code_from_the_hub_is_refused(tmp_path):
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "own"}
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoConfig": "evil.C", "AutoModel": "e.M"}})
    )
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    with pytest.raises(QScoreError, match="could not be loaded"):
        load_encoder(tmp_path)
    assert not (tmp_path / "canary").exists()


def test_encoders_that_mask_at_random_are_refused(tmp_path):
    save(tmp_path, T.ViTMAEModel(T.ViTMAEConfig(**WIDE)))
    with pytest.raises(QScoreError, match="vit_mae hides random patches"):
        load_encoder(tmp_path)


def test_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(QScoreError, match="encoder 'hf:nobody/nothing': .*; a gated model also needs") as refused:
        load_encoder("hf:nobody/nothing")
    assert "\n" not in str(refused.value)


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(QScoreError, match=r'pip install "qscore\[hf\]"'):
        load_encoder("hf:facebook/dinov2-small")


@pytest.mark.parametrize("option", ["method", "stem_padding"])
def test_options_for_other_files(tmp_path, option):
    with pytest.raises(QScoreError, match="takes no such option"):
        load_encoder(save(tmp_path), **{option: "dino" if option == "method" else 1})


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 320, 3)).astype("uint8"))


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        (T.BitImageProcessor(), {"resize": 224, "crop": 224, "interpolation": "bicubic", "squash": False}),
        (
            T.BitImageProcessor(size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}),
            {"resize": 256, "crop": 224},
        ),
        (T.SiglipImageProcessor(), {"resize": 224, "crop": 224, "squash": True, "interpolation": "bicubic"}),
        (T.ConvNextImageProcessor(size={"shortest_edge": 224}), {"resize": 256, "crop": 224, "squash": False}),
        (T.ConvNextImageProcessor(size={"shortest_edge": 384}), {"resize": 384, "crop": 384, "squash": True}),
        (T.ViTImageProcessor(do_normalize=False), {"mean": (0, 0, 0), "std": (1, 1, 1)}),
    ],
)
def test_image_processors(processor, expected):
    preprocessing = to_preprocessing(processor.to_dict())
    assert {name: getattr(preprocessing, name) for name in expected} == expected
    theirs = processor(PHOTO, return_tensors="pt")["pixel_values"][0]
    difference = (preprocessing(PHOTO) - theirs).abs() * min(preprocessing.std)
    assert difference.max() <= 2.01 / 255  # they resize tensors, we resize images as the authors did


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 224}},
        {"size": {"height": 32, "width": 64}},
        {"size": {"height": 32, "width": 32}, "rescale_factor": 1.0},
        {"size": {"height": 32, "width": 32}, "do_pad": True},
        {"size": {"longest_edge": 32}},
    ],
)
def test_image_processors_that_do_more(settings):
    with pytest.raises(QScoreError, match="does more than resize, crop and normalise"):
        to_preprocessing(settings)


def timm_directory(folder, name="resnet18", **config):
    network = timm.create_model(name, **config.get("model_args", {})).eval()
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    settings = {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 1.0}
    record = {"architecture": name, "pretrained_cfg": settings | {"classifier": "fc", "interpolation": "bilinear"}}
    (folder / "config.json").write_text(json.dumps(record | config))
    return network


def test_timm_directories(tmp_path):
    network = timm_directory(tmp_path)
    encoder = load_encoder(tmp_path)
    network.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(encoder(x), network(x))
    assert encoder.preprocess == Preprocessing(64, 64, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert encoder.source.sha256 == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    damage(tmp_path, lambda w: {key: value for key, value in w.items() if key != "bn1.weight"})
    with pytest.raises(QScoreError, match="bn1.weight"):
        load_encoder(tmp_path)


def test_timm_directories_convert_or_are_refused(tmp_path):
    timm_directory(tmp_path)
    convert_encoder(load_encoder(tmp_path), tmp_path / "c.safetensors")
    timm_directory(tmp_path, model_args={"output_stride": 8})
    with pytest.raises(QScoreError, match="would not give the same representations"):
        convert_encoder(load_encoder(tmp_path), tmp_path / "d.safetensors")
    assert not (tmp_path / "d.safetensors").exists()


def test_timm_directories_never_load_in_part(tmp_path):
    """timm is not strict where the numbers of classes differ."""
    settings = {"num_classes": 1000, "classifier": "fc", "first_conv": "conv1", "input_size": [3, 64, 64]}
    settings |= {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 1.0, "interpolation": "bilinear"}
    config = {"num_classes": 1000, "model_args": {"num_classes": 10}, "pretrained_cfg": settings}
    network = timm_directory(tmp_path, **config)
    network.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    encoder = load_encoder(tmp_path)
    with torch.no_grad():
        assert torch.equal(encoder(x), network(x))
    damage(tmp_path, lambda w: {key: value for key, value in w.items() if not key.startswith("layer4.")})
    with pytest.raises(QScoreError, match="layer4"):
        load_encoder(tmp_path)


def test_timm_directories_read_their_one_file(tmp_path):
    network = timm_directory(tmp_path)
    torch.save(network.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").rename(tmp_path / "x.safetensors")
    with pytest.raises(QScoreError, match=r"expected model.safetensors beside config.json"):
        load_encoder(tmp_path)


def test_weights_that_are_not_finite_are_refused_in_directories(tmp_path):
    save(tmp_path)
    damage(tmp_path, lambda w: {key: value.fill_(float("nan")) for key, value in w.items()})
    with pytest.raises(QScoreError, match="infinite or not a number"):
        load_encoder(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "dpt", "use_pretrained_backbone": True, "backbone": "a/b"}, "a network of type 'dpt'"),
        ({"model_type": "timm_backbone", "backbone": "local-dir:/"}, "a network of type 'timm_backbone'"),
        ({"use_pretrained_backbone": True, "backbone": "a/b"}, "name another network: "),
        ({"num_hidden_layers": 100_000}, "ask for num_hidden_layers=100000: too many"),
        ({"hidden_size": 1 << 24}, "do not fit|cannot be used"),
    ],
)
def test_settings_in_a_file_of_ours_reach_nothing_else(tmp_path, monkeypatch, change, message):
    (tmp_path / "source").mkdir()
    file = convert_encoder(load_encoder(save(tmp_path / "source")), tmp_path / "e.safetensors")
    with safetensors.safe_open(file, framework="pt") as archive:
        record = json.loads(archive.metadata()["qscore"])
    tensors = safetensors.torch.load_file(file)
    record["config"] |= change
    safetensors.torch.save_file(tensors, file, metadata={"qscore": json.dumps(record)})
    monkeypatch.setattr("socket.socket.connect", None)
    with pytest.raises(QScoreError, match=message):
        load_encoder(file)
