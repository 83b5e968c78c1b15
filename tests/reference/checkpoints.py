"""Checkpoints as their publishers write them, built around a network's weights, key by key."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import omegaconf
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models import resnet50
from torchvision.models.resnet import BasicBlock, ResNet

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RED = ((0.485, 0.456, 0.406), (0.228, 0.224, 0.225))
BARE = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
W = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """One publisher's file."""

    network: Callable[[], nn.Module]
    """What it was made from; maps images to representations."""
    write: Callable[[W], object]
    """From the network's weights to what torch.save is given."""
    format: str
    method: str | None
    ask: str | None = None
    """What ``method=`` must say, where the file alone does not settle it."""
    mean_std: tuple = IMAGENET
    crop: int = 224
    resize: int = 256
    interpolation: str = "bilinear"
    key: str = "layer2.0.conv1.weight"
    """One of the encoder's keys."""


class Narrow(ResNet):
    """torchvision's ResNet-18 with a quarter of the channels: small files, the same keys."""

    def __init__(self):
        super().__init__(BasicBlock, [2, 2, 2, 2])
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16)

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False):
        self.inplanes = 16 if planes == 64 else self.inplanes
        return super()._make_layer(block, planes // 4, blocks, stride, dilate)


def headless(make, **change):
    network = make()
    network.fc = nn.Identity()
    for name, module in change.items():
        setattr(network, name, module)
    return network


def cifar():
    return headless(Narrow, conv1=nn.Conv2d(3, 16, 3, padding=2, bias=False), maxpool=nn.Identity())


class PadSame(nn.Module):
    """TensorFlow's padding before a layer: the output has ceil(n / stride) pixels, the odd pixel goes behind."""

    def __init__(self, layer, value):
        super().__init__()
        self.layer, self.value = layer, value
        self.kernel, self.stride = (v[0] if isinstance(v, tuple) else v for v in (layer.kernel_size, layer.stride))
        layer.padding = 0 if isinstance(layer, nn.MaxPool2d) else (0, 0)

    def forward(self, x):
        total = [max((math.ceil(n / self.stride) - 1) * self.stride + self.kernel - n, 0) for n in x.shape[-2:]]
        (top, left), (bottom, right) = [t // 2 for t in total], [t - t // 2 for t in total]
        return self.layer(nn.functional.pad(x, (left, right, top, bottom), value=self.value))


def same(network):
    """The same network with TensorFlow's padding throughout."""
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d | nn.MaxPool2d):
            network.set_submodule(path, PadSame(module, -math.inf if isinstance(module, nn.MaxPool2d) else 0.0))
    return network


def small_vit(**change):
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 384, "depth": 2, "num_heads": 6, "num_classes": 0}
    return VisionTransformer(**(shape | change))


def prefixed(weights, prefix):
    return {prefix + key: value for key, value in weights.items()}


def mlp(prefix, *numbers):
    """Some linear layers' keys."""
    return {f"{prefix}{n}.{part}": torch.ones(3) for n in numbers for part in ("weight", "bias")}


def noise(weights):
    """Other weights under the same keys: what a momentum encoder holds."""
    return {key: value + 1 for key, value in weights.items()}


def fc(weights):
    return weights | {"fc.weight": torch.ones(10, 128), "fc.bias": torch.ones(10)}


def solo(weights, *others):
    extra = {key: value for other in others for key, value in other.items()}
    settings = omegaconf.OmegaConf.create({"method": "any", "data": {"dataset": "cifar10"}})
    return {
        "state_dict": prefixed(weights, "backbone.") | mlp("classifier.", 0) | extra,
        "hyper_parameters": settings,
        "optimizer_states": [{"state": {0: {"momentum_buffer": torch.ones(2)}}}],
        "pytorch-lightning_version": "2.1",
    }


def sequential(weights):
    """What nn.Sequential(*list(resnet.children())[:-1]) calls the same weights."""
    numbers = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}
    split = ((key.partition("."), value) for key, value in weights.items())
    return {f"{numbers[first]}.{rest}": value for (first, _, rest), value in split}


def dinov2(weights):
    """From timm's names to DINOv2's."""
    named = {key.replace("reg_token", "register_tokens"): value for key, value in weights.items()}
    if "register_tokens" in named:  # timm has them precomputed
        zero = torch.zeros_like(named["cls_token"])
        named["pos_embed"] = torch.cat([zero, named["pos_embed"]], dim=1)
    return named | {"mask_token": torch.ones(1, 384)}


EIGHT = {
    "simclr": (mlp("projector.", 0, 2),),
    "vicreg": (mlp("projector.", 0, 3, 6),),
    "barlow": (mlp("projector.", 0, 3, 6),),
    "moco": (mlp("projector.", 0), mlp("momentum_projector.", 0), {"queue": torch.ones(2, 3)}),
    "byol": (mlp("projector.", 0), mlp("momentum_projector.", 0), mlp("predictor.", 0), mlp("momentum_classifier.", 0)),
    "simsiam": (mlp("projector.", 0), mlp("predictor.", 0)),
    "swav": (mlp("projector.", 0), {"prototypes.weight": torch.ones(3, 3)}),
    "dino": (mlp("head.mlp.", 0), mlp("momentum_head.mlp.", 0), {"dino_loss_func.center": torch.ones(1, 3)}),
}
HAVE_MOMENTUM = ("moco", "byol", "dino")
UNSETTLED = "unknown (SimCLR, VICReg or Barlow Twins)"


def eight(method, old=False):
    def write(weights):
        momentum = prefixed(noise(weights), "momentum_backbone.") if method in HAVE_MOMENTUM else {}
        file = solo(weights, *EIGHT[method], momentum)
        if old:
            state = file["state_dict"].items()
            file["state_dict"] = {key.replace("backbone.", "encoder.", 1): value for key, value in state}
        return file

    settled = method not in ("simclr", "vicreg", "barlow")
    names = {"moco": "MoCo", "byol": "BYOL", "simsiam": "SimSiam", "swav": "SwAV", "dino": "DINO"}
    return Layout(
        cifar,
        write,
        f"solo-learn {names[method]}" if settled else "solo-learn",
        method if settled else UNSETTLED,
        crop=32,
        resize=32,
    )


def narrow():
    return headless(Narrow)


FLAT = "unknown (DINO, VICReg or Barlow Twins)"
FLAT_FORMAT = "DINO or VICReg or Barlow Twins"
ViT = {"crop": 32, "resize": 32, "interpolation": "bicubic", "key": "blocks.1.mlp.fc1.weight"}
LAYOUTS = {
    "simclr-tonylins": Layout(
        narrow, lambda w: {"state_dict": fc(w)}, "SimCLR, converted", "simclr", ask="simclr", mean_std=BARE
    ),
    "simclr-vissl": Layout(
        narrow,
        lambda w: {
            "classy_state_dict": {
                "base_model": {"model": {"trunk": prefixed(w, "_feature_blocks."), "heads": mlp("0.clf.", 0)}}
            },
            "phase_idx": 3,
        },
        "VISSL",
        None,
    ),
    "simclr-vissl-model": Layout(
        narrow, lambda w: {"model_state_dict": prefixed(w, "_feature_blocks.") | mlp("heads.", 0)}, "VISSL", None
    ),
    "simclr-bolts": Layout(
        narrow,
        lambda w: {"state_dict": prefixed(w, "encoder.") | mlp("projection.model.", 0, 1), "epoch": 1},
        "Lightning Bolts",
        "simclr",
    ),
    "swav": Layout(
        narrow,
        lambda w: (
            prefixed(w, "module.") | mlp("module.projection_head.", 0, 1) | {"module.prototypes.weight": w["bn1.bias"]}
        ),
        "SwAV",
        "swav",
        mean_std=RED,
    ),
    "swav-training": Layout(
        narrow,
        lambda w: {
            "state_dict": prefixed(w, "module.") | mlp("module.projection_head.", 0),
            "optimizer": {},
            "epoch": 9,
        },
        "SwAV",
        "swav",
        mean_std=RED,
    ),
    "moco-v2": Layout(
        narrow,
        lambda w: {
            "epoch": 800,
            "arch": "resnet50",
            "state_dict": prefixed(w, "module.encoder_q.")
            | mlp("module.encoder_q.fc.", 0, 2)
            | prefixed(noise(w), "module.encoder_k.")
            | mlp("module.encoder_k.fc.", 0, 2)
            | {"module.queue": torch.ones(2, 3), "module.queue_ptr": torch.zeros(1, dtype=torch.long)},
        },
        "MoCo v2",
        "moco",
    ),
    "byol-converted": Layout(
        lambda: same(headless(Narrow)), fc, "BYOL, converted", "byol", ask="byol", interpolation="bicubic"
    ),
    "dino": Layout(narrow, dict, FLAT_FORMAT, FLAT),
    "dino-full": Layout(
        narrow,
        lambda w: {
            "student": prefixed(noise(w), "module.backbone.") | mlp("module.head.mlp.", 0),
            "teacher": prefixed(w, "backbone.") | mlp("head.mlp.", 0) | {"head.last_layer.weight_g": torch.ones(2)},
            "args": argparse.Namespace(arch="resnet50", patch_size=16),
        },
        "DINO teacher",
        "dino",
        interpolation="bicubic",
    ),
    "dino-full-student": Layout(
        narrow,
        lambda w: {"student": prefixed(w, "module.backbone."), "teacher": prefixed(noise(w), "backbone.")},
        "DINO student",
        "dino",
        ask="DINO student",
        interpolation="bicubic",
    ),
    "dino-full-bare": Layout(
        narrow, lambda w: {"teacher": w, "student": noise(w)}, "DINO teacher", "dino", interpolation="bicubic"
    ),
    "simsiam": Layout(
        narrow,
        lambda w: {
            "state_dict": prefixed(w, "module.encoder.")
            | mlp("module.encoder.fc.", 0, 1, 3)
            | mlp("module.predictor.", 0, 3),
            "arch": "resnet50",
        },
        "SimSiam",
        "simsiam",
    ),
    "vicreg": Layout(narrow, dict, FLAT_FORMAT, FLAT),
    "vicreg-full": Layout(
        narrow,
        lambda w: {"model": prefixed(w, "module.backbone.") | mlp("module.projector.", 0, 1, 3), "epoch": 1},
        "VICReg, full",
        "vicreg",
    ),
    "barlow": Layout(narrow, dict, FLAT_FORMAT, FLAT),
    "barlow-asked": Layout(narrow, dict, "Barlow Twins", "barlow", ask="barlow"),
    "barlow-full": Layout(
        narrow,
        lambda w: {
            "model": prefixed(w, "module.backbone.")
            | mlp("module.projector.", 0, 1)
            | {"module.bn.running_mean": torch.ones(3)}
        },
        "Barlow Twins, full",
        "barlow",
    ),
    "supervised": Layout(narrow, fc, "torchvision", "supervised", ask="supervised"),
    **{f"solo-{method}": eight(method) for method in EIGHT},
    **{f"solo-old-{method}": eight(method, old=True) for method in EIGHT},
    "lightly-simclr": Layout(
        narrow,
        lambda w: {"state_dict": prefixed(sequential(w), "backbone.") | mlp("projection_head.layers.", 0)},
        "Lightning module",
        None,
        key="5.0.conv1.weight",
    ),
    "lightly-byol": Layout(
        narrow,
        lambda w: {
            "state_dict": prefixed(w, "backbone.")
            | prefixed(noise(w), "teacher_backbone.")
            | mlp("prediction_head.layers.", 0)
        },
        "Lightning module",
        None,
    ),
    "lightly-dino": Layout(
        narrow,
        lambda w: {"state_dict": prefixed(w, "backbone.") | prefixed(noise(w), "student_backbone.")},
        "Lightning module",
        None,
    ),
    "lightly-moco": Layout(
        narrow,
        lambda w: {"state_dict": prefixed(w, "backbone.") | prefixed(noise(w), "key_backbone.")},
        "Lightning module",
        None,
    ),
    "moco-v3-resnet": Layout(
        lambda: headless(resnet50),
        lambda w: {
            "state_dict": prefixed(w, "module.base_encoder.")
            | mlp("module.base_encoder.fc.", 0, 1, 3)
            | prefixed(noise(w), "module.momentum_encoder.")
            | mlp("module.predictor.", 0, 1)
        },
        "MoCo v3",
        "moco",
    ),
    "moco-v3-vit": Layout(
        lambda: small_vit(num_heads=12),
        lambda w: {
            "state_dict": prefixed(w, "module.base_encoder.")
            | mlp("module.base_encoder.head.", 0, 1, 3)
            | prefixed(noise(w), "module.momentum_encoder.")
        },
        "MoCo v3",
        "moco",
        **(ViT | {"interpolation": "bilinear"}),
    ),
    "dino-vit": Layout(small_vit, dict, "DINO ViT", "dino", **ViT),
    "dino-vit-full": Layout(
        small_vit,
        lambda w: {"teacher": prefixed(w, "backbone.") | mlp("head.mlp.", 0), "student": noise(w)},
        "DINO teacher",
        "dino",
        **ViT,
    ),
    "dinov2": Layout(lambda: small_vit(init_values=0.1), dinov2, "DINOv2", "dinov2", **ViT),
    "dinov2-registers": Layout(
        lambda: small_vit(init_values=0.1, reg_tokens=4, no_embed_class=True), dinov2, "DINOv2", "dinov2", **ViT
    ),
}
