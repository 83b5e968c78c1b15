"""Small encoders with random weights, of every kind that heatmaps are made of."""

import timm
import torch
import transformers
from torch import nn

from qscore.encoders import Encoder, Preprocessing, Source, build_backbone
from qscore.encoders.hub import Tower
from qscore.encoders.readout import read_out


def encode(backbone, size=64, *, layer=None, tokens=None, name="test"):
    source = Source("test", name, Preprocessing(crop=size, resize=size), layer=layer, tokens=tokens)
    return Encoder(read_out(backbone, layer=layer, tokens=tokens), source)


def lively(backbone, seed=0):
    """Give normalisations weights unlike those they start with, so that no branch is 0 and no channel like another."""
    generator = torch.Generator().manual_seed(seed)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.2, generator=generator)
    return backbone


def build(name, size=64, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return encode(lively(build_backbone(name)), size, name=name, **options)


def photos(n=3, height=64, width=64, seed=0):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


def vit(tokens=None, layer=None, **options):
    """A vision transformer by timm; one token for each 8 x 8 pixels."""
    torch.manual_seed(0)
    options = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 24,
        "depth": 3,
        "num_heads": 2,
        "dynamic_img_size": True,
    } | options
    network = lively(timm.models.VisionTransformer(num_classes=0, **options))
    for block in network.blocks:
        block.mlp.fc2.weight.data *= 20  # so that tokens differ
    return encode(network, 32, tokens=tokens, layer=layer)


def tower(kind, **config):
    """A vision tower of transformers, with random weights."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    if kind == "ResNet":
        sizes = {"embedding_size": 16, "hidden_sizes": [16, 32, 32, 64], "depths": [1, 1, 1, 1]}
    settings = getattr(transformers, f"{kind}Config")(**sizes | config)
    return encode(Tower(lively(getattr(transformers, f"{kind}Model")(settings))), 64 if kind == "ResNet" else 32)
