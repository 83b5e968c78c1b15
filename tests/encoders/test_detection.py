"""What the keys settle, what they do not, and what the caller then says."""

import argparse

import pytest
import safetensors.torch
import timm
import torch
from reference.checkpoints import cifar, dinov2, fc, mlp, narrow, noise, prefixed, small_vit, solo
from torch import nn
from torchvision.models import convnext_tiny

from qscore._validate import QScoreError
from qscore.encoders import Preprocessing, build_backbone, load_encoder


def stirred(network):
    """The network with batch-norm statistics and parameters that are not their initial ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand(value.shape, generator=generator) * (2 if "var" in name else 1))
    return network.eval()


@pytest.fixture(scope="module")
def source():
    return stirred(narrow())


@pytest.fixture
def weights(source):
    return {key: value.clone() for key, value in source.state_dict().items()}


@pytest.fixture
def save(tmp_path):
    def write(content, name="checkpoint.pth", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return write


def same_output(encoder, network, size=None):
    x = torch.rand(2, 3, *[size or encoder.preprocess.crop] * 2)
    with torch.no_grad():
        return torch.equal(encoder(x), network(x))


def test_a_classified_resnet_is_refused_with_the_list(weights, save):
    with pytest.raises(QScoreError) as refused:
        load_encoder(save(fc(weights), "byol_res50.pth"))
    message = str(refused.value)
    assert "torchvision (resnet:18-w16, ImageNet's mean and std)" in message
    assert "SimCLR, converted (resnet:18-w16, input in [0, 1])" in message
    assert "BYOL, converted (resnet:18-w16-same, ImageNet's mean and std)" in message
    assert "('supervised', 'simclr', 'byol')" in message
    assert "the file's name says byol: a hint, no proof" in message


def test_a_method_that_the_file_cannot_be_is_refused(weights, save):
    with pytest.raises(QScoreError, match="method 'swav': this file may be torchvision .*SimCLR.*BYOL"):
        load_encoder(save(fc(weights)), method="swav")
    with pytest.raises(QScoreError, match=r"did you mean 'vicreg'\?"):
        load_encoder(save(weights), method="vicregg")


def test_methods_may_be_asked_for_by_format_and_in_any_case(weights, save):
    assert load_encoder(save(fc(weights)), method="BYOL, converted").source.method == "byol"
    assert load_encoder(save(fc(weights)), method="Supervised").source.method == "supervised"


@pytest.mark.parametrize("padding", [1, 2])
def test_a_cifar_stem_without_a_known_format_needs_its_padding(save, padding):
    network = stirred(cifar())
    network.conv1.padding = (padding, padding)
    file = save(network.state_dict())
    with pytest.raises(QScoreError, match="give the padding of its 3x3 stem with stem_padding="):
        load_encoder(file)
    encoder = load_encoder(file, stem_padding=padding)
    assert same_output(encoder, network)
    assert encoder.preprocess == Preprocessing(crop=32, resize=32)
    assert f"stem: 3x3, stride 1, padding {padding}, no max-pool" in encoder.source.notes


def test_the_stems_padding_overrules_the_format(save):
    network = stirred(cifar())
    network.conv1.padding = (1, 1)
    file = save(solo(network.state_dict(), mlp("projector.", 0)))
    assert same_output(load_encoder(file, stem_padding=1), network)


@pytest.mark.parametrize(("padding", "message"), [(1, "its stem is no 3x3 one"), (3, "expected 1 or 2, got 3")])
def test_a_padding_for_another_stem_is_refused(weights, save, padding, message):
    with pytest.raises(QScoreError, match=message):
        load_encoder(save(weights), stem_padding=padding)


@pytest.mark.parametrize("wrapper", ["module.module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_are_taken_off(weights, source, save, wrapper):
    file = save({"state_dict": prefixed(weights, wrapper + "encoder_q.") | mlp(wrapper + "encoder_q.fc.", 0, 2)})
    encoder = load_encoder(file)
    assert encoder.source.format == "MoCo v2" and encoder.source.dropped == ("encoder_q.fc",)
    assert f"prefix: {wrapper}encoder_q." in encoder.source.notes
    assert same_output(encoder, source, 64)


def test_a_compiled_encoder_inside_a_module(weights, source, save):
    assert same_output(load_encoder(save({"state_dict": prefixed(weights, "backbone._orig_mod.")})), source, 64)


def test_the_same_key_twice_is_refused(weights, save):
    with pytest.raises(QScoreError, match=r"'conv1.weight' and 'module.conv1.weight' are the same key"):
        load_encoder(save(weights | prefixed(weights, "module.")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(weights, save, dtype):
    other = {key: value.to(dtype) if value.is_floating_point() else value for key, value in weights.items()}
    loaded = load_encoder(save(other)).backbone.state_dict()
    assert all(torch.equal(loaded[key], value.to(loaded[key].dtype)) for key, value in other.items())
    assert loaded["conv1.weight"].dtype == torch.float32


def test_files_without_counters_of_training_steps(weights, source, save):
    old = {key: value for key, value in weights.items() if "num_batches" not in key}
    assert same_output(load_encoder(save(old)), source, 64)
    one = {key: value for key, value in weights.items() if key != "bn1.num_batches_tracked"}
    with pytest.raises(QScoreError, match="'bn1.num_batches_tracked' is missing"):
        load_encoder(save(one))


@pytest.mark.parametrize("container", ["zip", "legacy", "safetensors"])
def test_every_container_gives_the_same(weights, source, save, tmp_path, container):
    if container == "safetensors":
        safetensors.torch.save_file(weights, tmp_path / "weights.bin")  # names prove nothing
        encoder = load_encoder(tmp_path / "weights.bin")
    else:
        encoder = load_encoder(save(weights, _use_new_zipfile_serialization=container == "zip"))
    assert same_output(encoder, source, 64)


def test_momentum_encoders_are_never_mixed_in(weights, save):
    momentum = prefixed(noise(weights), "module.encoder_k.")
    with pytest.raises(QScoreError, match="its keys are those of no format known|is missing"):
        load_encoder(save({"state_dict": momentum}))
    encoder = load_encoder(save({"state_dict": prefixed(weights, "module.encoder_q.") | momentum}))
    loaded = encoder.backbone.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in weights.items())
    assert encoder.source.dropped == ("encoder_k",)
    assert any(note.startswith("dropped: encoder_k (momentum encoder, ") for note in encoder.source.notes)


def test_stored_settings_are_hints(weights, save):
    args = argparse.Namespace(arch="resnet50", method="vicreg", lr=0.1)
    notes = load_encoder(save({"state_dict": weights, "args": args}, "dino.pth")).source.notes
    assert "hint: the file's name says dino" in notes
    assert "hint: its stored settings say arch=resnet50, method=vicreg" in notes
    assert "not read: objects of argparse.Namespace" in notes
    notes = load_encoder(save(solo(weights, mlp("projector.", 0)))).source.notes
    assert "hint: its stored settings say method=any, dataset=cifar10" in notes


def test_the_publishers_preprocessing_may_be_replaced(weights, save):
    own = Preprocessing(crop=48, resize=64, mean=(0.1, 0.2, 0.3))
    encoder = load_encoder(save(weights), preprocessing=own)
    assert encoder.preprocess == encoder.source.preprocessing == own


@pytest.mark.parametrize(
    "name", ["34", "101", "50-w128", "18-cifar1", "50-b128", "50-b4-g32", "10-w16-cifar2", "50-same"]
)
def test_architectures_are_inferred(name, save):
    with torch.device("meta"):
        network = build_backbone(f"resnet:{name}")
    from qscore.encoders.resnets import infer_resnet

    padding = int(name.partition("cifar")[2] or 0) or None
    found = infer_resnet(network.state_dict(), cifar_padding=padding, same="same" in name).name
    with torch.device("meta"):
        again = build_backbone(found)
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    assert shapes == {key: value.shape for key, value in again.state_dict().items()}
    assert found == {
        "34": "torchvision:resnet34",
        "101": "torchvision:resnet101",
        "50-b128": "torchvision:wide_resnet50_2",
        "50-b4-g32": "torchvision:resnext50_32x4d",
    }.get(name, f"resnet:{name}")


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_our_resnets_are_torchvisions(name):
    ours = {"resnet18": "18", "resnext50_32x4d": "50-b4-g32"}[name]
    network, theirs = build_backbone(f"resnet:{ours}").eval(), build_backbone(f"torchvision:{name}").eval()
    network.load_state_dict(theirs.state_dict())
    assert same_output(network, theirs, 64)


@pytest.mark.parametrize("name", ["50-w0", "50-cifar3", "51", "50-", "18-same-cifar1"])
def test_networks_that_are_none_are_refused(name):
    with pytest.raises(QScoreError, match="backbone 'resnet:.*': expected torchvision:NAME"):
        build_backbone(f"resnet:{name}")


def test_blocks_of_no_resnet(weights, save):
    other = {key: value for key, value in weights.items() if not key.startswith("layer4.1.")}
    with pytest.raises(QScoreError, match=r"a ResNet with \(2, 2, 2, 1\) basic blocks is none of those known"):
        load_encoder(save(other))


def test_supervised_vits_need_their_normalisation(save):
    network = stirred(small_vit())
    file = save(network.state_dict() | {"head.weight": torch.ones(10, 384), "head.bias": torch.ones(10)})
    with pytest.raises(QScoreError, match=r"supervised ViT \(.*\), supervised ViT in \[-1, 1\] \(.*mean \(0.5"):
        load_encoder(file, method="supervised")
    assert same_output(load_encoder(file, method="supervised ViT in [-1, 1]"), network)
    assert load_encoder(file, method="supervised ViT").preprocess.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_at_another_size_than_its_own(save, registers):
    network = stirred(small_vit(init_values=0.1, reg_tokens=registers, no_embed_class=bool(registers)))
    released = dinov2(network.state_dict())
    encoder = load_encoder(save(released))
    grid = released["pos_embed"][:, 1:].reshape(1, 4, 4, 384).permute(0, 3, 1, 2)
    if registers:  # the authors' code: size, antialiased; and without registers: scale, with an offset of 0.1
        grid = nn.functional.interpolate(grid, size=(7, 7), mode="bicubic", antialias=True)
    else:
        grid = nn.functional.interpolate(grid, scale_factor=(7.1 / 4, 7.1 / 4), mode="bicubic")
    positions = grid.permute(0, 2, 3, 1).reshape(1, 49, 384)
    if not registers:
        positions = torch.cat([released["pos_embed"][:, :1], positions], dim=1)
    large = small_vit(img_size=56, init_values=0.1, reg_tokens=registers, no_embed_class=bool(registers)).eval()
    large.load_state_dict(network.state_dict() | {"pos_embed": positions})
    assert same_output(encoder, large, 56)


def test_dinov2_in_chunks_of_blocks_and_with_swiglu(save):
    network = stirred(build_backbone("vit:64x2-h1-m96-p8-s32-ls-swiglu"))
    swiglu = {key.replace("fc1", "w12").replace("fc2", "w3"): value for key, value in network.state_dict().items()}
    chunks = {key.replace("blocks.", "blocks.0."): value for key, value in swiglu.items()}
    encoder = load_encoder(save(chunks | {"mask_token": torch.ones(1, 64)}))
    assert encoder.source.architecture == "vit:64x2-h1-m96-p8-s32-ls-swiglu"
    assert same_output(encoder, network)


@pytest.fixture(scope="module")
def convnext():
    return stirred(timm.create_model("convnext_tiny", num_classes=0))


def test_convnext_by_timm_inside_a_lightning_module(convnext, save):
    encoder = load_encoder(save(solo(convnext.state_dict(), mlp("projector.", 0))))
    assert encoder.source.architecture == "timm:convnext_tiny" and not encoder.nonnegative
    assert same_output(encoder, convnext, 64)


def test_convnext_by_its_authors(convnext, save):
    def theirs(key):
        key = key.replace("head.norm.", "norm.").replace("stem.", "downsample_layers.0.")
        for i in "123":
            key = key.replace(f"stages.{i}.downsample.", f"downsample_layers.{i}.")
        key = key.replace(".blocks.", ".").replace("conv_dw", "dwconv")
        return key.replace("mlp.fc1", "pwconv1").replace("mlp.fc2", "pwconv2")

    named = {theirs(key): value for key, value in convnext.state_dict().items()}
    assert same_output(load_encoder(save({"model": named})), convnext, 64)
    encoder = load_encoder(save({"model": named | {"head.weight": torch.ones(10, 768), "head.bias": torch.ones(10)}}))
    assert encoder.source.method == "supervised" and same_output(encoder, convnext, 64)


def test_convnext_by_torchvision(save):
    network = stirred(convnext_tiny())
    encoder = load_encoder(save(network.state_dict()))
    network.classifier[2] = nn.Identity()
    assert encoder.source.architecture == "torchvision:convnext_tiny" and encoder.preprocess.resize == 236
    assert same_output(encoder, network, 64)


def test_lightlys_dino_reads_the_teacher(weights, source, save):
    pair = prefixed(weights, "teacher_backbone.") | prefixed(noise(weights), "student_backbone.")
    encoder = load_encoder(save({"state_dict": pair | mlp("teacher_head.", 0)}))
    assert (encoder.source.format, encoder.source.method) == ("Lightning module, teacher", "dino")
    assert same_output(encoder, source, 64)


def test_padding_twice_is_padding_once():
    """SwAV and VICReg pad by 1 and then by 2 where torchvision pads by 3; the sums are the same to the bit."""
    conv = nn.Conv2d(3, 8, 7, 2, padding=3)
    x = torch.randn(2, 3, 33, 33)
    padded = nn.functional.conv2d(nn.functional.pad(x, (1, 1, 1, 1)), conv.weight, conv.bias, 2, padding=2)
    assert torch.equal(conv(x), padded)
