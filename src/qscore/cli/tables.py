"""What `score` and `evaluate` found, as tables for people."""

import math
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

__all__ = ["representation", "score_summary", "verdict"]


def score_summary(summary: dict[str, Any], out: Path) -> list[Any]:
    """Return what scoring found as a table, and its notes."""
    table = Table(show_header=False, box=None, pad_edge=False)
    quantiles = ", ".join(f"{float(q):.0%} {value:.4g}" for q, value in summary["quantiles"].items()) or "none"
    share = "none" if summary["coverage"] is None else f"{summary['coverage']:.1%}"
    fitted = "the scored rows (transductive)" if summary["transductive"] else "other rows"
    for name, value in {
        "rows": f"{summary['n']:,} ({summary['n_invalid']:,} invalid, {summary['n_constant']:,} constant)",
        "features": f"{summary['n_features']:,}, of which {summary['n_discriminative']:,} discriminative",
        "epsilon": f"{summary['epsilon']:g}" + (" (automatic)" if summary["automatic"] else ""),
        "signed": "yes: scaled by median and MAD, both sides" if summary["signed"] else "no",
        "coverage": f"{share} of the valid, non-constant rows have a highly active discriminative feature",
        "fitted on": fitted,
        "quantiles of Q": quantiles,
        "written": str(out),
    }.items():
        table.add_row(name, Text(value))
    return [table, *(f"Note: {note}." for note in summary["notes"])]


def verdict(metrics: dict[str, Any]) -> list[Any]:
    """Return failure prediction as tables, where there is any, and as sentences."""
    if metrics.get("undefined") or not metrics.get("scores"):
        return list(metrics["sentences"])
    from qscore.evaluate import SCORES

    table = Table(
        title="Telling correct rows from wrong ones (95 % paired bootstrap intervals)",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in ("score", "AUROC", "AP correct", "AP wrong", "AURC"):
        table.add_column(column, justify="left" if column == "score" else "right", no_wrap=True)
    base = metrics["base_rate"]
    table.add_row("base rate", "0.500", f"{base['correct']:.3f}", f"{base['wrong']:.3f}", f"{base['wrong']:.3f}")
    shown = [score for score in SCORES if score.name in metrics["scores"]]
    for score in shown:
        cells = [_bounds(found) for found in metrics["scores"][score.name].values()]
        table.add_row(score.title + (" (labels)" if score.needs_labels else ""), *cells)
    differences = Table(
        title="AUROC of Q and of each other score, and what either adds to the other",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in ("score", "Q minus it", "Q adds to it", "it adds to Q", "in classes"):
        differences.add_column(column, justify="left" if column == "score" else "right", no_wrap=True)
    gain, mean = metrics["gain"], metrics["class_mean"]
    for score in shown:
        found = [
            metrics["q_minus"].get(score.name, {}).get("auroc"),
            gain.get("q_on_top_of", {}).get(score.name),
            gain.get("on_top_of_q", {}).get(score.name),
        ]
        within = mean.get(score.name, {}).get("auroc")
        cells = ["" if one is None else _bounds(one, "+.3f") for one in found]
        differences.add_row(score.title, *cells, "" if within is None else f"{within['value']:.3f}")
    return [table, differences, *metrics["sentences"]]


def _bounds(found: dict[str, float], form: str = ".3f") -> str:
    return f"{found['value']:{form}} ({found['low']:{form}}, {found['high']:{form}})"


def representation(found: dict[str, Any]) -> list[Any]:
    """Return the metrics of a representation as a table and as sentences."""
    r = found["n_features"]
    rank = f"1 to {min(found['n'] - found['n_invalid'], r):,}, higher fills more directions"
    rows = [
        ("RankMe", _number(found["rankme"]), rank),
        ("stable rank", _number(found["stable_rank"]), rank),
        ("NESum", _number(found["nesum"]), f"{rank}, of the centred rows"),
        ("alpha-ReQ", _number(found["alpha_req"]), "0 is a flat spectrum, higher falls faster"),
        ("uniformity", _number(found["uniformity"]), "-8 to 0, lower is more even"),
        ("alignment", _interval(found["alignment"]), "0 to 4, lower brings views closer"),
        ("std of normalised rows", _number(found["normalized_std"]), f"0 (collapse) to {_number(r**-0.5)}"),
        ("dead features", f"{found['n_dead']:,}", f"of {r:,}, zero in every row"),
        ("constant features", f"{found['n_constant']:,}", f"of {r:,}, the same in every row"),
        ("silent features", "" if found["n_silent"] is None else f"{found['n_silent']:,}", "never highly active"),
        ("Hoyer sparsity", _interval(found["hoyer"]), "0 (dense) to 1 (one feature)"),
    ]
    table = Table(
        title=f"The representation: {found['n']:,} rows, {r:,} features (95 % intervals where rows are averaged)"
    )
    for column in ("metric", "value", "range and meaning"):
        table.add_column(column, justify="right" if column == "value" else "left", no_wrap=True)
    for row in rows:
        if row[1]:
            table.add_row(*row)
    return [table, *found["sentences"]]


def _number(value: float) -> str:
    return "undefined" if math.isnan(value) else f"{value:.4g}"


def _interval(statistic: dict[str, float] | None) -> str:
    if statistic is None:
        return ""
    if math.isnan(statistic["low"]):
        return _number(statistic["value"])
    return f"{statistic['value']:.3f} ({statistic['low']:.3f}, {statistic['high']:.3f})"
