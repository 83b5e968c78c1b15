"""The report's charts: how Q is distributed, which features are discriminative, what abstaining buys."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pyarrow as pa

from qscore.core import rank_band
from qscore.evaluate import SCORES, risk_coverage

__all__ = ["activation_chart", "compression_chart", "overview", "q_chart", "risk_chart"]

BINS = 40
POINTS = 400
LEAST_COVERAGE = 0.05  # below it a handful of rows decides, and the curves are noise
OUTCOMES = {"correct": "#4477aa", "wrong": "#cc6677", "all rows": "#4477aa"}
SHOWN = {
    "q_score": ("#cc3311", [1, 0]),
    "q_without_d": ("#ee7733", [6, 3]),
    "l2_norm": ("#009988", [1, 0]),
    "knn_similarity": ("#0077bb", [1, 0]),
    "softmax": ("#777777", [2, 2]),
}
SELECTIONS = {
    "rank": ("middle activation rates (qscore)", "#cc3311", [1, 0]),
    "rate": ("highest activation rate", "#ee7733", [6, 3]),
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
        alt.Chart(_data(rows), title="Q of the scored rows")
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
    band = alt.Chart(_data([{"start": start, "stop": stop, "name": "D"}])).mark_rect(color="#ddcc77", opacity=0.4)
    label = band.mark_text(align="left", baseline="top", dx=5, dy=5, fontWeight="bold", color="#7a6a00", opacity=1)
    curve = (
        alt.Chart(_data(rows), title="Activation rate A of each feature")
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


def risk_chart(evaluation: pa.Table) -> Any:
    """Draw the error rate among the best-scored rows against the share of rows kept, for Q and its rivals."""
    correct = evaluation.column("correct").to_numpy()
    shown = [score for score in SCORES if score.name in SHOWN and score.name in evaluation.column_names]
    rows = []
    for score in shown:
        coverage, risk = risk_coverage(evaluation.column(score.name).to_numpy().astype(np.float64), correct)
        first = int(LEAST_COVERAGE * len(risk))
        kept = np.unique(np.linspace(first, len(risk) - 1, min(len(risk), POINTS)).astype(int))
        rows += [{"coverage": float(coverage[k]), "risk": float(risk[k]), "score": score.title} for k in kept]
    titles = [score.title for score in shown]
    colors, dashes = zip(*(SHOWN[score.name] for score in shown), strict=True)
    base = alt.Chart(_data([{"risk": float((~correct).mean())}]), title="Errors among the rows kept, by score")
    chance = base.mark_rule(color="#999999", strokeDash=[4, 4]).encode(y="risk:Q")
    legend = alt.Legend(orient="top", columns=3, title=None)
    curves = (
        alt.Chart(_data(rows))
        .mark_line()
        .encode(
            x=alt.X("coverage:Q", title="share of rows kept, best scores first", axis=alt.Axis(format="%")),
            y=alt.Y("risk:Q", title="error rate among them", axis=alt.Axis(format="%")),
            color=alt.Color("score:N", scale=alt.Scale(domain=titles, range=list(colors)), legend=legend),
            strokeDash=alt.StrokeDash("score:N", scale=alt.Scale(domain=titles, range=list(dashes)), legend=legend),
            tooltip=["score:N", alt.Tooltip("coverage:Q", format=".1%"), alt.Tooltip("risk:Q", format=".2%")],
        )
    )
    return alt.layer(chance, curves).properties(width=WIDTH, height=HEIGHT)


def compression_chart(records: list[dict[str, Any]]) -> Any:
    """Draw a linear classifier's accuracy against the share of features kept, for each way to choose them."""
    rows = [
        {"keep": r["keep"], "accuracy": r["accuracy"], "features": r["n_kept"], "chosen by": SELECTIONS[r["method"]][0]}
        for r in sorted(records, key=lambda r: float(r["keep"]))
    ]
    titles, colors, dashes = zip(*SELECTIONS.values(), strict=True)
    legend = alt.Legend(orient="top", columns=2, title=None)
    return (
        alt.Chart(_data(rows), title="Accuracy of what is left")
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


def _data(rows: list[dict[str, Any]]) -> Any:
    return alt.InlineData(values=rows)
