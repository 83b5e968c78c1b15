"""Embeddings of augmented views, made a batch at a time where the encoder runs.

`qscore.embed` makes each view a function of its image's id alone, one by one, so that any image can be looked up; here
thousands of test images of many checkpoints are wanted, and batches are made dozens of times as fast. The views of a
batch follow from the seed, the number of the view, and the batch's place among batches of a fixed size.
"""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from qscore._files import atomic_path
from qscore._progress import progress
from qscore.encoders import Encoder
from qscore.images import ImageSource, subset
from qscore.images.augment import Augmentation, Augmenter
from qscore.ssl.hardware import device_of
from qscore.ssl.pixels import load_pixels, mixed_seed
from qscore.ssl.train import MOST_THREADS

__all__ = ["embed_views"]

BATCH = 256  # images; fixed, since views depend on it
READ_AHEAD = 8  # batches decoded together


def embed_views(source: ImageSource, encoder: Encoder, out: Path, *, views: int, seed: int, device: str) -> Path:
    """Write an embedding table of ``views`` augmented views of each image, those of an image next to each other.

    Parameters
    ----------
    source : ImageSource
        n images.
    encoder : Encoder
        With r features.
    out : Path
        A Parquet file, of n times ``views`` rows: ``id``, ``view`` from 1, ``embedding``.
    views : int
        At least 1; made by SimCLR's recipe at the encoder's size.
    seed : int
        Of the views.
    device : str
        As `pretrain` takes it.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    QScoreError
        If an image cannot be read, or the file not written.
    """
    preprocess, target = encoder.preprocess, device_of(device)
    augmenter = Augmenter(Augmentation(size=preprocess.crop), preprocess.mean, preprocess.std).to(target)
    network = encoder.to(target).eval()
    n, threads = len(source), min(os.cpu_count() or 1, MOST_THREADS)
    found = np.empty((n, views, encoder.dim), dtype=np.float32)
    step = BATCH * READ_AHEAD
    with (
        progress("embed views", n * views, "views") as advance,
        torch.random.fork_rng(range(torch.cuda.device_count())),
        torch.no_grad(),
    ):
        for first in range(0, n, step):
            here = range(first, min(first + step, n))
            pixels = load_pixels(subset(source, here), preprocess.crop, threads)
            for start in range(0, len(here), BATCH):
                images = pixels[start : start + BATCH].to(target)
                at = slice(first + start, first + start + len(images))
                for view in range(views):
                    torch.manual_seed(mixed_seed(seed, view, (first + start) // BATCH))
                    found[at, view] = network(augmenter(images)).float().cpu().numpy()
                    advance(len(images))
    encoder.cpu()
    ids = [source.record(i).id for i in range(n)]
    flat = pa.array(found.reshape(-1))
    table = pa.table(
        {
            "id": pa.array(np.repeat(np.array(ids, dtype=object), views), pa.string()),
            "view": pa.array(np.tile(np.arange(1, views + 1, dtype=np.int8), n)),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, encoder.dim),
        }
    )
    with atomic_path(out) as temporary:
        pq.write_table(table, temporary, compression="none", use_dictionary=False)
    return out
