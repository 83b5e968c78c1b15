"""The charts of the results page: AUROC against probe accuracy, and where features look against what they carry."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from qscore._files import atomic_path
from qscore.study.reproduce.rules import dig
from qscore.study.reproduce.tables import label

__all__ = ["SHOWN", "curve_points", "shapes_points", "write_chart", "write_shapes_chart"]

SHOWN = {
    "q_score": "Q",
    "q_without_d": "Q without D",
    "q_random_d": "Q with a random D",
    "l2_norm": "feature norm",
    "knn_similarity": "kNN similarity",
    "neighborhood_consistency": "neighbourhood consistency",
    "softmax": "probe's softmax (labels)",
}
WIDTH, HEIGHT = 300, 220


def curve_points(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each checkpoint and score: encoder, epoch, accuracy in per cent, and AUROC with its interval."""
    return [
        {
            "encoder": label(result),
            "scale": result["scale"],
            "epoch": point["epoch"],
            "accuracy": 100 * point["accuracy"],
            "score": title,
            **{key: point["scores"][name]["auroc"][key] for key in ("value", "low", "high")},
        }
        for result in results
        if result["stage"] == "curve"
        for point in result["found"].get("checkpoints") or ()
        for name, title in SHOWN.items()
        if dig(point, "scores", name, "auroc", "value") is not None and point["accuracy"] is not None
    ]


def write_chart(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw one panel for each scale and score, with a line for each training, as SVG.

    Parameters
    ----------
    rows : sequence of mapping
        As `curve_points` returns them, at least one.
    out : Path
        The file.
    """
    scales = list(dict.fromkeys(row["scale"] for row in rows))
    base = _in_panels(rows, "score")
    x = alt.X("accuracy:Q", title="probe accuracy, %", scale=alt.Scale(zero=False))
    y = alt.Y("value:Q", title="AUROC", scale=alt.Scale(zero=False))
    colour = alt.Color("encoder:N", legend=alt.Legend(orient="top", columns=4, title=None, symbolOpacity=1))
    bars = base.mark_rule(opacity=0.5).encode(x=x, y=alt.Y("low:Q", title="AUROC"), y2="high:Q", color=colour)
    lines = base.mark_line(point=True).encode(x=x, y=y, color=colour, order="epoch:Q")
    panels = (bars + lines).properties(width=WIDTH, height=HEIGHT)
    order = [f"{title} ({scale})" for scale in scales for title in SHOWN.values()]
    _write(panels.facet(alt.Facet("panel:N", title=None, sort=order), columns=2), out)


def shapes_points(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each feature of each encoder trained on drawn shapes: what it carries, and where it looks."""
    found = [(result, dig(result, "found", "explained", "free", "points")) for result in results]
    return [
        {"encoder": label(result), "scale": result["scale"], "feature": feature, "carries": carries, "looks": looks}
        for result, points in found
        if points
        for feature, carries, looks in zip(points["feature"], points["carries_class"], points["looks"], strict=True)
        if carries is not None and looks is not None
    ]


def write_shapes_chart(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Draw a point for each feature, a panel for each scale and encoder, as SVG.

    Parameters
    ----------
    rows : sequence of mapping
        As `shapes_points` returns them, at least one.
    out : Path
        The file.
    """
    base = _in_panels(rows, "encoder")
    x = alt.X("carries:Q", title="carries: information on shape minus background", axis=alt.Axis(tickCount=5))
    y = alt.Y("looks:Q", title="looks: core IoU minus spurious IoU")
    dots = base.mark_point(filled=True, size=25, opacity=0.6, color="#4477aa").encode(x=x, y=y)
    none = base.mark_rule(color="#999999", strokeDash=[4, 4]).encode(x=alt.datum(0))
    _write((none + dots).properties(width=WIDTH, height=HEIGHT).facet(alt.Facet("panel:N", title=None), columns=2), out)


def _in_panels(rows: Sequence[Mapping[str, Any]], by: str) -> alt.Chart:
    return alt.Chart(alt.InlineData(values=[dict(row) | {"panel": f"{row[by]} ({row['scale']})"} for row in rows]))


def _write(panels: alt.FacetChart, out: Path) -> None:
    svg = vl_convert.vegalite_to_svg(panels.to_json())
    with atomic_path(out) as file:
        file.write_text(svg)
