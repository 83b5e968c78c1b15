"""The report's charts of scores and features: how Q is distributed, what is discriminative, what can be left out."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np

from qscore.core import rank_band

__all__ = ["HEIGHT", "WIDTH", "activation_chart", "compression_chart", "data", "overview", "q_chart"]

BINS = 40
POINTS = 400
OUTCOMES = {"correct": "#4477aa", "wrong": "#cc6677", "all rows": "#4477aa"}
SELECTIONS = {
    "rank": ("middle rates (qscore)", "#cc3311", [1, 0]),
    "rate": ("highest rates", "#ee7733", [6, 3]),
    "variance": ("highest variance", "#009988", [1, 0]),
    "pca": ("principal components", "#0077bb", [1, 0]),
    "random": ("random, mean", "#777777", [2, 2]),
}
WIDTH, HEIGHT = 275, 230  # three side by side on a page of 1,180 pixels


def q_chart(q: np.ndarray, correct: np.ndarray | None) -> Any:
    """Draw the distribution of Q; correct and wrong rows apart where outcomes are known, each as shares of its own."""
    edges = np.histogram_bin_edges(q, bins=BINS)
    groups = {"all rows": q} if correct is None else {"correct": q[correct], "wrong": q[~correct]}
    rows = [
        {
            "low": float(low),
            "high": float(high),
            "share": float(count / max(len(values), 1)),
            "rows": int(count),
            "outcome": outcome,
        }
        for outcome, values in groups.items()
        for low, high, count in zip(edges[:-1], edges[1:], np.histogram(values, edges)[0], strict=True)
    ]
    present = list(groups)
    return (
        alt.Chart(data(rows), title="Q of the scored rows")
        .mark_bar(opacity=0.6, binSpacing=0)
        .encode(
            x=alt.X("low:Q", bin="binned", title="Q"),
            x2="high:Q",
            y=alt.Y("share:Q", stack=None, title="share of rows", axis=alt.Axis(format="%")),
            color=alt.Color(
                "outcome:N",
                scale=alt.Scale(domain=present, range=[OUTCOMES[name] for name in present]),
                title=None,
                legend=None if len(present) == 1 else alt.Legend(orient="top"),
            ),
            tooltip=["outcome:N", alt.Tooltip("low:Q", format=".3f"), alt.Tooltip("high:Q", format=".3f"), "rows:Q"],
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def activation_chart(rates: np.ndarray, lower: float, upper: float) -> Any:
    """Draw activation rates in order of rank, D's band shaded."""
    ordered = np.sort(rates)
    ranks = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), POINTS)).astype(int))
    rows = [{"rank": int(rank), "rate": float(ordered[rank])} for rank in ranks]
    start, stop = rank_band(len(rates), lower, upper)
    band = alt.Chart(data([{"start": start, "stop": stop, "name": "D"}])).mark_rect(color="#ddcc77", opacity=0.4)
    label = band.mark_text(align="left", baseline="top", dx=5, dy=5, fontWeight="bold", color="#7a6a00", opacity=1)
    curve = (
        alt.Chart(data(rows), title="Activation rate A of each feature")
        .mark_line(color="#222222", interpolate="step-after")
        .encode(
            x=alt.X("rank:Q", title="features by rank of A"),
            y=alt.Y(
                "rate:Q",
                title="share of rows in which it is highly active (root scale)",
                axis=alt.Axis(format="%"),
                scale=alt.Scale(type="sqrt"),
            ),
            tooltip=["rank:Q", alt.Tooltip("rate:Q", format=".2%")],
        )
    )
    return alt.layer(
        band.encode(x="start:Q", x2="stop:Q"), label.encode(x="start:Q", y=alt.value(0), text="name:N"), curve
    ).properties(width=WIDTH, height=HEIGHT)


def compression_chart(records: list[dict[str, Any]]) -> Any:
    """Draw a linear classifier's accuracy against the share of features kept, for each way to choose them."""
    rows = [
        {"keep": r["keep"], "accuracy": r["accuracy"], "features": r["n_kept"], "chosen by": SELECTIONS[r["method"]][0]}
        for r in sorted(records, key=lambda r: float(r["keep"]))
    ]
    titles, colors, dashes = zip(*SELECTIONS.values(), strict=True)
    legend = alt.Legend(orient="top", columns=2, title=None)
    return (
        alt.Chart(data(rows), title="Accuracy of what is left")
        .mark_line()
        .encode(
            x=alt.X("keep:Q", title="share of features kept", axis=alt.Axis(format="%")),
            y=alt.Y("accuracy:Q", title="accuracy of ridge", axis=alt.Axis(format="%"), scale=alt.Scale(zero=False)),
            color=alt.Color("chosen by:N", scale=alt.Scale(domain=titles, range=list(colors)), legend=legend),
            strokeDash=alt.StrokeDash("chosen by:N", scale=alt.Scale(domain=titles, range=list(dashes)), legend=legend),
            tooltip=["chosen by:N", "features:Q", alt.Tooltip("accuracy:Q", format=".2%")],
        )
        .properties(width=WIDTH, height=HEIGHT)
    )


def overview(charts: Sequence[Any]) -> Any:
    """Put charts side by side, each with its own scales."""
    return alt.hconcat(*charts).resolve_scale(color="independent", strokeDash="independent").configure_view(stroke=None)


def data(rows: list[dict[str, Any]]) -> Any:
    """Return rows as data that stand in the chart itself."""
    return alt.InlineData(values=rows)
