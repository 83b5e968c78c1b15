"""What tests of `embed` share: an encoder in miniature, and the bytes of a table."""

import multiprocessing
import os

import torch
from torch import nn

from qscore.encoders import Encoder, Preprocessing, Source, build_backbone
from qscore.images import open_images


def make_encoder(seed=0, name="small:resnet10-4"):
    torch.manual_seed(seed)
    preprocessing = Preprocessing(resize=8, crop=8, mean=(0.5,) * 3, std=(0.25,) * 3)
    return Encoder(build_backbone(name), Source("test", name, preprocessing))


def table_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def damage(photos, *positions):
    """Truncate the images at these positions of the source, which come first a/00, a/02, ..., then b/01, ..."""
    source = open_images(photos)
    paths = [source.record(i).path for i in positions]
    for path in paths:
        os.truncate(path, 50)  # amid the pixels
    return paths


class Dying(nn.Module):
    """A network that takes its process with it, unless that is the first one."""

    def forward(self, x):
        if multiprocessing.parent_process() is not None:
            os._exit(3)
        return x.mean((2, 3))
