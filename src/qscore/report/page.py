"""A run directory in, `report.html` out."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from qscore._files import atomic_path, sha256
from qscore._validate import QScoreError, require
from qscore.evaluate import SCORES
from qscore.images import open_image
from qscore.scoring import read_scored, summarize_scores
from qscore.tables import read_record

__all__ = ["write_report"]

SAMPLES = 20
THUMBNAIL = 96
CLASSES = 20  # shown; all stand in metrics.parquet
OVERVIEW = ("q", "activation", "risk")  # of the charts, what overview.png shows side by side


def write_report(run: str | Path) -> Path:
    """Write ``report.html``, which needs no network and no other file, and ``overview.png``.

    Parameters
    ----------
    run : str or Path
        A run directory: ``scores.parquet`` with its feature table; ``metrics.json`` and ``evaluation.parquet`` add the
        verdict, images are shown where the score table knows their paths, and ``heatmaps``, as `explain_scores` writes
        them, show what features look at.

    Returns
    -------
    Path
        The report.

    Raises
    ------
    QScoreError
        If the directory holds no score table, a table is damaged, or the evaluation or the heatmaps belong to other
        scores.
    """
    require("altair", "vision")
    require("vl_convert", "vision")
    run = Path(run)
    if not run.is_dir():
        raise QScoreError(f"{run}: no such run directory")
    if not (run / "scores.parquet").exists():
        raise QScoreError(f"{run}: no scores.parquet in this directory; qscore score writes it")
    rows, features, record = read_scored(run / "scores.parquet")
    metrics, evaluation = _evaluation(run)
    if metrics.get("undefined"):  # the numbers are there, and mean nothing
        metrics |= {"scores": {}, "classes": [], "claims": None, "calibration": None}
    summary = summarize_scores(run / "scores.parquet")
    why = _why(run)
    charts = _charts(rows, features, evaluation, record, metrics) | _why_charts(why)
    page = _render(
        name=run.resolve().name,
        record=record,
        summary=summary,
        metrics=metrics,
        scores=[(score, metrics["scores"][score.name]) for score in SCORES if score.name in metrics.get("scores", {})],
        titles={score.name: score.title for score in SCORES},
        classes=_classes(metrics.get("classes") or []),
        claims=_claims(metrics.get("claims") or {}),
        claim_sentences=(metrics.get("claims") or {}).get("sentences", []),
        outcomes=evaluation is not None,
        most=CLASSES,
        specs={name: chart.to_json(indent=None).replace("</", "<\\/") for name, chart in charts.items()},
        samples=_samples(rows, evaluation),
        why=why,
        bundle=_bundle(),
    )
    _save_overview(run / "overview.png", [charts[name] for name in OVERVIEW if name in charts])
    with atomic_path(run / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return run / "report.html"


def _why(run: Path) -> dict[str, Any]:
    from qscore.report.why import read_why

    return read_why(run)


def _why_charts(why: dict[str, Any]) -> dict[str, Any]:
    from qscore.report.why import look_chart

    return {"look": look_chart(why["points"], why["kinds"])} if why.get("points") else {}


def _evaluation(run: Path) -> tuple[dict[str, Any], pa.Table | None]:
    """Read what `evaluate_scores` left, and refuse what belongs to other scores; without labels there is no table."""
    if not (run / "metrics.json").exists():
        return {}, None
    table = None
    try:
        metrics = json.loads((run / "metrics.json").read_text())
        digest = metrics["score_table"]["sha256"]
        belongs = True
        if "probe" in metrics:
            table = pq.read_table(run / "evaluation.parquet")
            belongs = digest == read_record(table.schema)["scores_sha256"]
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise QScoreError(f"{run}: metrics.json or evaluation.parquet is not what qscore evaluate wrote") from error
    if not belongs or digest != sha256(run / "scores.parquet"):
        raise QScoreError(f"{run}: the evaluation belongs to other scores; run qscore evaluate again with --overwrite")
    return metrics, table


def _charts(
    rows: pa.Table, features: pa.Table, evaluation: pa.Table | None, record: dict[str, Any], metrics: dict[str, Any]
) -> dict[str, Any]:
    """Draw what the tables have the numbers for."""
    from qscore.report.charts import activation_chart, compression_chart, q_chart
    from qscore.report.failure_charts import forest_chart, reliability_chart, risk_chart

    rates = features.column("activation_rate").to_numpy()
    activation = activation_chart(rates, record["lower"], record["upper"])
    if evaluation is None:
        return {"q": q_chart(rows.column("q_score").drop_null().to_numpy(), None), "activation": activation}
    correct = evaluation.column("correct").to_numpy()
    charts = {"q": q_chart(evaluation.column("q_score").to_numpy(), correct), "activation": activation}
    if metrics["scores"]:
        charts |= {"risk": risk_chart(evaluation), "forest": forest_chart(metrics["q_minus"])}
    if metrics["calibration"]:
        charts["reliability"] = reliability_chart(
            {found["title"]: found["bins"] for found in metrics["calibration"]["scores"].values()}
        )
    if metrics["compression"]:
        charts["compression"] = compression_chart(metrics["compression"])
    return charts


def _classes(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the classes with the most mistakes, with the AUROC of Q and of the norm."""
    found: dict[Any, dict[str, Any]] = {}
    for record in records:
        if record["statistic"] == "auroc":
            row = found.setdefault(record["class"], {"class": record["class"], "n": record["n"]})
            row |= {"n_wrong": record["n_wrong"], record["score"]: record}
    return sorted(found.values(), key=lambda row: -int(row["n_wrong"]))


def _claims(claims: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each quantity's means and effects."""
    from qscore.evaluate.judgement import OVERALL, TITLES, WITHIN

    records = {(row["quantity"], row["statistic"], row["scope"]): row for row in claims.get("records", [])}
    return [
        {
            "title": title,
            "correct": records[name, "mean_correct", OVERALL],
            "wrong": records[name, "mean_wrong", OVERALL],
            "overall": records[name, "cliffs_delta", OVERALL],
            "within": records.get((name, "cliffs_delta", WITHIN)),
        }
        for name, title in TITLES.items()
        if (name, "cliffs_delta", OVERALL) in records
    ]


def _samples(rows: pa.Table, evaluation: pa.Table | None) -> dict[str, list[dict[str, Any]]]:
    """Describe the rows of lowest and highest Q; without paths there is nothing to show."""
    if "path" not in rows.column_names:
        return {}
    outcomes = {}
    if evaluation is not None:
        columns = (evaluation.column(name).to_pylist() for name in ("id", "predicted", "correct"))
        outcomes = {key: (predicted, correct) for key, predicted, correct in zip(*columns, strict=True)}
        rows = rows.filter(pa.compute.is_in(rows.column("id"), evaluation.column("id").combine_chunks()))
    # Shuffled first: rows often tie at 0, and those at the top of the table are no better an example than others.
    valid = np.random.default_rng(0).permutation(np.flatnonzero(rows.column("valid").to_numpy()))
    order = valid[np.argsort(rows.column("q_score").to_numpy()[valid], kind="stable")]
    chosen = {"lowest": order[:SAMPLES], "highest": order[::-1][:SAMPLES]}
    return {name: [_sample(rows.slice(int(i), 1), outcomes) for i in picked] for name, picked in chosen.items()}


def _sample(row: pa.Table, outcomes: dict[str, tuple[Any, bool]]) -> dict[str, Any]:
    values = {name: row.column(name)[0].as_py() for name in row.column_names if name not in ("active", "deviation")}
    predicted, correct = outcomes.get(values["id"], (None, None))
    return {**values, "predicted": predicted, "correct": correct, "image": _thumbnail(values["path"])}


def _thumbnail(path: str | None) -> str | None:
    """Return an image as a data URI, or None where it has gone."""
    if path is None:
        return None
    try:
        image = open_image(path)
    except QScoreError:
        return None
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _render(**values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("qscore.report", "."), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("report.html.jinja").render(**values)


def _bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script, for the Vega-Lite version that Altair writes."""
    import altair
    import vl_convert

    version = ".".join(altair.SCHEMA_VERSION.split(".")[:2])
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version))


def _save_overview(path: Path, charts: list[Any]) -> None:
    from qscore.report.charts import overview

    buffer = io.BytesIO()
    overview(charts).save(buffer, format="png", scale_factor=2)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())
