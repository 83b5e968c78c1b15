"""All that an evaluation found as one tidy table: a number a row, with its interval and what it is a number of."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

__all__ = ["tidy_table"]

SCHEMA = pa.schema(
    {
        "section": pa.string(),
        "subject": pa.string(),
        "reference": pa.string(),
        "class": pa.string(),
        "statistic": pa.string(),
        "value": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
        "n": pa.int64(),
    }
)
POINTS = {"accuracy": ("low", "high"), "change": ("change_low", "change_high")}


def tidy_table(metrics: Mapping[str, Any]) -> pa.Table:
    """Return the numbers of ``metrics.json`` as a table.

    Parameters
    ----------
    metrics : mapping
        As :func:`qscore.evaluate_scores` returns it.

    Returns
    -------
    pyarrow.Table
        ``section`` (``failure``, ``difference``, ``gain``, ``class``, ``claim``, ``calibration``, ``compression``,
        ``representation``), ``subject`` (a score, a quantity, a way to choose features), ``reference`` (what it is
        compared with), ``class``, ``statistic``, ``value``, ``low`` and ``high`` (its 95 % interval, where there is
        one), ``n`` (rows behind it).

    Examples
    --------
    >>> found = {"n": 4, "scores": {"q_score": {"auroc": {"value": 0.75, "low": 0.5, "high": 1.0}}}}
    >>> tidy_table(found).select(["subject", "statistic", "value"]).to_pylist()
    [{'subject': 'q_score', 'statistic': 'auroc', 'value': 0.75}]
    """
    rows = [row for part in (_failure, _classes, _claims, _calibration, _whole) for row in part(metrics)]
    return pa.Table.from_pylist(rows, SCHEMA)


def _row(section: str, subject: str, statistic: str, found: Any, **more: Any) -> dict[str, Any]:
    """Return a row for a number, or for one with its interval."""
    values = dict(found) if isinstance(found, Mapping) else {"value": None if found is None else float(found)}
    values = {key: values.get(key) for key in ("value", "low", "high")}
    return {"section": section, "subject": subject, "statistic": statistic, **values, **more}


def _failure(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    n = metrics["n"]
    for outcome, share in metrics.get("base_rate", {}).items():
        yield _row("failure", "base rate", outcome, share, n=n)
    for section, key in (("failure", "scores"), ("difference", "q_minus")):
        for name, statistics in metrics.get(key, {}).items():
            subject, more = (name, {}) if section == "failure" else ("q_score", {"reference": name})
            for statistic, found in statistics.items():
                yield _row(section, subject, statistic, found, n=n, **more)
    gain = metrics.get("gain", {})
    for name, found in gain.get("q_on_top_of", {}).items():
        yield _row("gain", "q_score", "auroc", found, reference=name, n=n)
    for name, found in gain.get("on_top_of_q", {}).items():
        yield _row("gain", name, "auroc", found, reference="q_score", n=n)


def _classes(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for record in metrics.get("classes", []):
        found = {key: record[key] for key in ("value", "low", "high")}
        yield _row(
            "class", record["score"], record["statistic"], found, **{"class": str(record["class"]), "n": record["n"]}
        )


def _claims(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for record in (metrics.get("claims") or {}).get("records", []):
        found = {key: record[key] for key in ("value", "low", "high")}
        yield _row("claim", record["quantity"], record["statistic"], found, reference=record["scope"], n=record["n"])


def _calibration(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, found in ((metrics.get("calibration") or {}).get("scores") or {}).items():
        for row in found["bins"]:
            interval = {"value": row["observed"], "low": row["low"], "high": row["high"]}
            yield _row("calibration", name, f"wrong at {row['predicted']:.6g}", interval, n=row["n"])
        for statistic in ("brier", "brier_base", "ece", "coverage", "observed_error"):
            yield _row("calibration", name, statistic, found[statistic], n=found["n_rest"])


def _whole(metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for point in metrics.get("compression") or []:
        for statistic, (low, high) in POINTS.items():
            found = {"value": point[statistic], "low": point[low], "high": point[high]}
            reference = f"keep {point['keep']:g}"
            yield _row("compression", point["method"], statistic, found, reference=reference, n=point["n_kept"])
    for name, found in (metrics.get("representation") or {}).items():
        if name != "sentences" and not isinstance(found, bool):
            yield _row("representation", "all rows", name, found, n=metrics["representation"]["n"])
