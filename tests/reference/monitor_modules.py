"""Modules as other people write them, small enough for a test."""

import lightning.pytorch as lightning
import pytorch_lightning
import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


class LightlySimCLR(pytorch_lightning.LightningModule):
    """After lightly's example: its backbone ends in a pooling layer, so that maps are (b, 512, 1, 1)."""

    def __init__(self):
        super().__init__()
        resnet = torchvision.models.resnet18()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = SimCLRProjectionHead(512, 16, 8)
        self.criterion = NTXentLoss()

    def forward(self, x):
        return self.projection_head(self.backbone(x).flatten(start_dim=1))

    def training_step(self, batch, batch_index):
        (x0, x1), _ = batch
        return self.criterion(self(x0), self(x1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.06)


class SoloModule(lightning.LightningModule):
    """In solo-learn's manner: a backbone, a dictionary of outputs, an online classifier, augmentation by chance."""

    def __init__(self, lr=0.1):
        super().__init__()
        self.lr = lr
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.projector = nn.Linear(32, 8)
        self.classifier = nn.Linear(32, 3)

    def forward(self, x):
        feats = self.backbone(x)
        return {"feats": feats, "logits": self.classifier(feats.detach()), "z": self.projector(feats)}

    def training_step(self, batch, batch_index):
        x, labels = batch
        outs = [self(functional.dropout(x, 0.3)) for _ in range(2)]
        loss = -functional.cosine_similarity(outs[0]["z"], outs[1]["z"].detach()).mean()
        return loss + functional.cross_entropy(outs[0]["logits"], labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr, momentum=0.9)


def some_images(n, seed, size=4):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def labelled_batches(shuffle=True):
    data = TensorDataset(some_images(24, 0), torch.arange(24) % 3)
    return DataLoader(data, batch_size=8, shuffle=shuffle)


def quiet(trainer, out, **options):
    """A trainer that writes figures and nothing to the screen."""
    package = lightning if trainer is lightning.Trainer else pytorch_lightning
    return trainer(
        accelerator="cpu",
        logger=package.loggers.CSVLogger(out, name="logs", version=0),
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
        **{"enable_checkpointing": False, **options},
    )
