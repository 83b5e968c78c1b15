"""SimSiam: from one view of an image, predict the network's own output for the other, which is held fixed."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from torch import Tensor, nn

from qscore.images.augment import Augmentation
from qscore.ssl.parts import check_positive, check_views, full_precision

__all__ = ["RECIPES", "Config", "SimSiam"]

VIEW = Augmentation(scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)  # appendix A


@dataclass(frozen=True)
class Config:
    """Settings of SimSiam; the defaults are the paper's for ImageNet.

    Raises
    ------
    QScoreError
        If a value lies outside its range.

    References
    ----------
    Chen, He, "Exploring Simple Siamese Representation Learning", 2020 (arXiv 2011.10566).
    """

    epochs: int = 100
    """Passes over the images (section 4)."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up before the cosine decay to 0 (section 3; the authors' code has none)."""
    batch_size: int = 512
    """Images per step, over all processes (section 3)."""
    optimizer: str = "sgd"
    """``"lars"``, ``"adamw"`` or ``"sgd"`` (section 3)."""
    lr: float = 0.05
    """Learning rate for 256 images per step; it grows linearly with the batch (section 3)."""
    weight_decay: float = 1e-4
    """Here not applied to biases and normalisation layers, where the paper applies it too (section 3)."""
    momentum: float = 0.9
    """Of LARS and SGD (section 3)."""
    trust_coefficient: float = 0.001
    """Of LARS, which the paper does not use."""
    hidden_dim: int = 2048
    """Width of the projection head (section 3)."""
    output_dim: int = 2048
    """Number of values the loss compares (section 3)."""
    prediction_dim: int = 512
    """Width of the prediction head, a bottleneck (section 3)."""
    augment: Augmentation = VIEW
    """How both views are made (appendix A)."""

    def __post_init__(self) -> None:
        check_positive(self, "hidden_dim", "output_dim", "prediction_dim")


RECIPES = {
    "imagenet": Config(),
    # solo-learn's (scripts/pretrain/cifar/simsiam.yaml, augmentations/symmetric_weak.yaml).
    "cifar": Config(
        epochs=1000,
        warmup_epochs=10.0,
        batch_size=256,
        lr=0.5,
        weight_decay=1e-5,
        augment=replace(VIEW, size=32, scale=(0.08, 1.0), kernel=0.4),
    ),
    # Ours, for hundreds to thousands of images.
    "small": Config(
        batch_size=256,
        warmup_epochs=10.0,
        optimizer="adamw",
        lr=2e-3,
        hidden_dim=512,
        output_dim=512,
        prediction_dim=128,
        augment=replace(VIEW, blur=0.0),
    ),
}


@final
class SimSiam(nn.Module):
    """Encoder, projection and prediction head, and the loss.

    Parameters
    ----------
    backbone : nn.Module
        Maps (b, 3, h, w) to (b, dim).
    dim : int
        Number of features of the backbone.
    config : Config
        Settings of the heads, and how views are made.
    """

    def __init__(self, backbone: nn.Module, dim: int, config: Config) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = SimSiamProjectionHead(dim, config.hidden_dim, config.output_dim)
        self.predictor = SimSiamPredictionHead(config.output_dim, config.prediction_dim, config.output_dim)
        self.negative_cosine = NegativeCosineSimilarity()
        self.views = (config.augment, config.augment)

    @property
    def constant_lr(self) -> tuple[nn.Module, ...]:
        """The prediction head, which follows the others best at a learning rate that does not decay (table 1)."""
        return (self.predictor,)

    def forward(self, views: list[Float[Tensor, "b 3 h w"]]) -> tuple[Float[Tensor, ""], Float[Tensor, "2*b r"]]:
        """Return the loss, and the representations of both views before the projection head."""
        check_views(views, 2)
        h = torch.cat([self.backbone(view) for view in views])  # one by one, as in the authors' code
        z = [self.projector(x) for x in h.chunk(2)]
        p1, p2 = (full_precision(self.predictor(x)) for x in z)
        z1, z2 = (full_precision(x.detach()) for x in z)
        with torch.autocast(p1.device.type, enabled=False):
            loss: Tensor = self.negative_cosine(p1, z2) / 2 + self.negative_cosine(p2, z1) / 2  # equation 4
        return loss, h
