"""The report's charts of failure prediction: what abstaining buys, Q against its rivals, and what few labels buy."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pyarrow as pa

from qscore.evaluate import SCORES, risk_coverage
from qscore.report.charts import HEIGHT, WIDTH, data

__all__ = ["forest_chart", "reliability_chart", "risk_chart"]

POINTS = 400
LEAST_COVERAGE = 0.05  # below it a handful of rows decides, and the curves are noise
NAMED = {
    "q_score": ("#cc3311", [1, 0]),
    "q_without_d": ("#ee7733", [6, 3]),
    "l2_norm": ("#009988", [1, 0]),
    "knn_similarity": ("#0077bb", [1, 0]),
    "softmax": ("#222222", [2, 2]),
}
OTHERS = "the other scores"
ROW_HEIGHT = 18
LABELS = 90  # pixels that names take, beyond what numbers would


def risk_chart(evaluation: pa.Table) -> Any:
    """Draw the error rate among the best-scored rows against the share of rows kept, for every score.

    Five have colours and names; of the others, thin grey lines, the name shows under the pointer.
    """
    correct = evaluation.column("correct").to_numpy()
    rows = []
    for score in SCORES:
        if score.name not in evaluation.column_names:
            continue
        coverage, risk = risk_coverage(evaluation.column(score.name).to_numpy().astype(np.float64), correct)
        first = int(LEAST_COVERAGE * len(risk))
        kept = np.unique(np.linspace(first, len(risk) - 1, min(len(risk), POINTS)).astype(int))
        named = score.title if score.name in NAMED else OTHERS
        rows += [
            {"coverage": float(coverage[k]), "risk": float(risk[k]), "score": score.title, "legend": named}
            for k in kept
        ]
    styles = {score.title: NAMED[score.name] for score in SCORES if score.name in NAMED}
    styles = {OTHERS: ("#c4c8cf", [1, 0])} | styles
    present = [title for title in styles if any(row["legend"] == title for row in rows)]
    colors, dashes = zip(*(styles[title] for title in present), strict=True)
    base = alt.Chart(data([{"risk": float((~correct).mean())}]), title="Errors among the rows kept, by score")
    chance = base.mark_rule(color="#999999", strokeDash=[4, 4]).encode(y="risk:Q")
    legend = alt.Legend(orient="top", columns=3, title=None)

    def curves(grey: bool) -> Any:
        return (
            alt.Chart(data([row for row in rows if (row["legend"] == OTHERS) == grey]))
            .mark_line(strokeWidth=1 if grey else 2)
            .encode(
                x=alt.X("coverage:Q", title="share of rows kept, best scores first", axis=alt.Axis(format="%")),
                y=alt.Y("risk:Q", title="error rate among them", axis=alt.Axis(format="%")),
                detail="score:N",
                color=alt.Color("legend:N", scale=alt.Scale(domain=present, range=list(colors)), legend=legend),
                strokeDash=alt.StrokeDash(
                    "legend:N", scale=alt.Scale(domain=present, range=list(dashes)), legend=legend
                ),
                tooltip=["score:N", alt.Tooltip("coverage:Q", format=".1%"), alt.Tooltip("risk:Q", format=".2%")],
            )
        )

    layers = [chance, *(curves(grey) for grey in (True, False) if any((r["legend"] == OTHERS) == grey for r in rows))]
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def forest_chart(q_minus: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    """Draw the difference in AUROC of Q from every other score, with its paired interval.

    Parameters
    ----------
    q_minus : mapping
        Score name -> statistic -> ``value``, ``low``, ``high``, as ``metrics.json`` holds it.
    """
    titles = {score.name: score.title for score in SCORES}
    rows: list[dict[str, Any]] = [
        {"score": titles[name], **row["auroc"]} for name, row in q_minus.items() if name in titles
    ]
    rows.sort(key=lambda row: float(row["value"]))
    for row in rows:
        low, high = (0.0 if row[bound] is None else row[bound] for bound in ("low", "high"))  # null: no interval
        row["verdict"] = "Q is better" if low > 0 else "Q is worse" if high < 0 else "cannot be told"
    base = alt.Chart(data(rows), title="AUROC of Q minus that of others").encode(
        y=alt.Y("score:N", sort=[row["score"] for row in rows], title=None, axis=alt.Axis(labelLimit=240)),
        color=alt.Color(
            "verdict:N",
            scale=alt.Scale(
                domain=["Q is better", "cannot be told", "Q is worse"], range=["#4477aa", "#8a92a0", "#b0455c"]
            ),
            legend=alt.Legend(orient="top", title=None),
        ),
        tooltip=["score:N", *(alt.Tooltip(f"{name}:Q", format="+.3f") for name in ("value", "low", "high"))],
    )
    x = alt.X("low:Q", title="difference, 95 % paired interval", axis=alt.Axis(format="+.2f", tickCount=5))
    zero = alt.Chart(data([{"zero": 0.0}])).mark_rule(color="#999999", strokeDash=[4, 4]).encode(x="zero:Q")
    intervals = base.mark_rule(strokeWidth=2).encode(x=x, x2="high:Q")
    points = base.mark_point(filled=True, size=55, opacity=1).encode(x="value:Q")
    height = max(HEIGHT, ROW_HEIGHT * len(rows))
    return alt.layer(zero, intervals, points).properties(width=WIDTH - LABELS, height=height)


def reliability_chart(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> Any:
    """Draw predicted against observed shares of failures, with exact intervals; the diagonal is perfect.

    Parameters
    ----------
    curves : mapping
        Title of a score -> bins with ``predicted``, ``observed``, ``low``, ``high``, ``n``.
    """
    rows = [{"score": title, **row} for title, bins in curves.items() for row in bins]
    diagonal = alt.Chart(data([{"a": 0.0}, {"a": 1.0}]), title="Probability of failure, from few labels").mark_line(
        color="#999999", strokeDash=[4, 4]
    )
    colors = ["#cc3311", "#222222"]
    base = alt.Chart(data(rows)).encode(
        x=alt.X("predicted:Q", title="predicted probability of failure", axis=alt.Axis(format="%")),
        color=alt.Color(
            "score:N",
            scale=alt.Scale(domain=list(curves), range=colors[: len(curves)]),
            legend=alt.Legend(orient="top", title=None),
        ),
        tooltip=["score:N", "n:Q", *(alt.Tooltip(f"{name}:Q", format=".1%") for name in ("predicted", "observed"))],
    )
    bars = base.mark_rule().encode(y=alt.Y("low:Q", title="share that failed", axis=alt.Axis(format="%")), y2="high:Q")
    points = base.mark_point(filled=True, size=45, opacity=1).encode(y="observed:Q")
    return alt.layer(diagonal.encode(x="a:Q", y="a:Q"), bars, points).properties(width=WIDTH, height=HEIGHT)
