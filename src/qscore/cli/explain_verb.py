"""The verb that shows what features look at."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from qscore._validate import require
from qscore.cli.options import BatchSize, Device, Images, Overwrite, Seed
from qscore.cli.verb import Outcome, verb

__all__ = ["explain_app"]

explain_app = typer.Typer()

METRICS = {
    "iou": "IoU",
    "soft_iou": "soft IoU",
    "pointing": "pointing",
    "energy": "energy inside",
    "iou_half": "IoU at half",
}
SETS = {
    "discriminative": "D",
    "outside": "active features outside D",
    "random": "random sets",
    "frequent": "most frequent features",
    "gaussian": "centred map",
    "random_map": "random map",
}


@explain_app.command()
@verb
def explain(
    images: Images,
    encoder: Annotated[str, typer.Option(help="The encoder whose embeddings were scored.")],
    scores: Annotated[Path, typer.Option(help="The score table.")],
    out: Annotated[Path, typer.Option(help="Directory of pictures, tables and explain.json.")],
    masks: Annotated[
        str | None,
        typer.Option(
            help="Masks of the images: a folder, an .npz archive, Salient ImageNet's folder, or 'shapes'.",
            show_default="none: pictures and cards only",
        ),
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(help="Evaluation table: which rows are correct.", show_default="evaluation.parquet beside SCORES"),
    ] = None,
    embeddings: Annotated[
        str | None,
        typer.Option(help="The embedding table, for correlated features.", show_default="embeddings beside SCORES"),
    ] = None,
    before: Annotated[
        Path | None, typer.Option(help="Directory of an earlier explanation of the same images, to compare with.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="Of the heatmaps: activation, gradcam, gradient, or integrated_gradients.")
    ] = "activation",
    layer: Annotated[
        str | None, typer.Option(help="Module whose maps are shown.", show_default="the method's choice")
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=2, help="Images measured against masks at most.", show_default="all")
    ] = None,
    batch_size: BatchSize = 64,
    device: Device = "auto",
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = 2000,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> Outcome:
    """Show what each discriminative feature looks at; with masks, say whether that is the object or the background.

    Example:  qscore explain photos/ --encoder encoder --scores run/scores.parquet --masks masks/ --out run/heatmaps
    """
    require("torch", "vision")
    from qscore.explain import explain_scores as run

    found = run(
        images,
        encoder,
        scores,
        out,
        masks=masks,
        evaluation=evaluation,
        embeddings=embeddings,
        before=before,
        method=method,
        layer=layer,
        rows=rows,
        batch_size=batch_size,
        device=device,
        resamples=resamples,
        seed=seed,
        overwrite=overwrite,
    )
    said = [*found["sentences"], *found["pictures"].get("sentences", [])]
    return Outcome(found, [*_tables(found), *said, f"Explanation: {out / 'explain.json'}"])


def _tables(found: Mapping[str, Any]) -> Iterator[Table]:
    values = {(of["kind"], of["metric"], of["set"]): of for of in found["localisation"]}
    for kind in found["kinds"] or ():
        title = f"How heatmaps meet the {kind}, means over the images counted at the right (IoU: 95 % intervals)"
        table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for column in ("features", *METRICS.values(), "images"):
            table.add_column(column, justify="left" if column == "features" else "right", no_wrap=True)
        for name, shown in SETS.items():
            cells = [_cell(values[kind, metric, name], bounds=metric == "iou") for metric in METRICS]
            table.add_row(shown, *cells, f"{values[kind, 'iou', name]['n']:,}")
        yield table
    records = found["claims"]["records"]
    if records:
        yield _differences(records)


def _differences(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return what the claims are judged by, whether there is a verdict or not."""
    table = Table(
        title="Differences of IoU in the same images, correlations, and gaps (95 % intervals)",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in ("quantity", "statistic", "value", "rows"):
        table.add_column(column, justify="right" if column in ("value", "rows") else "left", no_wrap=True)
    for of in records:
        single = of["statistic"] == "mean" and " - " not in of["quantity"] and "gap" not in of["quantity"]
        if single or math.isnan(of["value"]):
            continue
        bounds = "" if math.isnan(of["low"]) else f" ({of['low']:+.3f}, {of['high']:+.3f})"
        quantity = of["quantity"].replace("discriminative", "D").replace("_", " ")
        table.add_row(quantity, of["statistic"], f"{of['value']:+.3f}{bounds}", f"{of['n']:,}")
    return table


def _cell(of: Mapping[str, Any], *, bounds: bool) -> str:
    if not of["n"]:
        return "undefined"
    return f"{of['value']:.3f}" + (f" ({of['low']:.3f}, {of['high']:.3f})" if bounds and of["n"] > 1 else "")
