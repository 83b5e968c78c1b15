"""Heatmaps of many features at once, beside captum's LayerGradCam called for each feature, in one run.

With a GPU: python benchmarks/heatmaps.py --device cuda
"""

import argparse
import os
import resource
import sys
import time

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line does; torch is not loaded yet

import torch
from captum.attr import LayerAttribution, LayerGradCam
from measure import machine, markdown

from qscore.encoders import Encoder, Preprocessing, Source, build_backbone
from qscore.explain import feature_heatmaps, mask_iou

SIZE = 224


def by_captum(encoder, x, features):
    """Return what a user of captum would compute, a feature at a time."""
    cam = LayerGradCam(encoder, encoder.backbone.layer4)
    # What it returns holds on to the graph of a whole forward pass.
    maps = [cam.attribute(x, target=j, relu_attributions=True).detach() for j in features]
    return torch.cat([LayerAttribution.interpolate(m, (SIZE, SIZE), "bilinear") for m in maps], 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=1)
    a = parser.parse_args()
    torch.manual_seed(0)
    name = f"torchvision:{a.model}"
    encoder = Encoder(build_backbone(name), Source("new", name, Preprocessing(SIZE, 256))).to(a.device)
    x = torch.randn(a.images, 3, SIZE, SIZE, device=a.device)
    features = list(range(0, encoder.dim, encoder.dim // a.features))[: a.features]
    masks = torch.zeros(a.images, SIZE, SIZE, dtype=torch.bool, device=a.device)
    masks[:, 50:150, 50:150] = True

    def one_pass():
        with torch.inference_mode():
            return encoder(x)

    found = {}

    def keep(way, heatmaps):
        found[way] = heatmaps
        return heatmaps

    ways = {
        "the bare forward pass, once": one_pass,
        "**activation**": lambda: keep("activation", feature_heatmaps(encoder, x, features)),
        "gradcam": lambda: feature_heatmaps(encoder, x, features, "gradcam"),
        "captum's LayerGradCam, a feature at a time": lambda: keep("captum", by_captum(encoder, x, features)),
        "mask_iou of the heatmaps": lambda: mask_iou(found["activation"], masks),
    }
    encoder(x[:2])
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(a.rounds):
        for way, run in ways.items():
            start = time.perf_counter()
            result = run()
            result.sum().item()  # a GPU is waited for
            seconds[way] = min(seconds[way], time.perf_counter() - start)
            print(f"{way}: {time.perf_counter() - start:.2f} s", file=sys.stderr)
    apart = (found["activation"] - found["captum"]).abs().max() / found["captum"].max()
    print(
        f"{len(features)} features of {a.images} images of {SIZE} x {SIZE} pixels, {a.model}, on {a.device} with "
        f"{torch.get_num_threads()} threads, enlarging included; best of {a.rounds} interleaved rounds; {machine()}, "
        f"PyTorch {torch.__version__.partition('+')[0]}.\n"
    )
    captum = seconds["captum's LayerGradCam, a feature at a time"]
    markdown(
        ("", "seconds", "heatmaps/s", "faster than captum"),
        [(way, f"{t:.2f}", f"{a.images * len(features) / t:,.0f}", f"{captum / t:.1f}") for way, t in seconds.items()],
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"`activation` is {captum / seconds['**activation**']:.1f} times as fast as captum, from whose heatmaps it is "
        f"at most {apart:.0e} of the largest value away. Peak memory of the process, captum's gradients included: "
        f"{peak:.1f} GiB.\n"
    )


if __name__ == "__main__":
    main()
