"""A training of a fraction of a second, and ways to disturb it."""

import os
import signal

import torch
from safetensors.torch import load_file
from stub_method import entry

from qscore import pretrain
from qscore.images import open_images, subset
from qscore.ssl.methods import METHODS
from qscore.ssl.simclr import SimCLR

SETTINGS = {  # all that has a state of its own is in use: queues, centres, schedules, local views
    "moco": {"queue_size": 12},
    "swav": {"n_prototypes": 3, "queue_size": 16, "queue_start": 1, "n_local": 2},
    "simsiam": {"prediction_dim": 3},
    "dino": {"n_local": 2, "bottleneck_dim": 4, "weight_decay_end": 0.4, "clip_gradient": 1.0},
}

TINY = {  # two epochs of three steps, in a fraction of a second
    "backbone": "small:resnet10-2",
    "epochs": 2,
    "device": "cpu",
    "overrides": {"batch_size": 8, "hidden_dim": 8, "output_dim": 4},
}


def train_tiny(images, out, **changes):
    return pretrain("simclr", images, out, **(TINY | changes))


def train_method(name, out, **changes):
    """Train by any method: nine steps in three epochs."""
    overrides = {"batch_size": 8, "hidden_dim": 8, "output_dim": 4} | SETTINGS.get(name, {})
    arguments = {"backbone": "small:resnet10-2", "recipe": "small", "epochs": 3, "device": "cpu"} | changes
    return pretrain(name, subset(open_images("digits"), range(24)), out, overrides=overrides, **arguments)


def train_stub(out, **changes):
    """Train what has neither BatchNorm nor random views: six steps in two epochs."""
    METHODS["stub"] = entry()
    try:
        images = subset(open_images("digits"), range(24))
        arguments = {"backbone": "small:resnet10-2", "epochs": 2, "device": "cpu", "overrides": {"batch_size": 8}}
        return pretrain("stub", images, out, **(arguments | changes))
    finally:
        del METHODS["stub"]


def at_call(monkeypatch, number, action):
    """Do something in a certain forward pass of the method."""
    forward = SimCLR.forward
    calls = iter(range(1, 1000))

    def wrapped(self, views):
        if next(calls) == number:
            action(self)
        return forward(self, views)

    monkeypatch.setattr(SimCLR, "forward", wrapped)


def crash(_method):
    raise RuntimeError("power cut")


def press_ctrl_c(_method):
    os.kill(os.getpid(), signal.SIGINT)


def ask_to_terminate(_method):
    os.kill(os.getpid(), signal.SIGTERM)


def spoil_weights(method):
    with torch.no_grad():
        method.head.layers[0].weight[0, 0] = float("nan")


def assert_same(file, folder):
    ours, theirs = load_file(file), load_file(folder / "encoder.safetensors")
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def spoil_gradient(method):
    method.head.layers[0].weight.register_hook(lambda gradient: gradient * float("nan"))


def weights_of(folder):
    return torch.cat([p.flatten().float() for p in load_file(folder / "encoder.safetensors").values()])
