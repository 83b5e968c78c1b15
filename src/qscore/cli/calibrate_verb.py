"""The verb that turns a score into probabilities of failure and accepted rows, from a few labels."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from qscore.cli.options import Overwrite, Seed
from qscore.cli.verb import Outcome, verb

if TYPE_CHECKING:
    from qscore.evaluate.calibration import Calibration

__all__ = ["calibrate_app"]

calibrate_app = typer.Typer()


@calibrate_app.command()
@verb
def calibrate(
    scores: Annotated[Path, typer.Argument(help="A score table, or an evaluation.parquet.")],
    labels: Annotated[
        Path, typer.Option(help="CSV or Parquet with id and correct (true, false, 1, 0; empty: not labelled).")
    ],
    out: Annotated[Path, typer.Option(help="Parquet table to write: id, score, p_wrong, accepted, labelled.")],
    score: Annotated[
        str, typer.Option(help="Column of SCORES, in which higher means more likely correct.")
    ] = "q_score",
    correct_column: Annotated[
        str, typer.Option(help="Column of the labels that says whether a row was correct.")
    ] = "correct",
    error_rate: Annotated[float, typer.Option(help="Error rate wanted among accepted rows, between 0 and 1.")] = 0.05,
    delta: Annotated[float, typer.Option(help="Probability that the guarantee may fail, between 0 and 1.")] = 0.1,
    labelled: Annotated[
        int | None,
        typer.Option(
            min=1, help="Use so many of the labelled rows, drawn at random; check on the others.", show_default="all"
        ),
    ] = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> Outcome:
    """Turn a score into probabilities of failure, and accept rows at a guaranteed error rate, from a few labels.

    Example:  qscore calibrate scores.parquet --labels labels.csv --error-rate 0.05 --out calibrated.parquet
    """
    from qscore.evaluate import calibrate_scores

    found = calibrate_scores(
        scores,
        labels,
        out,
        score=score,
        correct_column=correct_column,
        error_rate=error_rate,
        delta=delta,
        labelled=labelled,
        seed=seed,
        overwrite=overwrite,
    )
    first, *others = found.sentences()
    text = [
        first,
        _reliability(found.calibration),
        *others,
        f"{found.n_accepted:,} of {found.n:,} rows accepted: {out}",
    ]
    return Outcome(asdict(found) | {"sentences": found.sentences()}, text)


def _reliability(calibration: "Calibration") -> Table:
    table = Table(title="Reliability, out of fold (95 % intervals)")
    for column in ("rows", "wrong", "predicted", "observed"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in calibration.bins:
        observed = f"{row.observed:.3f} ({row.low:.3f}, {row.high:.3f})"
        table.add_row(f"{row.n:,}", f"{row.n_wrong:,}", f"{row.predicted:.3f}", observed)
    return table
