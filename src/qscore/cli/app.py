"""The verbs."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qscore import __version__
from qscore._validate import require
from qscore.cli.calibrate_verb import calibrate_app
from qscore.cli.encoder_verbs import Heads, Layer, Method, Normalisation, StemPadding, Tokens, encoder_app, load
from qscore.cli.evaluate_verb import evaluate_app
from qscore.cli.explain_verb import explain_app
from qscore.cli.finetune_verb import finetune_app
from qscore.cli.options import BatchSize, Device, Images, Overwrite, Precision, Seed, Workers, read_epsilon
from qscore.cli.pretrain_verb import pretrain_app
from qscore.cli.rank_verb import rank_app
from qscore.cli.reproduce_verb import reproduce_app
from qscore.cli.tables import score_summary, verdict
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
app.add_typer(pretrain_app)
app.add_typer(finetune_app)
app.add_typer(rank_app)
app.add_typer(reproduce_app)
app.add_typer(encoder_app)
app.add_typer(evaluate_app)
app.add_typer(explain_app)
app.add_typer(calibrate_app)


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
            help="Standard deviations above a row's mean at which a feature is highly active; auto takes the largest "
            "up to 4 that leaves 95 % of the rows one of D, and paper is 4.",
            show_default="auto",
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

    Example:  qscore score embeddings --out scores.parquet
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
            help="Standard deviations above a row's mean at which a feature is highly active; auto takes the largest "
            "up to 4 that leaves 95 % of the rows one of D, and paper is 4.",
            show_default="auto",
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


def _epsilon(text: str | None) -> float | Literal["auto"] | None:
    return None if text is None else read_epsilon(text)


def main() -> None:
    """Run the command line."""
    # On a machine with other work, OpenMP threads that spin while they wait slow training many times over.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # The hub's package would warn of each attempt to reach a network that is not there, a dozen of them.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    app()
