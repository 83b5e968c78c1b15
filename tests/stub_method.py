"""A method of a few numbers for tests of the training loop: no BatchNorm, no randomness, every hook recorded."""

from dataclasses import dataclass, replace

import torch
from torch import nn

from qscore.images.augment import Augmentation
from qscore.ssl.methods import Entry

STILL = Augmentation(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0)
INVERTED = replace(STILL, solarize=1.0)


@dataclass(frozen=True)
class Config:
    """All that the loop reads."""

    epochs: int = 2
    warmup_epochs: float = 0.0
    batch_size: int = 8
    optimizer: str = "sgd"
    lr: float = 0.5
    lr_end: float = 0.0
    weight_decay: float = 0.0
    weight_decay_end: float = 0.0
    momentum: float = 0.0
    trust_coefficient: float = 0.001
    clip_gradient: float = 0.0
    unused: bool = False
    augment: Augmentation = STILL
    augment2: Augmentation = INVERTED
    local: Augmentation = STILL
    n_local: int = 1
    size: int | None = None


class Stub(nn.Module):
    """Two linear maps of each view's mean colour."""

    def __init__(self, backbone, dim, config):
        super().__init__()
        self.encoder = nn.Linear(3, 4)
        self.predictor = nn.Linear(4, 3)
        self.constant_lr = (self.predictor,)
        self.teacher = nn.Linear(3, 4).requires_grad_(False)
        self.idle = nn.Linear(2, 2) if config.unused else None
        self.views = (config.augment, config.augment2, *(config.local,) * config.n_local)
        self.started = [p.detach().clone() for p in self.trained()]
        self.calls = []
        self.gradients = []

    def trained(self):
        return [*self.encoder.parameters(), *self.predictor.parameters()]

    def forward(self, views):
        colours = [view.float().mean(dim=(2, 3)) for view in views]
        h = self.encoder(torch.cat(colours))
        loss = (self.predictor(h) - torch.cat(colours).roll(1, dims=1)).float().square().mean()
        return loss, h

    def after_backward(self, step, total_steps, epoch):
        self.calls.append(("after_backward", step, total_steps, epoch))
        self.gradients.append([p.grad.clone() for p in self.trained()])

    def after_step(self, step, total_steps):
        self.calls.append(("after_step", step, total_steps))
        with torch.no_grad():
            for ours, theirs in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
                ours.lerp_(theirs, 0.5)


def settle(config, batch_size, n):
    return replace(config, size=batch_size) if config.size is None else config


def entry(built=None):
    """Return the stub for the table of methods; those that are built are appended to a list."""

    def build(backbone, dim, config):
        method = Stub(backbone, dim, config)
        if built is not None:
            built.append(method)
        return method

    return Entry(build, {"imagenet": Config(), "cifar": Config(), "small": Config()}, settle)
