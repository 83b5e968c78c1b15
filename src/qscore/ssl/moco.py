"""MoCo v2: a view should look like the other view of its image, and unlike the older views in a queue."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import batch_shuffle, batch_unshuffle, update_momentum
from torch import Tensor, nn

from qscore._validate import QScoreError
from qscore.images.augment import Augmentation
from qscore.ssl.parts import (
    Queue,
    check_fractions,
    check_positive,
    check_views,
    full_precision,
    momentum_copy,
    processes,
    rising,
)

__all__ = ["RECIPES", "Config", "MoCo", "settle"]

VIEW = Augmentation(scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)  # the authors' code
MOST_KEYS = 4096  # in a queue that is chosen by the number of images


@dataclass(frozen=True)
class Config:
    """Settings of MoCo v2; the defaults are the paper's for ImageNet.

    Raises
    ------
    QScoreError
        If a value lies outside its range.

    References
    ----------
    Chen, Fan, Girshick, He, "Improved Baselines with Momentum Contrastive Learning", 2020 (arXiv 2003.04297: v2), and
    He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", 2019 (arXiv 1911.05722: v1).
    """

    epochs: int = 200
    """Passes over the images (v2, table 1)."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up before the cosine decay to 0 (v2, section 3; the authors' code has none)."""
    batch_size: int = 256
    """Images per step, over all processes (v1, section 3.3)."""
    optimizer: str = "sgd"
    """``"lars"``, ``"adamw"`` or ``"sgd"`` (v1, section 3.3)."""
    lr: float = 0.03
    """Learning rate for 256 images per step; it grows linearly with the batch (v1, section 3.3)."""
    weight_decay: float = 1e-4
    """Here not applied to biases and normalisation layers, where the authors' code applies it too (v1, section 3.3)."""
    momentum: float = 0.9
    """Of LARS and SGD (v1, section 3.3)."""
    trust_coefficient: float = 0.001
    """Of LARS, which the paper does not use."""
    temperature: float = 0.2
    """Of the softmax over similarities; positive (v2, table 2)."""
    ema: float = 0.999
    """Share of itself that the key encoder keeps at the first step; 0 to 1 (v1, section 3.3)."""
    ema_end: float = 0.999
    """What that share rises to, along half a cosine; 0 to 1 (constant in v1, section 3.3)."""
    queue_size: int | None = 65536
    """Keys that serve as negatives; None takes as many as there are images, at most 4,096 (v1, section 3.3)."""
    symmetric: bool = False
    """Whether each view is compared with the key of the other, or the first alone (v1, algorithm 1)."""
    hidden_dim: int = 2048
    """Width of the projection head (v2, section 3)."""
    output_dim: int = 128
    """Number of values the loss compares (v1, section 3.3)."""
    augment: Augmentation = VIEW
    """How both views are made (v2, section 3; the authors' code)."""

    def __post_init__(self) -> None:
        check_positive(self, "temperature", "queue_size", "hidden_dim", "output_dim")
        check_fractions(self, "ema", "ema_end")


RECIPES = {
    "imagenet": Config(),
    # solo-learn's (scripts/pretrain/cifar/mocov2plus.yaml, augmentations/symmetric_weak.yaml).
    "cifar": Config(
        epochs=1000,
        warmup_epochs=10.0,
        lr=0.3,
        ema=0.99,
        queue_size=32768,
        symmetric=True,
        output_dim=256,
        augment=replace(VIEW, size=32, scale=(0.08, 1.0), kernel=0.4),
    ),
    # Ours, for hundreds to thousands of images: few steps, so a key encoder that follows faster.
    "small": Config(
        epochs=100,
        warmup_epochs=10.0,
        optimizer="adamw",
        lr=2e-3,
        ema=0.98,
        queue_size=None,
        symmetric=True,
        hidden_dim=512,
        augment=replace(VIEW, blur=0.0),
    ),
}


def settle(config: Config, batch_size: int, n: int) -> Config:
    """Return settings with a queue of a size that suits ``n`` images, where the size was left open."""
    return config if config.queue_size is not None else replace(config, queue_size=min(n, MOST_KEYS))


@final
class MoCo(nn.Module):
    """Query encoder and head, key encoder and head, a queue of keys, and the InfoNCE loss.

    The queue takes the keys of every forward pass that is trained on, so once per part of a batch taken in parts; the
    key encoder moves once per optimiser step. With several processes each key is computed among images of other
    processes, so that BatchNorm does not give away which key belongs to which query (v1, section 3.3); with a single
    one there are no others, and none of this happens.

    Parameters
    ----------
    backbone : nn.Module
        Maps (b, 3, h, w) to (b, dim).
    dim : int
        Number of features of the backbone.
    config : Config
        Settings of the head, the queue and the loss, and how views are made.

    Attributes
    ----------
    h_wanted : bool
        True at first. Set to False where the representations are of no use, the query encoder is spared the second
        view unless the loss is symmetric, and ``h`` is of the first view alone.
    """

    h_wanted: bool = True

    def __init__(self, backbone: nn.Module, dim: int, config: Config) -> None:
        super().__init__()
        if config.queue_size is None:
            raise QScoreError("queue_size: expected a positive integer, got None; `settle` chooses one for the images")
        self.config = config
        self.backbone = backbone
        self.head = MoCoProjectionHead(dim, config.hidden_dim, config.output_dim)
        self.keys = momentum_copy(nn.Sequential(backbone, self.head))
        self.info_nce = NTXentLoss(config.temperature)
        self.info_nce.memory_bank = Queue(config.queue_size, config.output_dim)
        self.views = (config.augment, config.augment)

    @property
    def queue(self) -> Queue:
        """The keys of earlier batches."""
        queue: Queue = self.info_nce.memory_bank
        return queue

    def forward(self, views: list[Float[Tensor, "b 3 h w"]]) -> tuple[Float[Tensor, ""], Float[Tensor, "m r"]]:
        """Return the loss, and the query encoder's representations of both views before the projection head."""
        check_views(views, 2)
        both = self.config.symmetric
        h = torch.cat([self.backbone(view) for view in (views if both or self.h_wanted else views[:1])])
        queries = [full_precision(self.head(x)) for x in torch.split(h, len(views[0]))[: 2 if both else 1]]
        keys = [self._keys(view) for view in (reversed(views) if both else views[1:])]  # each query's other view
        with torch.autocast(views[0].device.type, enabled=False):
            losses = [self.info_nce(query, key) for query, key in zip(queries, keys, strict=True)]
        if torch.is_grad_enabled():
            for key in keys:
                self.queue.push(key)
        return torch.stack(losses).mean(), h

    @torch.no_grad()
    def _keys(self, view: Tensor) -> Tensor:
        distributed = processes() > 1
        encode: Callable[[Tensor], Tensor] = self.keys
        if not distributed:
            key = encode(view)
        else:
            shuffled, order = batch_shuffle(view, distributed=True)
            key = batch_unshuffle(encode(shuffled), order, distributed=True)
        return nn.functional.normalize(full_precision(key), dim=1)

    def after_step(self, step: int, total_steps: int) -> None:
        """Move the key encoder towards the query encoder (v1, equation 2), once per optimiser step."""
        kept = rising(step, total_steps, self.config.ema, self.config.ema_end)
        update_momentum(nn.Sequential(self.backbone, self.head), self.keys, kept)
