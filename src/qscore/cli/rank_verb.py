"""The verb that orders checkpoints without labels."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from qscore._validate import require
from qscore.cli.options import IMAGES, BatchSize, Device, Overwrite, Precision, Seed, Workers, read_epsilon
from qscore.cli.verb import Outcome, verb

__all__ = ["rank_app"]

rank_app = typer.Typer()

SHORT = {
    "rankme": "RankMe",
    "alpha_req": "alpha",
    "nesum": "NESum",
    "stable_rank": "stable",
    "uniformity": "unif.",
    "normalized_std": "std",
    "hoyer": "Hoyer",
    "q_over_sigma": "Q/sigma",
    "coverage": "cover",
    "dead": "dead",
    "alignment": "align",
}


@rank_app.command()
@verb
def rank(
    checkpoints: Annotated[
        list[str], typer.Argument(help="Encoders, patterns such as 'run/checkpoints/epoch-*', or a folder of them.")
    ],
    images: Annotated[str, typer.Option(help=IMAGES)],
    test_images: Annotated[
        str | None, typer.Option(help="Images to measure on.", show_default="a fifth of --images, held out")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for rank.json and the embeddings.", show_default="nothing is kept")
    ] = None,
    by: Annotated[
        str, typer.Option(help="The criterion that orders: rankme, alpha_req, nesum, q_over_sigma, ...")
    ] = "rankme",
    rows: Annotated[int, typer.Option(min=10, help="Images taken at most, to learn from and to measure on.")] = 10_000,
    views: Annotated[
        int, typer.Option(min=0, max=127, help="Augmented views of each image, for alignment: none, or at least 2.")
    ] = 0,
    epsilon: Annotated[
        str,
        typer.Option(
            help="Of Q and coverage, the same for all; auto takes the largest that suits one of them, and paper is 4."
        ),
    ] = "auto",
    batch_size: BatchSize = 256,
    device: Device = "auto",
    workers: Workers = None,
    precision: Precision = "32-true",
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the checkpoints.")] = 2000,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> Outcome:
    """Order checkpoints by criteria that need no labels; with labels, say how well each criterion chooses.

    Example:  qscore rank 'encoders/simclr/checkpoints/epoch-*' --images 'data/train-*.npz' --test-images data/test.npz
    """
    require("torch", "vision")
    from qscore.study import rank_checkpoints as run

    found = run(
        checkpoints,
        images,
        test_images=test_images,
        out=out,
        by=by,
        rows=rows,
        views=views,
        epsilon=read_epsilon(epsilon),
        batch_size=batch_size,
        device=device,
        workers=workers,
        precision=precision,
        resamples=resamples,
        seed=seed,
        overwrite=overwrite,
    )
    said = [f"Ranking: {out / 'rank.json'}"] if out is not None else []
    return Outcome(found, [*_tables(found), *found["sentences"], *said])


def _tables(found: Mapping[str, Any]) -> Iterator[Table]:
    rows = found["checkpoints"]
    shown = [name for name in SHORT if name in found["criteria"]]
    names = _without_common([row["checkpoint"] for row in rows])
    title = f"By {found['criteria'][found['by']]['title']}, best first"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("checkpoint", *(["probe, %"] if found["labelled"] else []), *(SHORT[name] for name in shown)):
        table.add_column(column, justify="left" if column == "checkpoint" else "right", no_wrap=column != "checkpoint")
    for name, row in zip(names, rows, strict=True):
        accuracy = [f"{100 * row['accuracy']:.2f}"] if found["labelled"] else []
        table.add_row(escape(name), *accuracy, *(_number(row["criteria"][name]) for name in shown))
    yield table
    if not found["labelled"]:
        return
    against = Table(
        title="Each criterion against the probe (95 % intervals over checkpoints)", box=SIMPLE_HEAD, pad_edge=False
    )
    for k, column in enumerate(("criterion", "better", "Spearman", "Kendall", "regret, points")):
        against.add_column(column, justify="left" if k < 2 else "right", no_wrap=True)
    for name in shown:
        of = found["criteria"][name]
        regret = "" if math.isnan(of["regret"]) else f"{100 * of['regret']:.2f}"
        against.add_row(of["title"], of["better"], _correlation(of["spearman"]), _correlation(of["kendall"]), regret)
    yield against


def _without_common(names: list[str]) -> list[str]:
    """Return paths without the folders that all of them begin with."""
    parts = [Path(name).parts for name in names]
    shared = 0
    while len(names) > 1 and all(len(p) > shared + 1 and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return [str(Path(*p[shared:])) if shared else name for p, name in zip(parts, names, strict=True)]


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.3g}"


def _correlation(of: Mapping[str, float] | None) -> str:
    if of is None:
        return ""
    if math.isnan(of["low"]):
        return f"{of['value']:+.2f}"
    return f"{of['value']:+.2f} ({of['low']:+.2f}, {of['high']:+.2f})"
