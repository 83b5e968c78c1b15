"""Files that lie, are broken, or want to run code."""

import collections
import datetime
import io
import json
import os
import pickle
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import omegaconf
import pytest
import safetensors.torch
import torch
from reference.checkpoints import fc, mlp, narrow, prefixed
from torch import nn

from qscore._validate import QScoreError
from qscore.encoders import load_encoder
from qscore.encoders.reading import Foreign, read_checkpoint


@pytest.fixture(scope="module")
def weights():
    return narrow().state_dict()


class Payload:
    def __init__(self, function, *arguments):
        self.recipe = function, arguments

    def __reduce__(self):
        return self.recipe


def payloads(canary):
    command = f"touch {canary}"
    return {
        "os.system": Payload(os.system, command),
        "eval": Payload(eval, f"open({str(canary)!r}, 'w')"),
        "exec": Payload(exec, f"open({str(canary)!r}, 'w')"),
        "subprocess": Payload(subprocess.call, ["touch", str(canary)]),
        "open": Payload(open, str(canary), "w"),
        "getattr": Payload(Path.touch, canary),
        "torch.load": Payload(torch.load, str(canary)),
        "numpy": Payload(np.save, str(canary), np.zeros(1)),
        "nested": Payload(map, Payload(eval, f"open({str(canary)!r}, 'w')"), ["x"]),
    }


NAMES = list(payloads(Path("canary")))
PLACES = {
    "weights": lambda weights, evil: weights | {"evil": evil},
    "beside": lambda weights, evil: {"state_dict": prefixed(weights, "encoder_q."), "args": evil},
    "alone": lambda weights, evil: evil,
    "key": lambda weights, evil: [weights, evil],
}


def write(file, content, how):
    if how == "zip":
        torch.save(content, file)
    elif how == "legacy":
        torch.save(content, file, _use_new_zipfile_serialization=False)
    elif how == "protocol 4":
        torch.save(content, file, pickle_protocol=4)
    elif how == "pickle":
        file.write_bytes(pickle.dumps(content, protocol=2))
    elif how == "appended":  # harmless weights first, then what runs
        torch.save({"conv1.weight": torch.ones(1)}, file, _use_new_zipfile_serialization=False)
        file.write_bytes(file.read_bytes() + pickle.dumps(content, protocol=2))
    else:
        data = pickle.dumps(content, protocol=2)
        with tarfile.open(file, "w") as tar:
            for name in ("sys_info", "pickle", "tensors", "storages"):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("how", ["zip", "legacy", "protocol 4", "pickle", "appended", "tar"])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs(tmp_path, weights, name, how):
    canary = tmp_path / "canary"
    few = {key: weights[key] for key in list(weights)[:3]}
    for suffix, place in zip([".pth", ".ckpt", ".pt", ".safetensors"], PLACES.values(), strict=True):
        file = tmp_path / f"evil{suffix}"
        write(file, place(few, payloads(canary)[name]), how)
        with pytest.raises(QScoreError) as refused:
            load_encoder(file)
        assert not canary.exists() and not Path(f"{canary}.npy").exists()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs_in_directories(tmp_path, name):
    canary = tmp_path / "canary"
    torch.save({"weight": payloads(canary)[name]}, tmp_path / "pytorch_model.bin")
    for config in ({"model_type": "dinov2"}, {"architecture": "resnet18"}, {"model_type": "x", "auto_map": {}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(QScoreError, match=r"expected model.safetensors beside config.json"):
            load_encoder(tmp_path)
        assert not canary.exists()


def test_a_call_is_named(tmp_path, weights):
    write(tmp_path / "a.pth", weights | {"evil": payloads(tmp_path / "canary")["eval"]}, "zip")
    with pytest.raises(QScoreError, match="asks to call builtins.eval, and files that run code are refused; ask its"):
        load_encoder(tmp_path / "a.pth")
    write(tmp_path / "a.pth", weights | {"evil": payloads(tmp_path / "canary")["os.system"]}, "zip")
    with pytest.raises(QScoreError, match=r"asks for code to run \(it refers to posix.system\)"):
        load_encoder(tmp_path / "a.pth")


def test_what_others_allowed_is_not_called(tmp_path, weights):
    with torch.serialization.safe_globals([Path.touch, getattr]):
        torch.save(weights | {"evil": Payload(Path.touch, tmp_path / "canary")}, tmp_path / "a.pth")
        with pytest.raises(QScoreError, match="asks to call builtins.getattr"):
            load_encoder(tmp_path / "a.pth")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_objects_are_stood_in_for(tmp_path, zipped):
    content = {
        "settings": omegaconf.OmegaConf.create({"a": {"b": [1, 2]}}),
        "counts": collections.defaultdict(int, {"x": 1}),
        "queue": collections.deque([1, 2]),
        "array": np.arange(3.0),
        "number": np.float64(2),
        "path": Path("x"),
        "when": datetime.datetime(2020, 1, 1),
        "weights": torch.arange(3.0),
    }
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    allowed = set(torch.serialization.get_safe_globals())
    contents = read_checkpoint(tmp_path / "a.ckpt")
    assert set(torch.serialization.get_safe_globals()) == allowed
    assert torch.equal(contents.tree["weights"], torch.arange(3.0))
    assert dict(contents.tree["counts"]) == {"x": 1} and contents.tree["queue"] == [1, 2]
    for name in ("settings", "array", "number", "path", "when"):
        assert isinstance(contents.tree[name], Foreign)
    assert "omegaconf.dictconfig.DictConfig" in contents.foreign
    assert not any(name.startswith("torch.") for name in contents.foreign)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [False, True])
def test_whole_models_are_refused(tmp_path, zipped, inside):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    torch.save({"model": model} if inside else model, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        QScoreError, match=r"a whole model saved with torch.save\(model\), .* ask its publisher for a st"
    ):
        load_encoder(tmp_path / "m.pt")


def test_deepminds_file_names_the_converted_one(tmp_path):
    experiment = {"online_params": {"resnet/conv": {"w": np.zeros(3)}}, "online_state": {}}
    (tmp_path / "pretrain_res50x1.pkl").write_bytes(pickle.dumps({"experiment_state": experiment}))
    with pytest.raises(QScoreError, match="of DeepMind's BYOL there is a converted file: pretrain_res50x1.pth.tar"):
        load_encoder(tmp_path / "pretrain_res50x1.pkl")


def test_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}.")
        archive.writestr("m/constants.pkl", b"\x80\x02).")
    with pytest.raises(QScoreError, match="a TorchScript archive, which is code"):
        load_encoder(tmp_path / "m.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (
            b"\n<!DOCTYPE html><html>",
            "a web page or other text, not weights: the download failed; fetch the file again",
        ),
        (b'{"error": "no such file"}', "JSON text, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer"),
        (b"\x1f\x8b\x08\x00", "a gzip archive: unpack it"),
        (b"PK\x03\x04 and no more", "damaged, truncated or of another kind"),
        (b"\x89PNG\r\n", "damaged, truncated or of another kind"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ", "its keys are those of no format known .*: none at all"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, message):
    (tmp_path / "resnet50.pth").write_bytes(content)
    with pytest.raises(QScoreError, match=message):
        load_encoder(tmp_path / "resnet50.pth")


def test_a_zip_bomb(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b/data.pkl", bytes(1 << 28))
    assert (tmp_path / "b.pth").stat().st_size < 1 << 20
    with pytest.raises(QScoreError, match="bytes that unpack to 268,435,456: a zip bomb"):
        load_encoder(tmp_path / "b.pth")


def test_other_zips(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.pth", "w") as archive:
        archive.writestr("readme.txt", b"hello")
    with pytest.raises(QScoreError, match=r"a zip archive that torch.save did not write"):
        load_encoder(tmp_path / "b.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_truncated_files(tmp_path, weights, zipped, share):
    file = tmp_path / "t.pth"
    torch.save(weights, file, _use_new_zipfile_serialization=zipped)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(QScoreError, match="damaged, truncated"):
        load_encoder(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "the state of an optimiser and no weights"),
        ({"optimizer": {"state": {}}, "epoch": 3}, "the state of an optimiser and no weights"),
        ({}, "none at all"),
        ([1, 2], "expected a state dict, got a list"),
        (torch.ones(3), "expected a state dict, got a Tensor"),
        ({"embedder.embedder.convolution.weight": torch.ones(1)}, "weights from Hugging Face; give their directory"),
        (mlp("net.", 0, 1), r"no format known .*: net.0.weight, net.0.bias"),
    ],
)
def test_checkpoints_without_an_encoder(tmp_path, content, message):
    torch.save(content, tmp_path / "c.pth")
    with pytest.raises(QScoreError, match=message):
        load_encoder(tmp_path / "c.pth")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_of_unusual_kinds(tmp_path, weights):
    key = "layer1.0.conv1.weight"
    for other in (weights[key].to_sparse(), torch.quantize_per_tensor(weights[key], 0.1, 0, torch.qint8)):
        torch.save(weights | {key: other}, tmp_path / "c.pth")
        with pytest.raises(QScoreError, match=f"'{key}' has quantised or sparse values"):
            load_encoder(tmp_path / "c.pth")
    torch.save(weights | {key: torch.ones(1).expand(1 << 40)}, tmp_path / "c.pth")
    with pytest.raises(QScoreError, match="instead of real values of shape"):
        load_encoder(tmp_path / "c.pth")


def test_folders_and_unreadable_files(tmp_path, monkeypatch, weights):
    torch.save(weights, tmp_path / "c.pth")

    def denied(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(QScoreError, match="cannot read the checkpoint: Permission denied"):
        load_encoder(tmp_path / "c.pth")


def files(weights, folder):
    """One small file of each kind."""
    moco = {"state_dict": prefixed(weights, "module.encoder_q."), "args": omegaconf.OmegaConf.create({"a": 1})}
    torch.save(moco, folder / "zip")
    torch.save(moco, folder / "legacy", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(dict(weights), folder / "safetensors")
    return {name: (folder / name).read_bytes() for name in ("zip", "legacy", "safetensors")}


ROUNDS = [60, pytest.param(3000, marks=pytest.mark.slow)]


def accepted_or_refused(file):
    """Load; True where it went well. Anything but a refusal in one line is raised."""
    try:
        return load_encoder(file).dim > 0
    except QScoreError as error:
        assert "\n" not in str(error), error
        return False


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_mutated_bytes_load_or_are_refused(tmp_path, kind, rounds, rng):
    weights = {key: value for key, value in narrow().state_dict().items() if "layer1" in key or "1." not in key[:6]}
    data = files({key: value[:1].clone() if value.ndim else value for key, value in weights.items()}, tmp_path)[kind]
    texts = min(len(data), 40_000)  # the pickle or header, and for zip archives the directory at the end
    for _ in range(rounds):
        mutated = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            place = int(rng.integers(texts))
            mutated[-place - 1 if rng.random() < 0.3 else place] = int(rng.integers(256))
        if rng.random() < 0.1:
            del mutated[int(rng.integers(len(mutated))) :]
        (tmp_path / "mutated").write_bytes(mutated)
        accepted_or_refused(tmp_path / "mutated")


KEYS = ["conv1.weight", "fc.weight", "layer1.0.conv1.weight", "blocks.0.attn.qkv.weight", "stages.0.0.gamma", "module."]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_mutated_keys_load_or_are_refused(tmp_path, weights, rounds, rng):
    values = [
        lambda: torch.ones(()),
        lambda: torch.ones(0),
        lambda: torch.ones(tuple(rng.integers(0, 5, size=rng.integers(0, 6)))),
        lambda: torch.ones(3, dtype=torch.int64),
        lambda: torch.ones(2, dtype=torch.complex64),
        lambda: None,
        lambda: {"conv1.weight": torch.ones(2)},
    ]
    loaded = 0
    for _ in range(rounds):
        state = dict(weights)
        for _ in range(rng.integers(0, 3)):
            key = str(rng.choice([*state, *KEYS]))
            action = rng.integers(4)
            if action == 0:
                state.pop(key, None)
            elif action == 1:
                state[key] = values[rng.integers(len(values))]()
            elif action == 2:
                state[str(rng.choice(KEYS)) + key] = state.pop(key, None)
            else:
                state = prefixed(state, str(rng.choice(["backbone.", "encoder.", "module.", "_feature_blocks.", "."])))
        if rng.random() < 0.3:
            state = fc(state)
        content = {str(rng.choice(["state_dict", "model", "teacher", "x"])): state} if rng.random() < 0.7 else state
        torch.save(content, tmp_path / "mutated.pth")
        loaded += accepted_or_refused(tmp_path / "mutated.pth")
    assert loaded > rounds / 30


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("family", ["vit", "convnext"])
def test_other_families_with_odd_shapes(tmp_path, rng, rounds, family):
    keys = {
        "vit": "cls_token pos_embed patch_embed.proj.weight norm.weight blocks.0.attn.qkv.weight "
        "blocks.0.mlp.fc1.weight blocks.0.norm1.weight blocks.0.ls1.gamma register_tokens head.weight",
        "convnext": "stem.0.weight stages.0.blocks.0.gamma downsample_layers.0.0.weight features.1.0.block.0.bias",
    }[family].split()
    for _ in range(rounds):
        shapes = {key: tuple(int(n) for n in rng.integers(0, 70, size=rng.integers(0, 5))) for key in keys}
        state = {key: torch.ones(1).expand(shape or (1,)) for key, shape in shapes.items() if rng.random() < 0.8}
        torch.save(state, tmp_path / "odd.pth")
        assert not accepted_or_refused(tmp_path / "odd.pth")
