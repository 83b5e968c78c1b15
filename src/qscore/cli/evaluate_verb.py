"""The verb that asks whether a score predicts failure."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from qscore.cli.options import Device, Overwrite, Seed
from qscore.cli.tables import representation, verdict
from qscore.cli.verb import Outcome, verb

__all__ = ["evaluate_app"]

evaluate_app = typer.Typer()


@evaluate_app.command()
@verb
def evaluate(
    scores: Annotated[Path, typer.Argument(help="A score table.")],
    embeddings: Annotated[Path, typer.Option(help="The embedding table it was made from, with labels or without.")],
    train_embeddings: Annotated[
        Path | None, typer.Option(help="Labelled embeddings to fit the probe on.", show_default="80 % of the rows")
    ] = None,
    view_embeddings: Annotated[
        Path | None,
        typer.Option(help="Embeddings of augmented views, as embed --views writes them, for rivals that need them."),
    ] = None,
    correct: Annotated[
        Path | None,
        typer.Option(
            help="CSV or Parquet with id and correct (true, false, 1, 0), to be predicted instead of a probe."
        ),
    ] = None,
    probe: Annotated[
        Literal["logistic", "knn", "sgd"], typer.Option(help="The classifier on frozen embeddings.")
    ] = "logistic",
    encoder: Annotated[
        str | None, typer.Option(help="With --probe sgd: train on augmented images through this encoder.")
    ] = None,
    device: Device = "auto",
    labelled: Annotated[int, typer.Option(min=10, help="Rows whose outcome calibration may use.")] = 500,
    error_rate: Annotated[
        float | None,
        typer.Option(help="Error rate wanted among the rows that calibration accepts.", show_default="half of all"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the results.", show_default="that of SCORES")] = None,
    overwrite: Overwrite = False,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = 2000,
    seed: Seed = 0,
) -> Outcome:
    """Say how well Q predicts the linear probe's mistakes, beside its rivals; without labels, measure the whole.

    Example:  qscore evaluate run/scores.parquet --embeddings run/embeddings --train-embeddings train-embeddings
    """
    from qscore.evaluate import evaluate_scores

    metrics = evaluate_scores(
        scores,
        embeddings,
        train_embeddings,
        view_embeddings=view_embeddings,
        correct=correct,
        probe=probe,
        encoder=encoder,
        device=device,
        labelled=labelled,
        error_rate=error_rate,
        out=out,
        overwrite=overwrite,
        resamples=resamples,
        seed=seed,
    )
    return Outcome(metrics, [*verdict(metrics), *representation(metrics["representation"])])


@evaluate_app.command()
@verb
def report(run_dir: Annotated[Path, typer.Argument(help="A run directory with scores.parquet.")]) -> Outcome:
    """Write report.html: one file that opens without a network.

    Example:  qscore report runs/demo
    """
    from qscore.report import write_report

    path = write_report(run_dir)
    return Outcome({"report": str(path)}, [f"Report: {path.resolve()}"])
