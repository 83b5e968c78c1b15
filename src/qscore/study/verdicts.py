"""What a comparison of arms shows, by rules that were fixed before any was run.

C7 holds if the probe's accuracy with Q-Score regularisation minus that of plain fine-tuning has a 95 % interval above
0, and is contradicted if it lies below. D matters if the same holds against a random D. C8 holds if both Hoyer sparsity
and the share of exact zeros lie above plain's in the same sense, and is contradicted if both lie below. All else is
"not shown". Raw Q never counts: heads hardly feel the scale of representations, so it rises by inflation alone.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from qscore.study.paired import shown_from

__all__ = ["judge"]

Found = Mapping[str, Any]


def judge(found: Found) -> tuple[list[dict[str, str]], list[str]]:
    """Return verdicts, and sentences that say what was found and no more.

    Parameters
    ----------
    found : mapping
        As `compare` makes it.
    """
    verdicts = [
        {"claim": "C7", "what": "regularisation lifts the linear probe", "verdict": _one(found, "plain", "accuracy")},
        {"claim": "C7", "what": "D matters: against a random D", "verdict": _one(found, "random-d", "accuracy")},
        {"claim": "C7", "what": "against learning rate 0", "verdict": _one(found, "lr0", "accuracy")},
        {"claim": "C8", "what": "regularisation raises sparsity", "verdict": _sparsity(found)},
    ]
    return verdicts, [*_outcomes(found), *_failures(found), *_scope(found)]


def _of(found: Found, reference: str, metric: str) -> Mapping[str, Any] | None:
    of: Mapping[str, Any] | None = found["differences"].get("qscore", {}).get(reference, {}).get(metric)
    return of


def _one(found: Found, reference: str, metric: str) -> str:
    return _sign(_of(found, reference, metric))


def _sign(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return "not tested"
    if difference["low"] > 0:
        return "holds"
    return "contradicted" if difference["high"] < 0 else "not shown"


def _sparsity(found: Found) -> str:
    both = {_one(found, "plain", metric) for metric in ("hoyer", "zeros")}
    if "not tested" in both:
        return "not tested"
    return both.pop() if len(both) == 1 else "not shown"


def _outcomes(found: Found) -> Iterator[str]:
    if "accuracy" not in found["start"]:
        yield "Without labels no probe was fitted, so C7 was not tested."
    else:
        start = found["start"]["accuracy"]
        yield f"At the start the probe classifies {start['value']:.2%} of {found['n_test']:,} test rows correctly."
    against = {"plain": "plain fine-tuning", "random-d": "a random D", "lr0": "learning rate 0"}
    says = {"plain": "C7", "random-d": "That D matters", "lr0": "A gain over BatchNorm's statistics alone"}
    for reference, title in against.items():
        difference = _of(found, reference, "accuracy")
        if difference is not None:
            state, points = _state(_sign(difference)), _points(difference)
            yield f"{says[reference]} {state}: against {title} accuracy changes by {points}."
    hoyer, zeros = (_of(found, "plain", metric) for metric in ("hoyer", "zeros"))
    if hoyer is not None and zeros is not None:
        yield (
            f"C8 {_state(_sparsity(found))}: against plain fine-tuning Hoyer sparsity changes by {_change(hoyer)}, the "
            f"share of exact zeros by {_change(zeros)}."
        )
    ratios = found["arms"].get("qscore", {}).get("gradient_ratios", {})
    if ratios:
        first, second = (ratios[name]["first"] for name in ("gradient_ratio_1", "gradient_ratio_2"))
        yield (
            f"At the first step the regulariser's terms pull at the representations with {first:.2g} and {second:.2g} "
            "of the loss's gradient norm."
        )


def _failures(found: Found) -> Iterator[str]:
    for arm in found["arms"].values():
        for seed, reason in arm["failed"].items():
            yield f"{arm['title']}, seed {seed}, diverged: {reason}."


def _scope(found: Found) -> Iterator[str]:
    seeds = len(found["seeds"])
    of = f"{seeds} seed{'s' if seeds > 1 else ''}"
    if any(arm["failed"] for arm in found["arms"].values()):
        of = f"those of {of} that both arms finished"
    yield (
        f"Intervals are over test rows, of the mean of {of}; how far seeds lie apart stands beside. They say nothing "
        "of other encoders or images."
    )


def _state(verdict: str) -> str:
    return {"holds": "holds here", "contradicted": "is contradicted here", "not shown": "is not shown here"}[verdict]


def _points(d: Mapping[str, Any]) -> str:
    relative = d["relative"]
    agree = sum(value > 0 for value in d["seeds"].values())
    return (
        f"{100 * d['value']:+.2f} points (95 % interval {100 * d['low']:+.2f} to {100 * d['high']:+.2f}; "
        f"{agree} of {len(d['seeds'])} seeds above 0), {100 * relative['value']:+.2f} % relative; "
        f"{shown_from(d['minimum_effect'])}"
    )


def _change(d: Mapping[str, Any]) -> str:
    return f"{d['value']:+.4f} (95 % interval {d['low']:+.4f} to {d['high']:+.4f})"
