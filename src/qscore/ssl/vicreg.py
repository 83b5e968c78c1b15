"""VICReg: two views should agree, while every value of the output varies and no two vary together."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from lightly.loss import VICRegLoss
from lightly.models.modules.heads import VICRegProjectionHead
from torch import Tensor, nn

from qscore.images.augment import Augmentation
from qscore.ssl.parts import check_positive, check_views, full_precision

__all__ = ["RECIPES", "Config", "VICReg"]

VIEW = Augmentation(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)  # the authors' augmentations.py
FIRST_VIEW = replace(VIEW, blur=1.0)
SECOND_VIEW = replace(VIEW, blur=0.1, solarize=0.2)


@dataclass(frozen=True)
class Config:
    """Settings of VICReg; the defaults are the paper's for ImageNet.

    Raises
    ------
    QScoreError
        If a value lies outside its range.

    References
    ----------
    Bardes, Ponce, LeCun, "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", 2021
    (arXiv 2105.04906). Where the equations and the authors' code weigh the terms differently, the code is followed.
    """

    epochs: int = 1000
    """Passes over the images (section 4.2)."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up before the cosine decay (section 4.2)."""
    batch_size: int = 2048
    """Images per step, over all processes (section 4.2)."""
    optimizer: str = "lars"
    """``"lars"``, ``"adamw"`` or ``"sgd"`` (section 4.2)."""
    lr: float = 0.2
    """Learning rate for 256 images per step; it grows linearly with the batch (section 4.2)."""
    lr_end: float = 2e-4
    """What it decays to, for 256 images per step: a thousandth (the authors' code)."""
    weight_decay: float = 1e-6
    """Not applied to biases and normalisation layers (section 4.2; the authors' code)."""
    momentum: float = 0.9
    """Of LARS and SGD (the authors' code)."""
    trust_coefficient: float = 0.001
    """Of LARS (the authors' code)."""
    invariance: float = 25.0
    """Weight of the mean squared difference between the views, 0 or more (section 4.2: lambda)."""
    variance: float = 25.0
    """Weight of the hinge on the standard deviations, the mean of both views', 0 or more (section 4.2: mu)."""
    covariance: float = 1.0
    """Weight of the squared covariances, the sum of both views', 0 or more (section 4.2: nu)."""
    hidden_dim: int = 8192
    """Width of the expander (section 4.2)."""
    output_dim: int = 8192
    """Number of values the loss compares (section 4.2)."""
    augment: Augmentation = FIRST_VIEW
    """How the first view is made (the authors' code)."""
    augment2: Augmentation = SECOND_VIEW
    """How the second view is made (the authors' code)."""

    def __post_init__(self) -> None:
        check_positive(self, "invariance", "variance", "covariance", "lr_end", zero=True)
        check_positive(self, "hidden_dim", "output_dim")


_CIFAR_VIEW = replace(VIEW, size=32, scale=(0.2, 1.0), blur=0.0, solarize=0.1)
_SMALL_VIEW = replace(VIEW, scale=(0.2, 1.0), blur=0.0)

RECIPES = {
    "imagenet": Config(),
    # solo-learn's (scripts/pretrain/cifar/vicreg.yaml); it adds the variance terms of both views where the authors'
    # code and lightly average them, hence twice its 25.
    "cifar": Config(
        batch_size=256,
        lr=0.3,
        lr_end=0.0,
        weight_decay=1e-4,
        trust_coefficient=0.02,
        variance=50.0,
        hidden_dim=2048,
        output_dim=2048,
        augment=_CIFAR_VIEW,
        augment2=_CIFAR_VIEW,
    ),
    # Ours, for hundreds to thousands of images.
    "small": Config(
        epochs=100,
        batch_size=256,
        optimizer="adamw",
        lr=2e-3,
        lr_end=0.0,
        weight_decay=1e-4,
        hidden_dim=512,
        output_dim=512,
        augment=_SMALL_VIEW,
        augment2=_SMALL_VIEW,
    ),
}


@final
class VICReg(nn.Module):
    """Encoder, expander and the loss.

    Parameters
    ----------
    backbone : nn.Module
        Maps (b, 3, h, w) to (b, dim).
    dim : int
        Number of features of the backbone.
    config : Config
        Settings of the expander and the loss, and how views are made.
    """

    def __init__(self, backbone: nn.Module, dim: int, config: Config) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = VICRegProjectionHead(dim, config.hidden_dim, config.output_dim)
        # Variances and covariances are over the batches of all processes, as in the authors' code.
        self.vicreg = VICRegLoss(
            config.invariance,
            config.variance,
            config.covariance,
            gather_distributed=torch.distributed.is_available(),
        )
        self.views = (config.augment, config.augment2)

    def forward(self, views: list[Float[Tensor, "b 3 h w"]]) -> tuple[Float[Tensor, ""], Float[Tensor, "2*b r"]]:
        """Return the loss, and the representations of both views before the expander."""
        check_views(views, 2)
        h = torch.cat([self.backbone(view) for view in views])  # one by one: BatchNorm sees one kind of view at a time
        first, second = (full_precision(self.head(x)) for x in h.chunk(2))
        with torch.autocast(first.device.type, enabled=False):
            loss: Tensor = self.vicreg(first, second)
        return loss, h
