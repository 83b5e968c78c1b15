"""A training step of each method, beside lightly's example loop for it, in one run; reading the images included.

With a GPU: python benchmarks/pretrain.py --device cuda --backbone small:resnet18-64 --batch-size 512 --images 50000 \
--steps 60 --workers 16
"""

import argparse
import copy
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does; torch is not loaded yet

import lightly.loss as losses
import lightly.models.modules as parts
import lightly.transforms as transforms
import numpy as np
import torch
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from measure import machine, markdown
from PIL import Image
from torch import nn

from qscore import pretrain
from qscore.encoders import build_backbone, measure_output
from qscore.ssl.methods import METHODS
from qscore.ssl.watch import Watch

SIZE, LOCAL = 32, 16
WARM_UP = 3  # steps that are not counted
LR = 1e-3  # of both; VICReg at the 0.06 of lightly's examples diverges on such images
SETTINGS = {  # the widths and views of lightly's examples, or ours for both
    "simclr": {"hidden_dim": 512, "output_dim": 128},
    "moco": {"hidden_dim": 512, "output_dim": 128, "queue_size": 4096, "symmetric": False},
    "swav": {"hidden_dim": 512, "output_dim": 128, "n_prototypes": 128, "n_local": 6, "queue_size": 0},
    "byol": {"hidden_dim": 1024, "output_dim": 256},
    "simsiam": {"hidden_dim": 512, "output_dim": 128, "prediction_dim": 64},
    "dino": {"hidden_dim": 512, "bottleneck_dim": 64, "output_dim": 2048, "n_local": 6},
    "vicreg": {"hidden_dim": 2048, "output_dim": 2048},
    "barlow": {"hidden_dim": 2048, "output_dim": 2048},
}


def draw_images(n):
    """Return images of blotches and noise, (n, 32, 32, 3) uint8."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (n, 3, 4, 4)).astype(np.float32))
    smooth = nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").permute(0, 2, 3, 1).numpy()
    return (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


class Images(torch.utils.data.Dataset):
    """Images in memory, one by one: a data set for lightly, a source of images for us."""

    name, labels, class_names, fingerprint = "synthetic", None, None, "synthetic"

    def __init__(self, pixels, transform=None):
        self.pixels = pixels
        self.transform = transform

    def __len__(self):
        return len(self.pixels)

    def image(self, index):
        return Image.fromarray(self.pixels[index])

    def __getitem__(self, index):
        return self.transform(self.image(index))


class Network(nn.Module):
    """Backbone and heads of lightly's examples, with copies that follow where a method has them."""

    def __init__(self, name, backbone, dim):
        super().__init__()
        s = SETTINGS[name]
        hidden, out = s["hidden_dim"], s["output_dim"]
        self.backbone = backbone
        self.prediction = self.prototypes = None
        if name == "simclr":
            self.head = parts.SimCLRProjectionHead(dim, hidden, out)
        elif name == "moco":
            self.head = parts.MoCoProjectionHead(dim, hidden, out)
        elif name == "swav":
            self.head = parts.SwaVProjectionHead(dim, hidden, out)
            self.prototypes = parts.SwaVPrototypes(out, s["n_prototypes"])
        elif name == "byol":
            self.head = parts.BYOLProjectionHead(dim, hidden, out)
            self.prediction = parts.BYOLPredictionHead(out, hidden, out)
        elif name == "simsiam":
            self.head = parts.SimSiamProjectionHead(dim, hidden, out)
            self.prediction = parts.SimSiamPredictionHead(out, s["prediction_dim"], out)
        elif name == "dino":
            self.head = parts.DINOProjectionHead(dim, hidden, s["bottleneck_dim"], out, freeze_last_layer=1)
        elif name == "vicreg":
            self.head = VICRegProjectionHead(dim, hidden, out)
        else:
            self.head = parts.BarlowTwinsProjectionHead(dim, hidden, out)
        self.momentum = None
        if name in ("moco", "byol"):
            self.momentum = copy.deepcopy(nn.Sequential(self.backbone, self.head))
        elif name == "dino":  # its head cannot be copied
            head = parts.DINOProjectionHead(dim, hidden, s["bottleneck_dim"], out)
            self.momentum = nn.Sequential(copy.deepcopy(self.backbone), head)
        if self.momentum is not None:
            deactivate_requires_grad(self.momentum)

    def forward(self, x):
        z = self.head(self.backbone(x))
        if self.prototypes is not None:
            return self.prototypes(nn.functional.normalize(z, dim=1, p=2))
        return z

    def follow(self):
        online = nn.Sequential(self.backbone, self.head)
        update_momentum(online, self.momentum, m=0.99)


def their_loss(name):
    """Return lightly's criterion, and the step of its example: model and views in, loss out."""
    if name == "simclr":
        criterion = losses.NTXentLoss()
        return criterion, lambda m, v: criterion(m(v[0]), m(v[1]))
    if name == "moco":
        criterion = losses.NTXentLoss(memory_bank_size=(SETTINGS[name]["queue_size"], SETTINGS[name]["output_dim"]))

        def moco(m, v):
            m.follow()
            return criterion(m(v[0]), m.momentum(v[1]).detach())

        return criterion, moco
    if name == "swav":
        criterion = losses.SwaVLoss()

        def swav(m, v):
            m.prototypes.normalize()
            features = [m(x) for x in v]
            return criterion(features[:2], features[2:])

        return criterion, swav
    if name == "byol":
        criterion = losses.NegativeCosineSimilarity()

        def byol(m, v):
            m.follow()
            z0, z1 = m.momentum(v[0]).detach(), m.momentum(v[1]).detach()
            return 0.5 * (criterion(m.prediction(m(v[0])), z1) + criterion(m.prediction(m(v[1])), z0))

        return criterion, byol
    if name == "simsiam":
        criterion = losses.NegativeCosineSimilarity()

        def simsiam(m, v):
            z0, z1 = m(v[0]), m(v[1])
            p0, p1 = m.prediction(z0), m.prediction(z1)
            return 0.5 * (criterion(z0.detach(), p1) + criterion(z1.detach(), p0))

        return criterion, simsiam
    if name == "dino":
        criterion = losses.DINOLoss(output_dim=SETTINGS[name]["output_dim"], warmup_teacher_temp_epochs=5)

        def dino(m, v):
            m.follow()
            with torch.no_grad():
                teacher = [m.momentum(x) for x in v[:2]]
            return criterion(teacher, [m(x) for x in v], epoch=0)

        return criterion, dino
    criterion = losses.VICRegLoss() if name == "vicreg" else losses.BarlowTwinsLoss()
    return criterion, lambda m, v: criterion(m(v[0]), m(v[1]))


def their_transform(name):
    """Return the transform of lightly's example, for small images."""
    if name == "swav":
        return transforms.SwaVTransform(crop_sizes=(SIZE, LOCAL), crop_counts=(2, 6), gaussian_blur=0.0)
    if name == "dino":
        return transforms.DINOTransform(
            global_crop_size=SIZE, local_crop_size=LOCAL, n_local_views=6, gaussian_blur=(0.0, 0.0, 0.0)
        )
    if name == "byol":
        return transforms.BYOLTransform(
            transforms.BYOLView1Transform(input_size=SIZE, gaussian_blur=0.0),
            transforms.BYOLView2Transform(input_size=SIZE, gaussian_blur=0.0),
        )
    kinds = {"moco": transforms.MoCoV2Transform, "simsiam": transforms.SimSiamTransform}
    kinds["vicreg"] = transforms.VICRegTransform
    return kinds.get(name, transforms.SimCLRTransform)(input_size=SIZE, gaussian_blur=0.0)


def run_theirs(name, pixels, a):
    """Return the seconds of a step of lightly's example, mean of all but the first ones."""
    torch.manual_seed(0)
    backbone = build_backbone(a.backbone)
    model = Network(name, backbone, measure_output(backbone, SIZE)[0]).to(a.device)
    criterion, step = their_loss(name)
    criterion.to(a.device)
    loader = torch.utils.data.DataLoader(
        Images(pixels, their_transform(name)),
        batch_size=a.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=a.workers,
        pin_memory=a.device != "cpu",
        persistent_workers=True,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    times = []
    while len(times) < a.steps:
        for batch in loader:
            loss = step(model, [view.to(a.device, non_blocking=True) for view in batch])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(now(a.device, wait=len(times) + 1 in (WARM_UP, a.steps)))
            if len(times) == a.steps:
                break
    return (times[-1] - times[WARM_UP - 1]) / (a.steps - WARM_UP)


def run_ours(name, images, a, folder):
    """Return the seconds of a step of `pretrain`, as above, with its checks, logs and checkpoints."""
    times = []
    end = Watch.on_train_batch_end

    def timed(*arguments, **more):
        end(*arguments, **more)
        times.append(now(a.device, wait=len(times) + 1 in (WARM_UP, a.steps)))

    per_epoch = len(images) // a.batch_size
    overrides = SETTINGS[name] | {"batch_size": a.batch_size, "optimizer": "sgd", "lr": LR, "warmup_epochs": 0.0}
    overrides |= {"queue_start": 0} if name == "swav" else {}
    Watch.on_train_batch_end = timed
    try:
        pretrain(
            *(name, images, folder),
            backbone=a.backbone,
            recipe="cifar",
            epochs=-(-a.steps // per_epoch),
            overrides=overrides,
            device=a.device,
        )
    finally:
        Watch.on_train_batch_end = end
    return (times[a.steps - 1] - times[WARM_UP - 1]) / (a.steps - WARM_UP)


def now(device, wait):
    if wait and device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backbone", default="small:resnet18-8")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    a = parser.parse_args()
    pixels = draw_images(a.images)
    print(
        f"{a.backbone} at {SIZE} px, float32, batches of {a.batch_size}, on {a.device} with {torch.get_num_threads()} "
        f"threads; lightly with {a.workers} worker processes; mean of steps {WARM_UP + 1} to {a.steps}, best of "
        f"{a.rounds} interleaved rounds; {machine()}, PyTorch {torch.__version__.partition('+')[0]}.\n"
    )
    rows = []
    for name in a.methods:
        ours = theirs = float("inf")
        for _ in range(a.rounds):
            theirs = min(theirs, run_theirs(name, pixels, a))
            with tempfile.TemporaryDirectory() as folder:
                ours = min(ours, run_ours(name, Images(pixels), a, Path(folder) / "out"))
        print(f"{name}: {ours:.3f} s, lightly {theirs:.3f} s", file=sys.stderr)
        rate = a.batch_size / ours
        rows.append((name, f"{theirs * 1000:.0f}", f"{ours * 1000:.0f}", f"{rate:,.0f}", f"**{theirs / ours:.2f}**"))
    markdown(("", "lightly's example, ms per step", "qscore, ms per step", "images/s", "times as fast"), rows)


if __name__ == "__main__":
    main()
