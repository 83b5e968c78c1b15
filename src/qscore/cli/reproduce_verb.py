"""The verb that puts the paper's claims to the test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qscore._validate import QScoreError, require
from qscore.cli.options import IMAGES, Device, Seed
from qscore.cli.verb import Outcome, verb

__all__ = ["reproduce_app"]

reproduce_app = typer.Typer()


@reproduce_app.command()
@verb
def reproduce(
    out: Annotated[Path, typer.Option(help="Folder of encoders, tables, results and the page results.md.")],
    images: Annotated[str | None, typer.Option(help=IMAGES + " With labels.")] = None,
    test_images: Annotated[
        str | None, typer.Option(help="Images to test on.", show_default="a fifth of --images, held out")
    ] = None,
    methods: Annotated[
        str, typer.Option(help="all, or some with commas between; also supervised and random, the curve's controls.")
    ] = "all",
    scale: Annotated[
        Literal["small", "medium", "paper"],
        typer.Option(help="small: two cores and hours; medium: one data-centre GPU; paper: ImageNet and several GPUs."),
    ] = "small",
    stage: Annotated[
        str, typer.Option(help="all, or some of curve, repair, methods, shapes, sensitivity with commas between.")
    ] = "all",
    classes: Annotated[
        str | None,
        typer.Option(help="imagenet100, or a file of labels: take these classes alone.", show_default="all classes"),
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD=SPEC", help="A released encoder, in stage methods instead of pre-training; may be repeated."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Stop after so long, with everything saved; the same command goes on.", show_default="never"),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Methods at a time, each in a process of its own; one GPU serves several.")
    ] = 1,
    page: Annotated[
        bool, typer.Option("--page", help="Only write results.md and its chart, from the files in OUT/results.")
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="Only copy results, test embeddings in float16 and encoders, in files below 16 MB, to here."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the scale: curve_epochs=100, ..."),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Annotated[int, typer.Option(min=1, help="Processes of pre-training, each on a GPU of its own.")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads or processes that read images.", show_default="by the processors")
    ] = None,
    train_only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> Outcome:
    """Put the paper's ten claims to the test; every stage of a method is skipped once it is finished.

    Example:  qscore reproduce --images train.npz --test-images test.npz --stage curve --methods simclr --out runs/small
    """
    require("lightning", "vision")
    from qscore.ssl import parse_overrides
    from qscore.study.reproduce import Scale, export_run, write_page
    from qscore.study.reproduce import reproduce as run

    if page:
        written = write_page(out)
        return Outcome({"page": str(written)}, [f"Page: {written}"])
    if export is not None:
        files = [str(file) for file in export_run(out, export)]
        return Outcome({"files": files}, [f"{len(files)} files: {export}"])
    if images is None:
        raise QScoreError("expected --images to learn from, or --page to write the page anew")

    found = run(
        images,
        out,
        test_images=test_images,
        methods=methods,
        scale=scale,
        stage=stage,
        overrides=parse_overrides(settings or [], Scale),
        classes=classes,
        checkpoints=_pairs(checkpoint or []),
        minutes=minutes,
        processes=processes,
        seed=seed,
        device=device,
        devices=devices,
        workers=workers,
        train_only=train_only,
    )
    return Outcome(found, _said(found), failed=bool(found["refused"]))


def _pairs(assignments: Sequence[str]) -> dict[str, str]:
    pairs = [assignment.partition("=") for assignment in assignments]
    for assignment, (name, equals, spec) in zip(assignments, pairs, strict=True):
        if not (name and equals and spec):
            raise QScoreError(f"--checkpoint {assignment!r}: expected METHOD=SPEC, such as simclr=simclr.pth")
    return {name: spec for name, _, spec in pairs}


def _said(found: dict[str, Any]) -> list[str]:
    said = [f"{len(found['done'])} finished, {len(found['left'])} left."]
    said += [f"Left out: {key}: {reason}" for key, reason in found["refused"].items()]
    if found["out_of_time"]:
        said.append("The time is up; the same command goes on.")
    return said if found["page"] is None else [*said, f"Page: {found['page']}"]
