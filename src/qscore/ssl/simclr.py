"""SimCLR: two views of an image should look alike to the encoder, and unlike those of any other image."""

from dataclasses import dataclass, field
from typing import final

import torch
from jaxtyping import Float
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn

from qscore.images.augment import Augmentation
from qscore.ssl.parts import check_positive, check_views, full_precision

__all__ = ["RECIPES", "Config", "SimCLR"]


@dataclass(frozen=True)
class Config:
    """Settings of SimCLR; the defaults are the paper's for ImageNet.

    Raises
    ------
    QScoreError
        If a value lies outside its range.

    References
    ----------
    Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020 (arXiv 2002.05709).
    """

    epochs: int = 100
    """Passes over the images (section 2.2)."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up before the cosine decay to 0 (section 2.2)."""
    batch_size: int = 4096
    """Images per step, over all processes (section 2.2)."""
    optimizer: str = "lars"
    """``"lars"``, ``"adamw"`` or ``"sgd"`` (section 2.2)."""
    lr: float = 0.3
    """Learning rate for 256 images per step; it grows linearly with the batch (section 2.2)."""
    weight_decay: float = 1e-6
    """Not applied to biases and normalisation layers (section 2.2)."""
    momentum: float = 0.9
    """Of LARS and SGD (the authors' code)."""
    trust_coefficient: float = 0.001
    """Of LARS (the authors' code)."""
    temperature: float = 0.1
    """Of the softmax over similarities; positive (table 5)."""
    hidden_dim: int = 2048
    """Width of the projection head (section 4.2)."""
    output_dim: int = 128
    """Number of values the loss compares (section 4.2)."""
    augment: Augmentation = field(default_factory=Augmentation)
    """How both views are made (appendix A)."""

    def __post_init__(self) -> None:
        check_positive(self, "temperature", "hidden_dim", "output_dim")


RECIPES = {
    "imagenet": Config(),
    # solo-learn's (scripts/pretrain/cifar/simclr.yaml), without blur, as in the paper's appendix B.9.
    "cifar": Config(
        epochs=1000,
        batch_size=256,
        lr=0.4,
        weight_decay=1e-4,
        trust_coefficient=0.02,
        temperature=0.2,
        output_dim=256,
        augment=Augmentation(size=32, blur=0.0),
    ),
    # Ours, for hundreds to thousands of images: small batches, and an optimiser that needs no tuning for them.
    "small": Config(
        epochs=100,
        batch_size=256,
        optimizer="adamw",
        lr=2e-3,
        weight_decay=1e-4,
        temperature=0.2,
        hidden_dim=512,
        augment=Augmentation(scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0),
    ),
}


@final
class SimCLR(nn.Module):
    """Encoder, projection head and the NT-Xent loss.

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
        self.head = SimCLRProjectionHead(dim, config.hidden_dim, config.output_dim)
        # Negatives come from all processes, as in the paper; with a single one there is nothing to gather.
        self.nt_xent = NTXentLoss(config.temperature, gather_distributed=torch.distributed.is_available())
        self.views = (config.augment, config.augment)

    def forward(self, views: list[Float[Tensor, "b 3 h w"]]) -> tuple[Float[Tensor, ""], Float[Tensor, "2*b r"]]:
        """Return the loss, and the representations of both views before the projection head."""
        check_views(views, 2)
        h = self.backbone(torch.cat(views))  # (2 b, r)
        z = full_precision(self.head(h))  # (2 b, output_dim)
        with torch.autocast(z.device.type, enabled=False):  # similarities over a small temperature need float32
            first, second = z.chunk(2)
            loss: Tensor = self.nt_xent(first, second)
        return loss, h
