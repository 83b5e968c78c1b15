"""BYOL: from one view of an image, predict what a slowly moving copy of the network makes of the other."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn

from qscore.images.augment import Augmentation
from qscore.ssl.parts import (
    check_fractions,
    check_positive,
    check_views,
    full_precision,
    momentum_copy,
    rising,
)

__all__ = ["BYOL", "RECIPES", "Config"]

VIEW = Augmentation(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)  # appendix B
FIRST_VIEW = replace(VIEW, blur=1.0)
SECOND_VIEW = replace(VIEW, blur=0.1, solarize=0.2)


@dataclass(frozen=True)
class Config:
    """Settings of BYOL; the defaults are the paper's for ImageNet.

    Raises
    ------
    QScoreError
        If a value lies outside its range.

    References
    ----------
    Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", 2020 (arXiv 2006.07733).
    """

    epochs: int = 1000
    """Passes over the images (section 3.3)."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up before the cosine decay to 0 (section 3.3)."""
    batch_size: int = 4096
    """Images per step, over all processes (section 3.3)."""
    optimizer: str = "lars"
    """``"lars"``, ``"adamw"`` or ``"sgd"`` (section 3.3)."""
    lr: float = 0.2
    """Learning rate for 256 images per step; it grows linearly with the batch (section 3.3)."""
    weight_decay: float = 1.5e-6
    """Not applied to biases and normalisation layers (section 3.3)."""
    momentum: float = 0.9
    """Of LARS and SGD (the authors' code)."""
    trust_coefficient: float = 0.001
    """Of LARS (the authors' code)."""
    ema: float = 0.996
    """Share of itself that the target network keeps at the first step; 0 to 1 (section 3.3)."""
    ema_end: float = 1.0
    """What that share rises to, along half a cosine; 0 to 1 (section 3.3)."""
    hidden_dim: int = 4096
    """Width of the projection and the prediction head (section 3.3)."""
    output_dim: int = 256
    """Number of values the loss compares (section 3.3)."""
    augment: Augmentation = FIRST_VIEW
    """How the first view is made (appendix B)."""
    augment2: Augmentation = SECOND_VIEW
    """How the second view is made (appendix B)."""

    def __post_init__(self) -> None:
        check_fractions(self, "ema", "ema_end")
        check_positive(self, "hidden_dim", "output_dim")


RECIPES = {
    "imagenet": Config(),
    # solo-learn's (scripts/pretrain/cifar/byol.yaml, augmentations/asymmetric.yaml).
    "cifar": Config(
        batch_size=256,
        lr=1.0,
        weight_decay=1e-5,
        trust_coefficient=0.02,
        ema=0.99,
        augment=replace(VIEW, size=32, blur=0.0),
        augment2=replace(VIEW, size=32, blur=0.0, solarize=0.2),
    ),
    # Ours, for hundreds to thousands of images: few steps, so a target that follows faster.
    "small": Config(
        epochs=100,
        batch_size=256,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-4,
        ema=0.98,
        hidden_dim=512,
        output_dim=128,
        augment=replace(VIEW, scale=(0.2, 1.0), blur=0.0),
        augment2=replace(VIEW, scale=(0.2, 1.0), blur=0.0),
    ),
}


@final
class BYOL(nn.Module):
    """Online network (encoder, projection, prediction), target network (encoder, projection) and the loss.

    Parameters
    ----------
    backbone : nn.Module
        Maps (b, 3, h, w) to (b, dim).
    dim : int
        Number of features of the backbone.
    config : Config
        Settings of the heads and the target, and how views are made.
    """

    def __init__(self, backbone: nn.Module, dim: int, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = BYOLProjectionHead(dim, config.hidden_dim, config.output_dim)
        self.predictor = BYOLPredictionHead(config.output_dim, config.hidden_dim, config.output_dim)
        self.target = momentum_copy(nn.Sequential(backbone, self.projector))
        self.negative_cosine = NegativeCosineSimilarity()
        self.views = (config.augment, config.augment2)

    def forward(self, views: list[Float[Tensor, "b 3 h w"]]) -> tuple[Float[Tensor, ""], Float[Tensor, "2*b r"]]:
        """Return the loss, and the online encoder's representations of both views before the projection head."""
        check_views(views, 2)
        h = torch.cat([self.backbone(view) for view in views])  # one by one: BatchNorm sees one kind of view at a time
        first, second = (full_precision(self.predictor(self.projector(x))) for x in h.chunk(2))
        with torch.no_grad():
            target_first, target_second = (full_precision(self.target(view)) for view in views)
        with torch.autocast(first.device.type, enabled=False):
            loss: Tensor = (  # equation 2 in both directions: the squared distance of unit vectors is 2 - 2 cos
                4 + 2 * self.negative_cosine(first, target_second) + 2 * self.negative_cosine(second, target_first)
            )
        return loss, h

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the target towards the online network (equation 1), once per optimiser step."""
        kept = rising(step, total_steps, self.config.ema, self.config.ema_end)
        update_momentum(nn.Sequential(self.backbone, self.projector), self.target, kept)
