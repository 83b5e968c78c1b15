"""SwAV: the cluster that one view of an image is assigned to should be predictable from its other views."""

from dataclasses import dataclass, replace
from typing import final

import torch
from jaxtyping import Float
from lightly.loss import SwaVLoss
from lightly.models.modules import SwaVProjectionHead
from lightly.models.utils import normalize_weight
from lightly.utils.dist import rank
from torch import Tensor, nn

from qscore._validate import QScoreError
from qscore.images.augment import Augmentation
from qscore.ssl.parts import Queue, check_positive, check_views, full_precision, processes

__all__ = ["RECIPES", "Config", "SwAV", "settle"]

VIEW = Augmentation(scale=(0.14, 1.0))  # SimCLR's colours (section 4.1; the authors' code)
LOCAL_VIEW = replace(VIEW, size=96, scale=(0.05, 0.14))
MOST_PROTOTYPES = 512  # where their number is chosen by the number of images


@dataclass(frozen=True)
class Config:
    """Settings of SwAV; the defaults are the paper's for ImageNet.

    Raises
    ------
    QScoreError
        If a value lies outside its range.

    References
    ----------
    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020
    (arXiv 2006.09882).
    """

    epochs: int = 800
    """Passes over the images (appendix A.1)."""
    warmup_epochs: float = 10.0
    """Epochs of linear warm-up before the cosine decay (appendix A.1)."""
    batch_size: int = 4096
    """Images per step, over all processes (appendix A.1)."""
    optimizer: str = "lars"
    """``"lars"``, ``"adamw"`` or ``"sgd"`` (appendix A.1)."""
    lr: float = 0.3
    """Learning rate for 256 images per step; it grows linearly with the batch, to 4.8 for 4,096 (appendix A.1)."""
    lr_end: float = 3e-4
    """What it decays to, for 256 images per step: 0.0048 for 4,096 (appendix A.1)."""
    weight_decay: float = 1e-6
    """Here not applied to biases and normalisation layers, where the authors' code applies it too (appendix A.1)."""
    momentum: float = 0.9
    """Of LARS and SGD (the authors' code)."""
    trust_coefficient: float = 0.001
    """Of LARS (the authors' code)."""
    temperature: float = 0.1
    """Of the softmax over prototypes; positive (appendix A.1)."""
    n_prototypes: int | None = 3000
    """Clusters; None takes half as many as images in a batch, at most 512 (section 4.1)."""
    sinkhorn_epsilon: float = 0.05
    """Smoothness of the assignment; positive (appendix A.1)."""
    sinkhorn_iterations: int = 3
    """Rounds of Sinkhorn's algorithm, at least 1 (appendix A.1)."""
    queue_size: int = 0
    """Earlier outputs that are assigned along with a batch, for batches smaller than the prototypes (appendix A.1)."""
    queue_start: int = 15
    """Epoch from which the queue is filled, to be used once full; the first is 0 (appendix A.1)."""
    freeze_epochs: int = 1
    """Epochs in which the prototypes stay as they are; 0 or more (appendix A.1; 313 steps in the authors' code)."""
    hidden_dim: int = 2048
    """Width of the projection head (the authors' code)."""
    output_dim: int = 128
    """Number of values compared with the prototypes (appendix A.1)."""
    augment: Augmentation = VIEW
    """How both global views are made (section 4.1; the authors' code)."""
    local: Augmentation = LOCAL_VIEW
    """How the local views are made (section 4.1; the authors' code)."""
    n_local: int = 6
    """Number of local views, 0 or more (section 4.1)."""

    def __post_init__(self) -> None:
        check_positive(self, "temperature", "n_prototypes", "sinkhorn_epsilon", "sinkhorn_iterations")
        check_positive(self, "hidden_dim", "output_dim")
        check_positive(self, "lr_end", "queue_size", "queue_start", "freeze_epochs", "n_local", zero=True)


RECIPES = {
    "imagenet": Config(),
    # solo-learn's (scripts/pretrain/cifar/swav.yaml, augmentations/symmetric.yaml).
    "cifar": Config(
        epochs=1000,
        batch_size=256,
        lr=0.6,
        lr_end=0.0,
        trust_coefficient=0.02,
        queue_size=3840,
        queue_start=50,
        freeze_epochs=2,
        augment=Augmentation(size=32, kernel=0.4),
        local=Augmentation(size=16, scale=(0.05, 0.14), kernel=0.4),
        n_local=0,
    ),
    # Ours, for hundreds to thousands of images.
    "small": Config(
        epochs=100,
        batch_size=256,
        optimizer="adamw",
        lr=2e-3,
        lr_end=0.0,
        weight_decay=1e-4,
        n_prototypes=None,
        hidden_dim=512,
        augment=Augmentation(scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0),
        local=Augmentation(size=96, scale=(0.05, 0.2), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.0),
        n_local=0,
    ),
}


def settle(config: Config, batch_size: int, n: int) -> Config:
    """Return settings with a number of prototypes that suits the data, where it was left open.

    Parameters
    ----------
    config : Config
        The settings.
    batch_size : int
        Images per step.
    n : int
        Images in all.

    Raises
    ------
    QScoreError
        If there are more prototypes than images, or than are assigned at a time: some would have no image at all.
    """
    if config.n_prototypes is None:
        return replace(config, n_prototypes=max(2, min(batch_size // 2, MOST_PROTOTYPES)))
    most = min(n, batch_size + config.queue_size)
    if config.n_prototypes > most:
        raise QScoreError(
            f"n_prototypes: expected at most {most}, got {config.n_prototypes}: there are {n} images, "
            f"{batch_size + config.queue_size} in a batch and the queue; "
            "take fewer prototypes, or a larger batch_size or queue_size"
        )
    return config


@final
class SwAV(nn.Module):
    """Encoder, projection head, prototypes, a queue, and the loss.

    The queue takes the outputs for both global views, side by side, of every forward pass that is trained on, so once
    per part of a batch taken in parts.

    Parameters
    ----------
    backbone : nn.Module
        Maps (b, 3, h, w) to (b, dim) at any size of view.
    dim : int
        Number of features of the backbone.
    config : Config
        Settings of the head, the prototypes and the loss, and how views are made.
    """

    def __init__(self, backbone: nn.Module, dim: int, config: Config) -> None:
        super().__init__()
        if config.n_prototypes is None:
            raise QScoreError(
                "n_prototypes: expected a positive integer, got None; `settle` chooses one for the images"
            )
        self.config = config
        self.backbone = backbone
        self.head = SwaVProjectionHead(dim, config.hidden_dim, config.output_dim)
        self.prototypes = nn.Linear(config.output_dim, config.n_prototypes, bias=False)  # lightly's have a bias
        normalize_weight(self.prototypes.weight)
        self.queue = Queue(config.queue_size, 2 * config.output_dim) if config.queue_size else None
        self.swav = SwaVLoss(
            config.temperature,
            config.sinkhorn_iterations,
            config.sinkhorn_epsilon,
            sinkhorn_gather_distributed=torch.distributed.is_available(),
        )
        self.epoch = 0  # a Python number, since reading one from a GPU would wait for it
        self.views = (config.augment, config.augment, *(config.local,) * config.n_local)

    def forward(self, views: list[Float[Tensor, "b 3 h w"]]) -> tuple[Float[Tensor, ""], Float[Tensor, "2*b r"]]:
        """Return the loss, and the representations of the global views before the projection head."""
        check_views(views, len(self.views))
        h = self.backbone(torch.cat(views[:2]))  # (2 b, r)
        features = torch.cat([h, self.backbone(torch.cat(views[2:]))]) if views[2:] else h
        z = full_precision(self.head(features))
        with torch.autocast(z.device.type, enabled=False):
            z = nn.functional.normalize(z, dim=1)  # (v b, output_dim)
            scores = self.prototypes(z).chunk(len(views))
            loss: Tensor = self.swav(list(scores[:2]), list(scores[2:]), self._queued_scores())
        if self.queue is not None and self.epoch >= self.config.queue_start and torch.is_grad_enabled():
            self.queue.push(torch.cat(z.detach().chunk(len(views))[:2], dim=1))
        return loss.squeeze(), h

    @torch.no_grad()
    def _queued_scores(self) -> list[Tensor] | None:
        """Return what the queue's outputs for each global view score, each process its share, once it is full."""
        if self.queue is None or not self.queue.full:
            return None
        rows = self.queue.rows
        if processes() > 1:  # equal shares, or lightly's Sinkhorn would weigh the processes unequally
            rows = rows[: len(rows) // processes() * processes()][rank() :: processes()]
        return [self.prototypes(outputs) for outputs in rows.chunk(2, dim=1)]

    def after_backward(self, step: int, total_steps: int, epoch: int) -> None:
        """Keep the prototypes as they are in the first epochs."""
        if epoch < self.config.freeze_epochs:
            self.prototypes.weight.grad = None

    def after_step(self, step: int, total_steps: int) -> None:
        """Bring the prototypes back to unit length, and note the epoch of the next step."""
        normalize_weight(self.prototypes.weight)
        self.epoch = step * self.config.epochs // total_steps

    def get_extra_state(self) -> Tensor:
        """Return what belongs into a checkpoint besides parameters and buffers."""
        return torch.tensor(self.epoch)

    def set_extra_state(self, state: Tensor) -> None:
        """Take it back."""
        self.epoch = int(state)
