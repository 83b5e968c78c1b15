"""The verbs."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qscore import __version__
from qscore._validate import QScoreError, nearest, require
from qscore.cli.encoder_verbs import Heads, Layer, Method, Normalisation, StemPadding, Tokens, encoder_app, load
from qscore.cli.tables import representation, score_summary, verdict
from qscore.cli.verb import Outcome, verb

__all__ = ["app", "main"]

app = typer.Typer(
    help="Which images does a self-supervised encoder represent badly, and which of its features mean something?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

features_app = typer.Typer(
    help="Work with feature tables.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(features_app, name="features")
app.add_typer(encoder_app)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per forward pass.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that decode images.", show_default="by the source")]
Precision = Annotated[
    Literal["32-true", "bf16-mixed", "16-mixed"], typer.Option(help="Arithmetic of the network, in Lightning's names.")
]
IMAGES = (
    "A folder of images, a .csv or .parquet list, .npz archives or WebDataset tars (a pattern in quotes), "
    "torchvision:NAME/SPLIT, hf:NAME:SPLIT, or 'digits'."
)
Images = Annotated[str, typer.Argument(help=IMAGES)]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qscore {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Tell which samples a self-supervised encoder represents badly, without labels."""


@app.command()
@verb
def demo(
    out: Annotated[Path, typer.Option(help="Run directory to write.")] = Path("qscore-demo"),
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> Outcome:
    """Show the whole story on real images in under two minutes: train, embed, score, evaluate, report.

    Example:  qscore demo --out runs/demo
    """
    require("torch", "vision")
    from qscore.study import demo as run

    report, metrics = run(out, seed=seed, overwrite=overwrite)
    return Outcome({"report": str(report), "metrics": metrics}, [*verdict(metrics), f"Report: {report.resolve()}"])


@app.command()
@verb
def pretrain(
    method: Annotated[str, typer.Argument(help="simclr")],
    images: Annotated[str, typer.Option(help=IMAGES)],
    out: Annotated[Path, typer.Option(help="Encoder directory to write.")],
    backbone: Annotated[
        str | None,
        typer.Option(help="torchvision:resnet18, timm:NAME, small:resnet18-16, ...", show_default="by the image size"),
    ] = None,
    recipe: Annotated[
        Literal["auto", "small", "cifar", "imagenet"], typer.Option(help="Defaults to start from.")
    ] = "auto",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images.", show_default="the recipe's")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting of the method.")
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "32-true",
    overwrite: Overwrite = False,
) -> Outcome:
    """Train an encoder on unlabeled images; the same command continues a run that was interrupted.

    Example:  qscore pretrain simclr --images 'data/train-*.npz' --out encoders/simclr --epochs 20
    """
    require("lightning", "vision")
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
        seed=seed,
        device=device,
        precision=precision,
        overwrite=overwrite,
    )
    return Outcome({"encoder": str(result)}, [f"Encoder: {result}"])


@app.command()
@verb
def embed(
    images: Images,
    encoder: Annotated[
        str, typer.Option(help="An encoder directory, a checkpoint, torchvision:NAME, timm:NAME, or hf:NAME.")
    ],
    out: Annotated[Path, typer.Option(help="Directory of the embedding table.")],
    method: Method = None,
    layer: Layer = None,
    tokens: Tokens = None,
    stem_padding: StemPadding = None,
    heads: Heads = None,
    preprocessing: Normalisation = None,
    views: Annotated[
        int, typer.Option(min=0, max=127, help="Augmented views of each image, for a second table, OUT-views.")
    ] = 0,
    on_error: Annotated[
        Literal["skip", "raise"], typer.Option(help="What an image that cannot be read does: be left out, or end it.")
    ] = "skip",
    batch_size: BatchSize = 256,
    device: Device = "auto",
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes that compute, each on a GPU of its own.",
            show_default="1, or as many as torchrun started",
        ),
    ] = None,
    workers: Workers = None,
    precision: Precision = "32-true",
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> Outcome:
    """Write the representation of every image to an embedding table.

    Example:  qscore embed photos/ --encoder encoders/simclr --out embeddings
    """
    require("torch", "vision")
    from qscore.embedding import embed as run
    from qscore.embedding import launched, read_skipped, skipped_path, views_path
    from qscore.images import open_images
    from qscore.tables import open_embeddings

    run(
        open_images(images),  # before the encoder, which may have to be fetched
        load(
            encoder,
            method=method,
            layer=layer,
            tokens=tokens,
            stem_padding=stem_padding,
            heads=heads,
            preprocessing=preprocessing,
        ),
        out,
        views=views,
        seed=seed,
        on_error=on_error,
        batch_size=batch_size,
        device=device,
        devices=devices or launched().count,
        workers=workers,
        precision=precision,
        overwrite=overwrite,
    )
    if launched().number > 0:
        raise SystemExit(0)  # the first process tells what came of it
    table, n_skipped = open_embeddings(out), len(read_skipped(out))
    data: dict[str, Any] = {"embeddings": str(out), "n": len(table), "n_features": table.n_features}
    data |= {"n_skipped": n_skipped, "skipped": str(skipped_path(out)) if n_skipped else None}
    left_out = f" ({n_skipped:,} left out: {skipped_path(out)})" if n_skipped else ""
    text = [f"{len(table):,} images{left_out}, {table.n_features} features: {out}"]
    if views:
        data["views"] = str(views_path(out))
        text.append(f"{views} views of each: {views_path(out)}")
    return Outcome(data, text)


@app.command()
@verb
def score(
    embeddings: Annotated[
        str, typer.Argument(help="A file, a directory of shards, or a URI of either; or a score table.")
    ],
    out: Annotated[Path, typer.Option(help="Score table to write (Parquet).")],
    epsilon: Annotated[
        str | None,
        typer.Option(
            help="Standard deviations above a row's mean at which a feature is highly active, or 'auto'.",
            show_default="4",
        ),
    ] = None,
    lower: Annotated[
        float | None, typer.Option(help="Lower end of D's band, as a quantile of rank.", show_default="0.5")
    ] = None,
    upper: Annotated[float | None, typer.Option(help="Upper end of D's band.", show_default="0.95")] = None,
    signed: Annotated[
        Literal["auto", "on", "off"], typer.Option(help="Whether features may be negative; auto looks.")
    ] = "auto",
    features: Annotated[
        Path | None, typer.Option(help="Score against the D of this feature table instead of fitting one.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column of vectors, where there are several.")] = None,
    engine: Annotated[Literal["local"], typer.Option(help="Where the work runs.")] = "local",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the scan.", show_default="all cores")] = None,
    overwrite: Overwrite = False,
    resume: Annotated[bool, typer.Option(help="Go on with what an unfinished run left.")] = True,
) -> Outcome:
    """Score every row of an embedding table; reads it once. Of a score table: with another band, or another D.

    Example:  qscore score embeddings --out scores.parquet --epsilon auto
    """
    from qscore.scoring import score as run

    summary = run(
        embeddings,
        out,
        epsilon=_epsilon(epsilon),
        lower=lower,
        upper=upper,
        signed={"auto": "auto", "on": True, "off": False}[signed],  # type: ignore[arg-type]
        features=features,
        column=column,
        engine=engine,
        threads=threads,
        overwrite=overwrite,
        resume=resume,
    )
    return Outcome({"scores": str(out), **asdict(summary)}, score_summary(asdict(summary), out))


@app.command()
@verb
def compress(
    embeddings: Annotated[str, typer.Argument(help="A file, a directory of shards, or a URI of either.")],
    out: Annotated[Path, typer.Option(help="Embedding table to write (Parquet).")],
    keep: Annotated[float, typer.Option(help="Share of the features to keep, in (0, 1].")] = 0.6,
    epsilon: Annotated[
        str | None,
        typer.Option(
            help="Standard deviations above a row's mean at which a feature is highly active, or 'auto'.",
            show_default="4",
        ),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Rank the features by the counts of this feature table instead.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="The column of vectors, where there are several.")] = None,
    overwrite: Overwrite = False,
) -> Outcome:
    """Keep a share of the features, chosen without labels, and write a narrower embedding table.

    Example:  qscore compress embeddings --keep 0.6 --out small.parquet
    """
    from qscore.scoring import compress as run

    summary = run(
        embeddings,
        out,
        keep=keep,
        epsilon=_epsilon(epsilon),
        features=features,
        column=column,
        overwrite=overwrite,
    )
    silent = f", {summary.n_silent:,} of which never fire" if summary.n_silent else ""
    text = f"{summary.n:,} rows, {summary.n_kept:,} of {summary.n_features:,} features kept{silent}: {out}"
    return Outcome({"embeddings": str(out), **asdict(summary)}, [text])


@features_app.command()
@verb
def count(
    embeddings: Annotated[str, typer.Argument(help="A file, a directory of shards, or a URI of either.")],
    features: Annotated[Path, typer.Option(help="The stored feature table, whose settings are used.")],
    out: Annotated[Path, typer.Option(help="Feature table of these rows alone to write (Parquet).")],
    column: Annotated[str | None, typer.Option(help="The column of vectors, where there are several.")] = None,
    overwrite: Overwrite = False,
) -> Outcome:
    """Count new rows as a stored feature table counted its own, so that the two can be merged.

    Example:  qscore features count tuesday --features monday.features.parquet --out tuesday.features.parquet
    """
    from qscore.scoring import count_features

    summary = count_features(embeddings, features, out, column=column, overwrite=overwrite)
    text = f"{summary.n:,} rows, {summary.n_features:,} features, {summary.n_discriminative:,} discriminative: {out}"
    return Outcome({"features": str(out), **asdict(summary)}, [text])


@features_app.command()
@verb
def merge(
    tables: Annotated[list[Path], typer.Argument(help="Feature tables of rows that do not overlap.")],
    out: Annotated[Path, typer.Option(help="Feature table to write (Parquet).")],
    overwrite: Overwrite = False,
) -> Outcome:
    """Merge feature tables, such as different days', into the table of all their rows.

    Example:  qscore features merge monday.features.parquet tuesday.features.parquet --out week.features.parquet
    """
    from qscore.scoring import merge_features

    summary = merge_features(tables, out, overwrite=overwrite)
    text = f"{summary.n:,} rows, {summary.n_features:,} features, {summary.n_discriminative:,} discriminative: {out}"
    return Outcome({"features": str(out), **asdict(summary)}, [text])


@app.command()
@verb
def evaluate(
    scores: Annotated[Path, typer.Argument(help="A score table.")],
    embeddings: Annotated[Path, typer.Option(help="The embedding table it was made from, with labels or without.")],
    train_embeddings: Annotated[
        Path | None, typer.Option(help="Labelled embeddings to fit the probe on.", show_default="80 % of the rows")
    ] = None,
    view_embeddings: Annotated[
        Path | None, typer.Option(help="Embeddings of augmented views, as embed --views writes them, for alignment.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the results.", show_default="that of SCORES")] = None,
    overwrite: Overwrite = False,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = 2000,
    seed: Seed = 0,
) -> Outcome:
    """Say how well Q predicts the linear probe's mistakes, beside its rivals; without labels, measure the whole.

    Example:  qscore evaluate scores.parquet --embeddings embeddings
    """
    from qscore.evaluate import evaluate_scores

    metrics = evaluate_scores(
        scores,
        embeddings,
        train_embeddings,
        view_embeddings=view_embeddings,
        out=out,
        overwrite=overwrite,
        resamples=resamples,
        seed=seed,
    )
    return Outcome(metrics, [*verdict(metrics), *representation(metrics["representation"])])


@app.command()
@verb
def report(run_dir: Annotated[Path, typer.Argument(help="A run directory with scores.parquet.")]) -> Outcome:
    """Write report.html: one file that opens without a network.

    Example:  qscore report runs/demo
    """
    from qscore.report import write_report

    path = write_report(run_dir)
    return Outcome({"report": str(path)}, [f"Report: {path.resolve()}"])


def _epsilon(text: str | None) -> float | Literal["auto"] | None:
    if text is None or text == "auto":
        return text  # type: ignore[return-value]
    try:
        return float(text)
    except ValueError:
        raise QScoreError(f"epsilon: expected a positive number or 'auto', got {text!r}") from None


def main() -> None:
    """Run the command line."""
    # On a machine with other work, OpenMP threads that spin while they wait slow training many times over.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    app()
