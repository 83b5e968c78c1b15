"""The regulariser beside a training step, and the monitor beside one embedding pass, in one run.

With a GPU, not yet run: python benchmarks/regularizer.py --device cuda --precision bf16-mixed --rounds 20 --images 4096
"""

import argparse

import torch
import torchvision
from lightly.loss import NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from measure import best_seconds, machine, markdown
from torch import nn

from qscore import LassoRegularizer, QScoreMonitor, QScoreRegularizer
from qscore.embedding.network import PRECISIONS


def make_backbone():
    """A ResNet-18 with the stem for small images."""
    backbone = torchvision.models.resnet18()
    backbone.conv1, backbone.maxpool, backbone.fc = (
        nn.Conv2d(3, 64, 3, padding=1, bias=False),
        nn.Identity(),
        nn.Identity(),
    )
    return backbone


def training_ways(a, device, autocast):
    """A SimCLR step on two views of a batch, with and without regularisers, and these alone."""
    model = nn.ModuleDict({"backbone": make_backbone(), "head": SimCLRProjectionHead(512, 2048, 128)})
    model.to(device, memory_format=torch.channels_last)
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9), NTXentLoss(0.2)
    views = torch.randn(2 * a.batch_size, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    regularizers = {
        "Q-Score": QScoreRegularizer(range(256, 486), epsilon=2.0).to(device),
        "Lasso": LassoRegularizer(),
    }

    def step(regularizer=None):
        def run():
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                h = model["backbone"](views)
                loss = criterion(*model["head"](h).float().chunk(2))
                if regularizer is not None:
                    loss = loss + regularizer(h)
            loss.backward()
            optimizer.step()
            wait(device)

        return run

    with torch.no_grad(), autocast():
        h = model["backbone"](views).requires_grad_()

    def alone(regularizer):
        def run():
            with autocast():
                loss = regularizer(h)
            loss.backward()
            wait(device)

        return run

    return {
        "a training step": step(),
        "a training step with Q-Score": step(regularizers["Q-Score"]),
        **{f"**{name} alone**, forward and backward": alone(part) for name, part in regularizers.items()},
    }


def embedding_ways(a, device):
    """The monitor, and what it cannot do without."""
    model = nn.ModuleDict({"backbone": make_backbone()}).to(device)
    images = torch.randn(a.images, 3, 32, 32)
    monitor = QScoreMonitor(images, max_images=a.images, batch_size=a.batch_size)

    def embed():
        model.eval()
        with torch.no_grad():
            parts = [model["backbone"](x.to(device)).cpu() for x in images.split(a.batch_size)]
        model.train()
        return torch.cat(parts)

    return {"one embedding pass": embed, "**the monitor**": lambda: monitor(model, 0)}


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true", choices=PRECISIONS)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    device, dtype = torch.device(a.device), PRECISIONS[a.precision]
    torch.manual_seed(0)
    print(
        f"ResNet-18 at 32 px, {a.precision}, on {a.device} with {torch.get_num_threads()} threads; best of {a.rounds} "
        f"interleaved rounds; {machine()}, PyTorch {torch.__version__.partition('+')[0]}.\n"
    )
    ways = training_ways(a, device, lambda: torch.autocast(device.type, dtype, enabled=dtype is not None))
    seconds = best_seconds(ways, repeats=a.rounds)
    whole = seconds["a training step"]
    print(f"SimCLR on two views of {a.batch_size} images:\n")
    markdown(
        ("", "milliseconds", "of a step"),
        [(name, f"{1000 * t:,.1f}", f"{t / whole:.2%}") for name, t in seconds.items()],
    )
    seconds = best_seconds(embedding_ways(a, device), repeats=a.rounds)
    whole = seconds["one embedding pass"]
    print(f"{a.images:,} held-out images:\n")
    markdown(("", "seconds", "of the pass"), [(name, f"{t:.2f}", f"{t / whole:.3f}") for name, t in seconds.items()])


if __name__ == "__main__":
    main()
