"""DINO: a student should give every view of an image the distribution that a slow teacher gives its global views."""

import warnings
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from qscore.images.augment import Augmentation
from qscore.ssl.parts import (
    check_fractions,
    check_positive,
    check_views,
    full_precision,
    momentum_copy,
    rising,
)

__all__ = ["DINO", "RECIPES", "Config"]

VIEW = Augmentation(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)  # BYOL's, says section 3.2
FIRST_VIEW = replace(VIEW, scale=(0.4, 1.0), blur=1.0)
SECOND_VIEW = replace(VIEW, scale=(0.4, 1.0), blur=0.1, solarize=0.2)
LOCAL_VIEW = replace(VIEW, size=96, scale=(0.05, 0.4), blur=0.5)


@dataclass(frozen=True)
class Config:
    """Settings of DINO; the defaults are the paper's for ImageNet.

    The paper's are those of its vision transformers; for a ResNet-50 the authors' README takes SGD with a learning rate
    of 0.03, a constant weight decay of 1e-4, and crops split at 0.14 of the image.

    Raises
    ------
    QScoreError
        If a value lies outside its range.

    References
    ----------
    Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021 (arXiv 2104.14294).
    """

    epochs: int = 100
    """Passes over the images (the authors' code; the paper's longer trainings take 300 and 800)."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up before the cosine decay (section 3.2)."""
    batch_size: int = 1024
    """Images per step, over all processes (section 3.2)."""
    optimizer: str = "adamw"
    """``"lars"``, ``"adamw"`` or ``"sgd"`` (section 3.2)."""
    lr: float = 5e-4
    """Learning rate for 256 images per step; it grows linearly with the batch (section 3.2)."""
    lr_end: float = 2.5e-7
    """What it decays to, for 256 images per step: 1e-6 for 1,024 (the authors' code)."""
    weight_decay: float = 0.04
    """At the first step; not applied to biases and normalisation layers (section 3.2; the authors' code)."""
    weight_decay_end: float = 0.4
    """What the weight decay rises to, along half a cosine (section 3.2)."""
    momentum: float = 0.9
    """Of LARS and SGD (the authors' code)."""
    trust_coefficient: float = 0.001
    """Of LARS (the authors' code)."""
    clip_gradient: float = 3.0
    """Largest norm of the gradient, here of all parameters together; 0 leaves it alone (the authors' code: of each)."""
    student_temperature: float = 0.1
    """Of the student's softmax; positive (section 3.2)."""
    teacher_temperature: float = 0.07
    """Of the teacher's softmax after its warm-up; positive (section 3.2)."""
    warmup_teacher_temperature: float = 0.04
    """Of the teacher's softmax in the first epoch; positive (section 3.2)."""
    warmup_teacher_epochs: int = 30
    """Epochs in which it rises linearly, at most all; 0 or more (section 3.2)."""
    center_momentum: float = 0.9
    """Share of itself that the centre keeps with each batch; 0 to 1 (section 3.1; the authors' code)."""
    ema: float = 0.996
    """Share of itself that the teacher keeps at the first step; 0 to 1 (section 3.1)."""
    ema_end: float = 1.0
    """What that share rises to, along half a cosine; 0 to 1 (section 3.1)."""
    freeze_epochs: int = 1
    """Epochs in which the head's last layer stays as it is; 0 or more (the authors' code)."""
    batch_norm: bool = False
    """Whether the head has BatchNorm, which can help a network that has it too (section 3.1)."""
    hidden_dim: int = 2048
    """Width of the head (section 3.1)."""
    bottleneck_dim: int = 256
    """Number of values before the head's last layer (appendix C)."""
    output_dim: int = 65536
    """Number of values the loss compares (section 3.1)."""
    augment: Augmentation = FIRST_VIEW
    """How the first global view is made (the authors' code)."""
    augment2: Augmentation = SECOND_VIEW
    """How the second global view is made (the authors' code)."""
    local: Augmentation = LOCAL_VIEW
    """How the local views are made (the authors' code)."""
    n_local: int = 8
    """Number of local views, 0 or more (the authors' code)."""

    def __post_init__(self) -> None:
        check_positive(self, "student_temperature", "teacher_temperature", "warmup_teacher_temperature")
        check_positive(self, "hidden_dim", "bottleneck_dim", "output_dim")
        check_positive(self, "warmup_teacher_epochs", "freeze_epochs", "n_local", zero=True)
        check_positive(self, "lr_end", "weight_decay_end", "clip_gradient", zero=True)
        check_fractions(self, "center_momentum", "ema", "ema_end")


_SMALL_VIEW = replace(VIEW, scale=(0.2, 1.0), blur=0.0)

RECIPES = {
    "imagenet": Config(),
    # solo-learn's (scripts/pretrain/cifar/dino.yaml, augmentations/asymmetric.yaml).
    "cifar": Config(
        epochs=1000,
        batch_size=256,
        optimizer="lars",
        lr=0.3,
        lr_end=0.0,
        weight_decay=1e-6,
        weight_decay_end=1e-6,
        trust_coefficient=0.02,
        clip_gradient=0.0,
        warmup_teacher_epochs=50,
        ema=0.9995,
        output_dim=4096,
        augment=replace(VIEW, size=32, blur=0.0),
        augment2=replace(VIEW, size=32, blur=0.0, solarize=0.2),
        local=replace(VIEW, size=16, scale=(0.05, 0.4), blur=0.0),
        n_local=0,
    ),
    # Ours, for hundreds to thousands of images: few steps, so a teacher that follows faster, and a small head.
    "small": Config(
        epochs=100,
        batch_size=256,
        lr=2e-3,
        lr_end=0.0,
        weight_decay_end=0.04,
        ema=0.98,
        batch_norm=True,
        hidden_dim=512,
        bottleneck_dim=128,
        output_dim=1024,
        augment=_SMALL_VIEW,
        augment2=_SMALL_VIEW,
        local=replace(VIEW, size=96, scale=(0.05, 0.4), blur=0.0),
        n_local=0,
    ),
}


@final
class DINO(nn.Module):
    """Student and teacher (encoder and head), the teacher's centre, and the loss.

    The centre moves with every forward pass, so once per part of a batch taken in parts; the teacher moves once per
    optimiser step.

    Parameters
    ----------
    backbone : nn.Module
        Maps (b, 3, h, w) to (b, dim) at any size of view.
    dim : int
        Number of features of the backbone.
    config : Config
        Settings of the head, the teacher and the loss, and how views are made.
    """

    def __init__(self, backbone: nn.Module, dim: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.head = _head(dim, config)
        self.teacher = momentum_copy(nn.Sequential(backbone, self.head))
        self.cross_entropy = DINOLoss(
            config.output_dim, student_temp=config.student_temperature, center_momentum=config.center_momentum
        )
        warmup = min(config.warmup_teacher_epochs, config.epochs)
        self.temperatures = np.linspace(config.warmup_teacher_temperature, config.teacher_temperature, warmup).tolist()
        self.epoch = 0  # a Python number, since reading one from a GPU would wait for it
        self.views = (config.augment, config.augment2, *(config.local,) * config.n_local)

    @property
    def teacher_temperature(self) -> float:
        """The teacher's temperature in the present epoch."""
        temperature: float = [*self.temperatures, self.config.teacher_temperature][
            min(self.epoch, len(self.temperatures))
        ]
        return temperature

    def forward(self, views: list[Float[Tensor, "b 3 h w"]]) -> tuple[Float[Tensor, ""], Float[Tensor, "2*b r"]]:
        """Return the loss, and the student's representations of the global views before the head."""
        check_views(views, len(self.views))
        seen = torch.cat(views[:2])
        h = self.backbone(seen)  # (2 b, r)
        features = torch.cat([h, self.backbone(torch.cat(views[2:]))]) if views[2:] else h
        student = full_precision(self.head(features)).chunk(len(views))
        with torch.no_grad():
            teacher = full_precision(self.teacher(seen)).chunk(2)
        with torch.autocast(h.device.type, enabled=False):
            loss: Tensor = self.cross_entropy(list(teacher), list(student), teacher_temp=self.teacher_temperature)
        return loss, h

    def after_backward(self, step: int, total_steps: int, epoch: int) -> None:
        """Keep the head's last layer as it is in the first epochs."""
        self.head.cancel_last_layer_gradients(epoch)

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the teacher towards the student (section 3.1), and note the epoch of the next step."""
        kept = rising(step, total_steps, self.config.ema, self.config.ema_end)
        update_momentum(nn.Sequential(self.backbone, self.head), self.teacher, kept)
        self.epoch = step * self.config.epochs // total_steps

    def get_extra_state(self) -> Tensor:
        """Return what belongs into a checkpoint besides parameters and buffers."""
        return torch.tensor(self.epoch)

    def set_extra_state(self, state: Tensor) -> None:
        """Take it back."""
        self.epoch = int(state)


def _head(dim: int, config: Config) -> DINOProjectionHead:
    with warnings.catch_warnings():  # torch deprecates the weight normalisation in lightly's head, which is replaced
        warnings.simplefilter("ignore", FutureWarning)
        head = DINOProjectionHead(
            dim,
            config.hidden_dim,
            config.bottleneck_dim,
            config.output_dim,
            batch_norm=config.batch_norm,
            freeze_last_layer=config.freeze_epochs,
        )
    last = nn.Linear(config.bottleneck_dim, config.output_dim, bias=False)
    head.last_layer = parametrizations.weight_norm(last)  # unlike the deprecated one, it can be copied
    lengths = head.last_layer.parametrizations.weight.original0
    lengths.data.fill_(1)
    lengths.requires_grad_(False)
    return head
