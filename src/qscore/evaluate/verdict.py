"""The verdict in sentences, made from the numbers."""

from collections.abc import Mapping
from typing import Any

from qscore.evaluate.scores import SCORES

__all__ = ["sentences"]

FEW = 50
TITLES = {score.name: score.title for score in SCORES}


def sentences(metrics: Mapping[str, Any]) -> list[str]:
    """Say what an evaluation found, and no more than its intervals allow.

    Parameters
    ----------
    metrics : mapping
        As :func:`qscore.evaluate_scores` writes it to ``metrics.json``.
    """
    probe = metrics["probe"]
    said = [
        f"The linear probe classifies {probe['n_correct']:,} of {metrics['n']:,} held-out rows correctly "
        f"({probe['accuracy']:.1%}); it was fitted on {probe['n_train']:,}."
    ]
    if not metrics["scores"]:
        outcome = "correct" if probe["n_correct"] else "wrong"
        return [*said, f"All rows are {outcome}, so nothing can be said about predicting failures."]
    if not probe["converged"]:
        said.append("The probe stopped before its optimum; its mistakes are not quite a linear probe's.")
    q = metrics["scores"]["q_score"]["auroc"]
    said.append(f"Q ranks correct rows above wrong ones with an AUROC of {_interval(q)}: {_against_chance(q)}.")
    said += [_against(metrics, name) for name in ("l2_norm", "q_without_d")]
    rivals = [score.name for score in SCORES if not score.needs_labels and score.name != "q_score"]
    best = max(rivals, key=lambda name: metrics["scores"][name]["auroc"]["value"])
    said.append(
        f"Of the {len(rivals)} other label-free scores, {TITLES[best]} came out highest on these rows, "
        f"with an AUROC of {_interval(metrics['scores'][best]['auroc'])}."
    )
    said.append(
        "What labels buy: the probe's own softmax reaches an AUROC of "
        f"{_interval(metrics['scores']['softmax']['auroc'])}."
    )
    rarer = min(("correct", "wrong"), key=lambda outcome: probe[f"n_{outcome}"])
    if probe[f"n_{rarer}"] < FEW:
        said.append(f"Only {probe[f'n_{rarer}']} rows are {rarer}, so the intervals are wide and themselves rough.")
    return said


def _interval(statistic: Mapping[str, float]) -> str:
    return f"{statistic['value']:.3f} (95 % interval {statistic['low']:.3f} to {statistic['high']:.3f})"


def _against_chance(auroc: Mapping[str, float]) -> str:
    if auroc["low"] > 0.5:
        return "better than chance"
    if auroc["high"] < 0.5:
        return "worse than chance, its sign is wrong here"
    return "not to be told from chance"


def _against(metrics: Mapping[str, Any], name: str) -> str:
    difference = metrics["q_minus"][name]["auroc"]
    title = "the feature norm" if name == "l2_norm" else TITLES[name]
    change = f"{difference['value']:+.3f} (95 % interval {difference['low']:+.3f} to {difference['high']:+.3f})"
    if difference["low"] > 0:
        verdict = f"Q does better than {title}"
    elif difference["high"] < 0:
        verdict = f"Q does worse than {title}"
    else:
        verdict = f"Q cannot be told apart from {title} here"
    return f"{verdict}: the difference in AUROC is {change}."
