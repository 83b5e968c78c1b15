"""The verdict in sentences, made from the numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

from qscore.evaluate.calibration import clopper_pearson
from qscore.evaluate.probes import Probe
from qscore.evaluate.scores import SCORES

__all__ = ["sentences", "undefined_because"]

FEW = 50
TITLES = {score.name: score.title for score in SCORES}
THE = {"l2_norm": "the feature norm", "softmax": "the probe's softmax"}


def sentences(metrics: Mapping[str, Any], probe: Probe | None = None) -> list[str]:
    """Say what an evaluation found, and no more than its intervals allow.

    Parameters
    ----------
    metrics : mapping
        As :func:`qscore.evaluate_scores` writes it to ``metrics.json``.
    probe : Probe, optional
        The probe behind the outcomes; None where the user brought them.
    """
    said = [*_outcomes(metrics, probe), *_duplicates(metrics)]
    undefined = undefined_because(metrics)
    if undefined:
        return [*said, undefined]
    said += _ranking(metrics)
    said += (metrics["claims"] or {}).get("sentences", [])
    return list(dict.fromkeys([*said, *_calibration(metrics), *_left_out(metrics)]))  # both warn of few rows


def _outcomes(metrics: Mapping[str, Any], probe: Probe | None) -> Iterator[str]:
    n, share = metrics["n"], metrics["base_rate"]["correct"]
    if probe is None:
        yield f"Of {n:,} rows with a known outcome {round(n * share):,} are correct ({share:.1%}); no probe was fitted."
        return
    yield (
        f"The {probe.title} classifies {metrics['probe']['n_correct']:,} of {n:,} held-out rows correctly "
        f"({share:.1%}); it was fitted on {probe.n_train:,}."
    )
    yield from probe.sentences()


def _duplicates(metrics: Mapping[str, Any]) -> Iterator[str]:
    train, test = metrics["n_duplicates"]["train"], metrics["n_duplicates"]["test"]
    if train and metrics["probe"] is None:
        yield f"{train:,} rows under test equal a training row bit by bit: neighbour scores find the row itself."
    elif train:
        yield f"{train:,} rows under test equal a training row bit by bit: the probe has seen them, and does too well."
    if test:
        yield f"{test:,} rows under test equal another one bit by bit: they count as often."


def undefined_because(metrics: Mapping[str, Any]) -> str | None:
    """Return why nothing can be said about predicting failures, where nothing can.

    Parameters
    ----------
    metrics : mapping
        As for :func:`sentences`; of it ``n``, ``base_rate`` and ``probe``.

    Examples
    --------
    >>> undefined_because({"n": 5, "base_rate": {"correct": 1.0}, "probe": None})
    'All rows are correct, so nothing can be said about predicting failures.'
    """
    n, share = metrics["n"], metrics["base_rate"]["correct"]
    if share in (0.0, 1.0):
        return f"All rows are {'correct' if share else 'wrong'}, so nothing can be said about predicting failures."
    if metrics["probe"] is None:
        return None
    majority = metrics["probe"]["majority"]
    low, _ = clopper_pearson(round(n * share), n)
    if low <= majority:
        return (
            f"That is not shown to be better than always naming the most common class ({majority:.1%}): as far as "
            "these rows can tell, the probe is at chance, its mistakes say nothing of single rows, and failure "
            "prediction is undefined."
        )
    return None


def _ranking(metrics: Mapping[str, Any]) -> Iterator[str]:
    scores = metrics["scores"]
    q = scores["q_score"]["auroc"]
    yield f"Q ranks correct rows above wrong ones with an AUROC of {_interval(q)}: {_against_chance(q)}."
    mean = metrics["class_mean"].get("q_score")
    if mean:
        within = mean["auroc"]
        yield f"Within classes its mean AUROC is {_interval(within)}: {_against_chance(within)}."
    yield from (_against(metrics, name) for name in ("l2_norm", "q_without_d", "q_random_d") if name in scores)
    gain = metrics["gain"].get("q_on_top_of", {}).get("l2_norm")
    if gain:
        verdict = "adds to" if gain["low"] > 0 else "cannot be shown to add to"
        yield f"Q {verdict} the feature norm: together their AUROC, out of fold, changes by {_change(gain)}."
    rivals = [score.name for score in SCORES if score.kind == "rival" and score.name in scores]
    best = max(rivals, key=lambda name: float(scores[name]["auroc"]["value"]))
    yield (
        f"Of the {len(rivals)} label-free rivals, {TITLES[best]} came out highest on these rows, with an AUROC of "
        f"{_interval(scores[best]['auroc'])}."
    )
    if "softmax" in scores:
        yield f"What labels buy: the probe's own softmax reaches an AUROC of {_interval(scores['softmax']['auroc'])}."
    n_correct = round(metrics["n"] * metrics["base_rate"]["correct"])
    outcome, n_rarer = min(("correct", n_correct), ("wrong", metrics["n"] - n_correct), key=lambda pair: pair[1])
    if n_rarer < FEW:
        yield f"Only {n_rarer} rows are {outcome}, so the intervals are wide and themselves rough."


def _calibration(metrics: Mapping[str, Any]) -> Iterator[str]:
    found = metrics["calibration"]
    if not found:
        return
    for row in found["scores"].values():
        title = _sentence_case(row["title"])
        yield f"{title}, from {found['labelled']:,} of these rows as labelled ones: {row['sentence']}"
        if row["observed_error"] is not None:
            yield (
                f"Of the {row['n_rest']:,} others it accepts {row['n_accepted']:,} ({row['coverage']:.1%}), and "
                f"{row['observed_error']:.1%} of those are wrong."
            )


def _left_out(metrics: Mapping[str, Any]) -> Iterator[str]:
    for name, reason in metrics["left_out"].items():
        if name != "softmax" or metrics["probe"] is not None:
            yield f"{_sentence_case(TITLES[name])} is left out: {reason}."


def _sentence_case(title: str) -> str:
    return title[:1].upper() + title[1:]


def _interval(statistic: Mapping[str, float]) -> str:
    return f"{statistic['value']:.3f} (95 % interval {statistic['low']:.3f} to {statistic['high']:.3f})"


def _change(statistic: Mapping[str, float]) -> str:
    return f"{statistic['value']:+.3f} (95 % interval {statistic['low']:+.3f} to {statistic['high']:+.3f})"


def _against_chance(auroc: Mapping[str, float]) -> str:
    if auroc["low"] > 0.5:
        return "better than chance"
    if auroc["high"] < 0.5:
        return "worse than chance, its sign is wrong here"
    return "not to be told from chance"


def _against(metrics: Mapping[str, Any], name: str) -> str:
    difference = metrics["q_minus"][name]["auroc"]
    title = THE.get(name, TITLES[name])
    if difference["low"] > 0:
        verdict = f"Q does better than {title}"
    elif difference["high"] < 0:
        verdict = f"Q does worse than {title}"
    else:
        verdict = f"Q cannot be told apart from {title} here"
    return f"{verdict}: the difference in AUROC is {_change(difference)}."
