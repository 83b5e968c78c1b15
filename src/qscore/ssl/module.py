"""What Lightning needs to train any method: a step, its hooks, and all that is random as a function of the place."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, final

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn, optim

from qscore.images.augment import Augmentation
from qscore.ssl.addition import Addition
from qscore.ssl.methods import Method, TrainingConfig
from qscore.ssl.optim import build_optimizer, set_rates
from qscore.ssl.pixels import Share, Triple, mixed_seed

__all__ = ["Feed", "Training"]


class Feed(Protocol):
    """Where the images of a training come from."""

    @property
    def statistics(self) -> tuple[Triple, Triple]:
        """Mean and standard deviation of the colours, for the views' normalisation."""

    def __len__(self) -> int: ...

    def augmenter(self, view: Augmentation) -> nn.Module:
        """Return what makes a view out of `images`."""

    def open(self, share: Share, device: torch.device) -> None:
        """Say which images this process will ask for, and where they shall be."""

    def images(self, epoch: int, batch: int, views: int) -> list[Tensor]:
        """Return this process's images of a micro-batch, (b, 3, h, w) uint8, for each of the views."""

    def close(self) -> None:
        """Let go of what `open` took."""


@final
class Training(LightningModule):
    """A method, and its images.

    Parameters
    ----------
    method : Method
        What is trained, in place.
    config : TrainingConfig
        How.
    feed : Feed
        On what.
    seed : int
        Of everything random.
    parts : int
        Micro-batches that make one batch, over all processes.
    addition : Addition or None
        What is added to the loss.
    whole : bool
        Whether the encoder sees both global views, needed or not; always so with an addition.
    frozen : sequence of nn.Module
        Parts that stay as they are, BatchNorm's statistics included.
    """

    def __init__(
        self,
        method: Method,
        config: TrainingConfig,
        feed: Feed,
        *,
        seed: int,
        parts: int,
        addition: Addition | None = None,
        whole: bool = False,
        frozen: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.method = method
        if hasattr(method, "h_wanted"):
            method.h_wanted = whole or addition is not None
        self.addition = addition
        self._frozen = tuple(frozen)
        for part in self._frozen:
            part.requires_grad_(False)
        self.config = config
        self.feed = feed
        self.seed = seed
        self.micro_batch = config.batch_size // parts
        self.augmenters = nn.ModuleList(map(feed.augmenter, method.views))
        self.to(memory_format=torch.channels_last)  # a quarter of the time of convolutions is saved
        self.steps_per_epoch = len(feed) // config.batch_size
        self.total_steps = config.epochs * self.steps_per_epoch
        self.warmup_steps = int(config.warmup_epochs * self.steps_per_epoch)  # rounded down: a step of decay remains

    def on_fit_start(self) -> None:
        """Tell the feed which images are this process's."""
        for part in self._frozen:
            part.eval()
        world, batches = self.trainer.world_size, self.steps_per_epoch * self.trainer.accumulate_grad_batches
        share = Share(
            *(len(self.feed), self.seed, self.micro_batch * world, batches, self.config.epochs),
            *(self.global_rank, world),
        )
        self.feed.open(share, self.device)

    def train_dataloader(self) -> "MicroBatches":
        """Return the numbers of an epoch's micro-batches; which images they mean, the feed works out."""
        return MicroBatches(self.steps_per_epoch * self.trainer.accumulate_grad_batches)

    def training_step(self, _batch: int, batch_idx: int) -> Tensor:
        """Return the loss of a micro-batch, whose images and views are a function of seed, epoch, step and rank."""
        if self.addition is not None:
            self.addition.begin(self.method, self.current_epoch, batch_idx)
        images = self.feed.images(self.current_epoch, batch_idx, len(self.augmenters))
        torch.manual_seed(mixed_seed(self.seed, self.current_epoch, batch_idx, self.global_rank))
        views = [
            augmenter(pixels).contiguous(memory_format=torch.channels_last)
            for augmenter, pixels in zip(self.augmenters, images, strict=True)
        ]
        loss, h = self.method(views)
        if self.addition is not None:
            loss = loss + self.addition(loss, h, self.trainer.global_step)
            if noted := self.addition.latest(self.trainer.global_step):
                for logger in self.loggers:
                    logger.log_metrics(noted, self.trainer.global_step)
        self.log("loss", loss, on_step=True, on_epoch=True, sync_dist=True, batch_size=self.micro_batch)
        return loss

    def on_before_optimizer_step(self, optimizer: optim.Optimizer) -> None:
        """Let the method change the gradients: they are complete and unscaled, and not yet clipped."""
        after_backward = getattr(self.method, "after_backward", None)
        if after_backward is not None:
            after_backward(self.trainer.global_step, self.total_steps, self.current_epoch)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Take a step at its own learning rate, and let the method do what follows one."""
        step = self.trainer.global_step
        set_rates(optimizer, self.config, step, self.total_steps, self.warmup_steps)
        self.log("lr", optimizer.param_groups[0]["lr"])
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        after_step = getattr(self.method, "after_step", None)
        if after_step is not None:
            after_step(step + 1, self.total_steps)

    def configure_optimizers(self) -> optim.Optimizer:
        """Return the optimiser; `optimizer_step` sets its learning rate."""
        return build_optimizer(self, self.config, getattr(self.method, "constant_lr", ()))


@final
class MicroBatches:
    """The numbers 0 to ``count`` - 1; it has no state, so that an epoch can be resumed anywhere."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: Lightning asks a loader that can be resumed for its state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing back."""
