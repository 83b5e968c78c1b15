"""`embed` on JPEG files, beside the bare model's forward pass on ready tensors, in one run.

With a GPU: python benchmarks/embed.py --device cuda --model resnet50 --precision bf16-mixed --images 50000 \
--batch-size 256 --workers 16
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does; torch is not loaded yet

import numpy as np
import torch
import torchvision
from measure import machine, markdown
from PIL import Image

from qscore import embed, load_encoder
from qscore.embedding.network import PRECISIONS
from qscore.images import open_images

SIZES = ((320, 256), (500, 375))


def write_jpegs(folder, n, size):
    """Write JPEG files of blotches and noise, with as many bytes for each pixel as photographs have."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    width, height = size
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
        blotches = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
        noisy = blotches + rng.normal(0, 8, (height, width, 1))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:06d}.jpg", quality=90)


def forward(model, batches, device, precision, memory_format):
    """Run the bare model over tensors that lie ready on its device, in the layout that it is given."""
    model.to(memory_format=memory_format)
    dtype = PRECISIONS[precision]
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not None):
        for x in batches[memory_format]:
            h = model(x)
        h.float().cpu()  # a GPU is waited for


def make_ways(folder, images, a):
    """Return what is timed, by name."""
    device = torch.device(a.device)
    encoder = load_encoder(folder / "model.pth", method="supervised")
    model, preprocess = encoder.backbone.to(device), encoder.preprocess
    source = open_images(images)
    noise = torch.randn(a.batch_size, 3, 224, 224, device=device)
    counts = [min(a.batch_size, a.images - i) for i in range(0, a.images, a.batch_size)]
    formats = (torch.channels_last, torch.contiguous_format)
    batches = {format: [noise.contiguous(memory_format=format)[:n] for n in counts] for format in formats}

    def embedded(workers):
        def run():
            encoder = load_encoder(folder / "model.pth", method="supervised")
            out = Path(tempfile.mkdtemp(dir=folder)) / "e"
            embed(
                *(images, encoder, out), batch_size=a.batch_size, workers=workers, device=a.device,
                precision=a.precision,
            )  # fmt: skip

        return run

    return {
        "the model alone": lambda: forward(model, batches, device, a.precision, formats[0]),
        "the model alone, channels first": lambda: forward(model, batches, device, a.precision, formats[1]),
        "reading the images alone, 1 process": lambda: [
            preprocess(image) for image in map(source.image, range(a.images))
        ],
        **{f"**embed**, {workers} workers": embedded(workers) for workers in a.workers},
    }


def compare(folder, size, a):
    """Time every way in turn, in several rounds, and print the best of each."""
    images = folder / f"{size[0]}"
    write_jpegs(images, a.images, size)
    ways = make_ways(folder, images, a)
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(a.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
            print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr)
    model, _, reading, *_ = seconds.values()
    size_on_disk = sum(file.stat().st_size for file in images.iterdir()) / a.images / 1000
    print(f"JPEG files of {size[0]} x {size[1]} pixels, {size_on_disk:.0f} kB each:\n")
    markdown(
        ("", "seconds", "images/s", "of the model's rate", "of model and reading, one after the other"),
        [
            (name, f"{t:.1f}", f"{a.images / t:,.1f}", f"{model / t:.3f}", f"{(model + reading) / t:.3f}")
            for name, t in seconds.items()
        ],
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    print(
        f"{a.images:,} images, {a.model} at 224 px, {a.precision}, batches of {a.batch_size}, on {a.device} with "
        f"{torch.get_num_threads()} threads; best of {a.rounds} interleaved rounds; {machine()}, "
        f"PyTorch {torch.__version__.partition('+')[0]}.\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        torch.save(torchvision.models.get_model(a.model).state_dict(), folder / "model.pth")
        for size in SIZES:
            compare(folder, size, a)


if __name__ == "__main__":
    main()
