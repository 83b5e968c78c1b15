"""The verb that trains an encoder."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from qscore._validate import QScoreError, nearest, require
from qscore.cli.options import IMAGES, Device, Overwrite, Precision, Seed
from qscore.cli.verb import Outcome, verb

__all__ = ["pretrain_app"]

pretrain_app = typer.Typer()


@pretrain_app.command()
@verb
def pretrain(
    method: Annotated[str, typer.Argument(help="simclr, moco, swav, byol, simsiam, dino, vicreg, or barlow.")],
    images: Annotated[str, typer.Option(help=IMAGES)],
    out: Annotated[Path, typer.Option(help="Encoder directory to write.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="torchvision:resnet18, timm:NAME, small:resnet18-16, ...", show_default="by the image size"),
    ] = None,
    recipe: Annotated[
        Literal["auto", "small", "cifar", "imagenet"],
        typer.Option(help="Defaults to start from; auto chooses by number and size of the images, and says what."),
    ] = "auto",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images.", show_default="the recipe's")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override a setting of the method: lr=0.1, augment2.blur=0.1, local.scale=0.05,0.2, ...",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=4, help="Side of the views in pixels.", show_default="the images' own, at most 224"),
    ] = None,
    keep_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Keep the encoder after every K epochs too: OUT/checkpoints/epoch-0010, and so on, each of which is "
            "an encoder directory like OUT.",
            show_default="none",
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that share each batch, each on a GPU of its own.",
            show_default="1, or as many as torchrun started",
        ),
    ] = None,
    precision: Precision = "32-true",
    accumulate: Annotated[
        int, typer.Option(min=1, help="Parts that a batch is taken in, one after the other, to save memory.")
    ] = 1,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Threads that read the images into memory once; with --stream, processes that read and crop them all "
            "along.",
            show_default="by the processors",
        ),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--in-memory",
            help="Read images anew for each view and crop it out of the whole image, or hold them at the image size.",
            show_default="by the memory",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> Outcome:
    """Train an encoder on unlabeled images; the same command continues a run that was interrupted.

    Example:  qscore pretrain simclr --images 'data/train-*.npz' --out encoders/simclr --epochs 20
    """
    require("lightning", "vision")
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    from qscore.embedding import launched
    from qscore.ssl import METHODS, parse_overrides
    from qscore.ssl import pretrain as run

    if method not in METHODS:
        raise QScoreError(f"method {method!r}: expected one of {', '.join(METHODS)}{nearest(method, METHODS)}")
    overrides = parse_overrides(settings or [], METHODS[method].recipes["imagenet"])
    result = run(
        method,
        images,
        out,
        backbone=backbone,
        recipe=recipe,
        epochs=epochs,
        overrides=overrides,
        image_size=image_size,
        seed=seed,
        device=device,
        devices=devices or launched().count,
        precision=precision,
        accumulate=accumulate,
        workers=workers,
        stream=stream,
        keep_every=keep_every,
        overwrite=overwrite,
    )
    if getattr(rank_zero_only, "rank", 0) != 0:
        raise SystemExit(0)  # the first process tells what came of it
    return Outcome({"encoder": str(result)}, [f"Encoder: {result}"])
