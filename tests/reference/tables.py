"""What tests of `embed` share: an encoder in miniature, and the bytes of a table."""

import multiprocessing
import os
import signal

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


class OddError(Exception):
    """An error that is not made of its message."""

    def __init__(self, number, name):
        super().__init__(f"{name} {number}")


class Imageless:
    """A source that has no images, but tells how the process was started that asks for one, or ends it."""

    name, labels, class_names, fingerprint = "imageless", None, None, "none"

    def __init__(self, source, deadly=False):
        self.source, self.deadly = source, deadly
        self.record = source.record

    def __len__(self):
        return len(self.source)

    def image(self, index):
        if self.deadly and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        interrupted = signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        raise RuntimeError(f"{multiprocessing.get_start_method()}, {'interrupted' if interrupted else 'undisturbed'}")
