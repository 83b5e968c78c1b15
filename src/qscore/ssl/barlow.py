"""Barlow Twins: the cross-correlation between the outputs for two views should be the identity."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from lightly.loss import BarlowTwinsLoss
from lightly.models.modules import BarlowTwinsProjectionHead
from torch import Tensor, nn

from qscore.images.augment import Augmentation
from qscore.ssl.parts import check_positive, check_views, from_all_processes, full_precision

__all__ = ["RECIPES", "BarlowTwins", "Config"]

VIEW = Augmentation(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)  # BYOL's, says section 2.2
FIRST_VIEW = replace(VIEW, blur=1.0)
SECOND_VIEW = replace(VIEW, blur=0.1, solarize=0.2)


@dataclass(frozen=True)
class Config:
    """Settings of Barlow Twins; the defaults are the paper's for ImageNet.

    Raises
    ------
    QScoreError
        If a value lies outside its range.

    References
    ----------
    Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", 2021 (arXiv 2103.03230).
    """

    epochs: int = 1000
    """Passes over the images (section 2.2)."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up before the cosine decay (section 2.2)."""
    batch_size: int = 2048
    """Images per step, over all processes (section 2.2)."""
    optimizer: str = "lars"
    """``"lars"``, ``"adamw"`` or ``"sgd"`` (section 2.2)."""
    lr: float = 0.2
    """Learning rate for 256 images per step; it grows linearly with the batch (section 2.2)."""
    lr_biases: float = 0.0048
    """The same for biases and normalisation layers, under LARS (section 2.2)."""
    lr_end: float = 2e-4
    """What ``lr`` decays to, for 256 images per step: a thousandth, as ``lr_biases`` does (section 2.2)."""
    weight_decay: float = 1e-6
    """Not applied to biases and normalisation layers (the authors' code; section 2.2 has 1.5e-6)."""
    momentum: float = 0.9
    """Of LARS and SGD (the authors' code)."""
    trust_coefficient: float = 0.001
    """Of LARS (the authors' code)."""
    redundancy: float = 0.0051
    """Weight of the squared correlations between different values, 0 or more (the authors' code)."""
    hidden_dim: int = 8192
    """Width of the projection head (section 2.2)."""
    output_dim: int = 8192
    """Number of values the loss compares (section 2.2)."""
    augment: Augmentation = FIRST_VIEW
    """How the first view is made (section 2.2; the authors' code)."""
    augment2: Augmentation = SECOND_VIEW
    """How the second view is made (section 2.2; the authors' code)."""

    def __post_init__(self) -> None:
        check_positive(self, "redundancy", "lr_end", "lr_biases", zero=True)
        check_positive(self, "hidden_dim", "output_dim")


RECIPES = {
    "imagenet": Config(),
    # solo-learn's (scripts/pretrain/cifar/barlow.yaml, augmentations/asymmetric.yaml). It multiplies the loss by 0.1,
    # which to LARS means a tenth of the learning rate for biases and ten times the weight decay of 1e-4 for the rest.
    "cifar": Config(
        batch_size=256,
        lr=0.3,
        lr_biases=0.03,
        lr_end=0.0,
        weight_decay=1e-3,
        trust_coefficient=0.02,
        redundancy=0.005,
        hidden_dim=2048,
        output_dim=2048,
        augment=replace(VIEW, size=32, blur=0.0),
        augment2=replace(VIEW, size=32, blur=0.0, solarize=0.2),
    ),
    # Ours, for hundreds to thousands of images. The weight grows as the output shrinks: there are fewer pairs.
    "small": Config(
        epochs=100,
        batch_size=256,
        optimizer="adamw",
        lr=2e-3,
        lr_end=0.0,
        weight_decay=1e-4,
        redundancy=0.02,
        hidden_dim=512,
        output_dim=512,
        augment=replace(VIEW, scale=(0.2, 1.0), blur=0.0),
        augment2=replace(VIEW, scale=(0.2, 1.0), blur=0.0),
    ),
}


@final
class BarlowTwins(nn.Module):
    """Encoder, projection head and the loss.

    Parameters
    ----------
    backbone : nn.Module
        Maps (b, 3, h, w) to (b, dim).
    dim : int
        Number of features of the backbone.
    config : Config
        Settings of the head and the loss, and how views are made.
    """

    def __init__(self, backbone: nn.Module, dim: int, config: Config) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = BarlowTwinsProjectionHead(dim, config.hidden_dim, config.output_dim)
        self.barlow = BarlowTwinsLoss(config.redundancy)
        self.views = (config.augment, config.augment2)

    def forward(self, views: list[Float[Tensor, "b 3 h w"]]) -> tuple[Float[Tensor, ""], Float[Tensor, "2*b r"]]:
        """Return the loss, and the representations of both views before the projection head."""
        check_views(views, 2)
        h = torch.cat([self.backbone(view) for view in views])  # one by one: BatchNorm sees one kind of view at a time
        first, second = (full_precision(self.head(x)) for x in h.chunk(2))
        with torch.autocast(first.device.type, enabled=False):
            # Gathered here: lightly would normalise with each process's own mean and deviation, the authors with all's.
            loss: Tensor = self.barlow(from_all_processes(first), from_all_processes(second))
        return loss, h
