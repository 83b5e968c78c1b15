"""Does each method learn? kNN accuracy and RankMe before and after training, three seeds each; no test, a table.

Runs that are in --out already are not repeated, so that it can be stopped at any time, or spread over machines that
share a folder: python benchmarks/methods.py --out runs --methods byol dino. On images with more to learn:
python benchmarks/methods.py --data cifar10/train-0.npz --images 5000 --epochs 30
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from measure import machine, markdown
from sklearn.neighbors import KNeighborsClassifier

from qscore import embed, load_encoder, pretrain, representation_metrics
from qscore._files import atomic_path
from qscore.encoders import build_backbone, save_encoder
from qscore.images import open_images, subset
from qscore.ssl.methods import METHODS
from qscore.ssl.pixels import mixed_seed
from qscore.study import split_by_label
from qscore.tables import open_embeddings

NEIGHBOURS = 20
# Mirrored digits are other digits, or none; one channel thrice has no colours to change; and of 8 pixels, a fifth of
# the area is no digit any more.
DIGITS = {"flip": 0.0, "saturation": 0.0, "hue": 0.0, "grayscale": 0.0, "scale": (0.5, 1.0)}


def measure(encoder, train, test, folder):
    """Return kNN accuracy on the test half, neighbours in the training half, and RankMe of the test half."""
    tables = []
    for name, images in (("train", train), ("test", test)):
        embed(images, encoder, folder / name, workers=0, device="cpu")
        rows = open_embeddings(folder / name).read()
        tables.append((rows.embedding, rows.columns["label"].to_numpy(zero_copy_only=False)))
    (H, labels), (H_test, labels_test) = tables
    knn = KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(H, labels)
    return {"knn": knn.score(H_test, labels_test), "rankme": representation_metrics(H_test, resamples=2).rankme}


def run(method, seed, a, folder):
    """Train, and measure what came of it beside what it began with."""
    source = open_images(a.data)
    if a.images:
        source = subset(source, range(min(a.images, len(source))))
    train, test = split_by_label(source, seed)
    recipe = METHODS[method].recipes["small"]
    views = [name for name in ("augment", "augment2") if hasattr(recipe, name)]
    overrides = {f"{view}.{key}": value for view in views for key, value in DIGITS.items() if a.data == "digits"}
    begun = time.perf_counter()
    pretrain(
        *(method, train, folder / "trained"),
        recipe="small",
        epochs=a.epochs,
        overrides=overrides,
        seed=seed,
        device=a.device,
    )
    seconds = time.perf_counter() - begun
    trained = load_encoder(folder / "trained")
    torch.manual_seed(mixed_seed(seed))  # as `pretrain` began
    backbone = build_backbone(trained.source.architecture)
    save_encoder(
        *(folder / "random", trained.source.architecture, backbone.state_dict(), trained.preprocess), method=None
    )
    found = {name: measure(folder / name, train, test, folder / f"{name}-embeddings") for name in ("random", "trained")}
    return found | {"seconds": seconds, "backbone": trained.source.architecture, "n": len(train), "r": trained.dim}


def table(found):
    """Print a row for each method: mean over the seeds, and the largest difference from it."""

    def spread(values, digits):
        mean = np.mean(values)
        return f"{mean:.{digits}f} ± {np.max(np.abs(values - mean)):.{digits}f}"

    rows = []
    for method, runs in found.items():
        knn, rank = (
            {when: np.array([run[when][key] for run in runs]) for when in ("random", "trained")}
            for key in ("knn", "rankme")
        )
        gain = knn["trained"] - knn["random"]
        rows.append(
            (
                method,
                spread(knn["random"] * 100, 1),
                spread(knn["trained"] * 100, 1),
                f"{gain.mean() * 100:+.1f} (least {gain.min() * 100:+.1f})",
                spread(rank["random"], 0),
                spread(rank["trained"], 0),
                f"{np.mean([run['seconds'] for run in runs]):.0f}",
            )
        )
    header = ("", "kNN, random %", "kNN, trained %", "gain of the same seed", "RankMe, random", "RankMe, trained", "s")
    markdown(header, rows)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="digits")
    parser.add_argument("--images", type=int, default=0, help="take the first so many; 0 takes all")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("methods-runs"))
    a = parser.parse_args()
    found = {}
    for seed in a.seeds:
        for method in a.methods:
            folder = a.out / f"{Path(a.data).stem}-{a.images}-{a.epochs}" / f"{method}-{seed}"
            result = folder / "result.json"
            if not result.exists():
                content = json.dumps(run(method, seed, a, folder))
                with atomic_path(result) as file:
                    file.write_text(content)
            found.setdefault(method, []).append(json.loads(result.read_text()))
            last = found[method][-1]
            accuracy = f"{last['random']['knn']:.3f} to {last['trained']['knn']:.3f}"
            rank = f"{last['random']['rankme']:.0f} to {last['trained']['rankme']:.0f}"
            print(f"{method}, seed {seed}: kNN {accuracy}, RankMe {rank}, {last['seconds']:.0f} s", file=sys.stderr)
    any_run = next(iter(found.values()))[0]
    print(
        f"{Path(a.data).name}: {any_run['n']:,} images to train on and to be neighbours, as many others to classify "
        f"by {NEIGHBOURS} neighbours; {any_run['backbone']} with r = {any_run['r']}, recipe small, {a.epochs} epochs; "
        f"seeds {', '.join(map(str, a.seeds))}, mean and largest deviation; {machine()}, "
        f"PyTorch {torch.__version__.partition('+')[0]}.\n"
    )
    table(found)


if __name__ == "__main__":
    main()
