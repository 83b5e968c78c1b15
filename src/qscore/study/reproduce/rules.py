"""The rules by which single cases of the ten claims are judged; what they ask for is said in `verdicts`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qscore.evaluate.judgement import FAILS, HOLDS, N_DECISIVE, NOTABLE, UNTESTED, WEAKLY

__all__ = ["LEAST_AUROC", "RANK", "RULES", "Case", "Condition", "Encoder", "because", "dig", "judge_shapes", "untested"]

LEAST_AUROC = 0.5 + NOTABLE / 2
LEAST_HOYER, NOTABLE_HOYER = 0.001, 0.01  # of a range of 1
RANK = {FAILS: 0, WEAKLY: 1, HOLDS: 2}
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Condition:
    """A condition of a rule, in words."""

    words: str
    met: bool | None
    """None where what it asks about was not measured, which counts as not met."""
    decisive: bool
    """Without it the claim does not hold; without another it holds weakly at best."""


@dataclass(frozen=True)
class Case:
    """A claim on one encoder."""

    encoder: str
    """What was looked at, in words."""
    verdict: str
    value: float | None = None
    """The claim's main number, with its 95 % interval."""
    low: float | None = None
    high: float | None = None
    undertrained: bool = False
    """Whether the probe was still rising at the end of the training's schedule."""
    reason: str = ""
    """Why it cannot be tested."""
    conditions: tuple["Condition", ...] = ()
    """What the rule asked for; empty where the claim cannot be tested, or an older result does not say."""
    stage: str = ""
    method: str = ""
    seeds: int | None = None
    """Fine-tunings behind the number."""


@dataclass(frozen=True)
class Encoder:
    """What a case is about: an encoder, or a fine-tuning of one."""

    name: str
    stage: str
    method: str
    found: Found
    """Its numbers."""
    undertrained: bool
    failed: str | None = None
    """Why there are none."""


def dig(found: Any, *names: str) -> Any:
    """Return what lies that deep in a result; None where any part of the way is missing.

    Examples
    --------
    >>> dig({"a": {"b": 1}}, "a", "b"), dig({"a": None}, "a", "b")
    (1, None)
    """
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def untested(of: Encoder, reason: str) -> Case:
    """Return that a claim cannot be tested, and why."""
    return Case(of.name, UNTESTED, undertrained=of.undertrained, reason=reason, stage=of.stage, method=of.method)


def because(text: str) -> str:
    """Return a reason as a footnote has it: one line, without a full stop."""
    return " ".join(text.split()).rstrip(".")


def _undefined(found: Found) -> str:
    text = found.get("undefined")
    return "" if not text else "the probe is at chance" if "at chance" in text else because(text)


def _asked(conditions: Mapping[str, bool | None], decisive: int) -> tuple[Condition, ...]:
    """Return the conditions of a rule, of which so many, the first, are decisive."""
    return tuple(Condition(words, met, k < decisive) for k, (words, met) in enumerate(conditions.items()))


def _graded(of: Encoder, numbers: Sequence[float | None], conditions: Mapping[str, bool], decisive: int) -> Case:
    met = list(conditions.values())
    verdict = HOLDS if all(met) else WEAKLY if all(met[:decisive]) else FAILS
    return _case(of, verdict, numbers, _asked(conditions, decisive))


def _case(of: Encoder, verdict: str, numbers: Sequence[float | None], conditions: tuple[Condition, ...]) -> Case:
    value, low, high = numbers
    return Case(
        encoder=of.name,
        verdict=verdict,
        value=value,
        low=low,
        high=high,
        undertrained=of.undertrained,
        conditions=conditions,
        stage=of.stage,
        method=of.method,
    )


def _record(records: Iterable[Found] | None, **wanted: str) -> Found | None:
    return next((row for row in records or () if all(row[name] == value for name, value in wanted.items())), None)


def _numbers(row: Found | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if row is None else (row["value"], row["low"], row["high"])


def _measured(row: Found | None) -> bool:
    """Return whether there are the numbers that decide: the value, and the lower end of its interval."""
    return row is not None and row["value"] is not None and row["low"] is not None


def _above(row: Found | None, bound: float = 0.0) -> bool:
    return row is not None and row["low"] is not None and row["low"] > bound


def _first_two(claim: str, quantity: str, statistic: str) -> Callable[[Encoder], Case]:
    def rule(of: Encoder) -> Case:
        claims, undefined = of.found["claims"], _undefined(of.found)
        if undefined or claims is None:
            return untested(of, undefined or "correct and wrong rows were not compared")
        verdict = claims["verdicts"][claim]
        if verdict == UNTESTED:
            return untested(of, "no feature of D is highly active in any test row")
        numbers = _numbers(_record(claims["records"], quantity=quantity, statistic=statistic, scope="overall"))
        return _case(of, verdict, numbers, _asked(dig(claims, "conditions", claim) or {}, N_DECISIVE))

    return rule


def _predicts(of: Encoder) -> Case:
    auroc, undefined = dig(of.found, "scores", "q_score", "auroc"), _undefined(of.found)
    if undefined or not _measured(auroc):
        return untested(of, undefined or "AUROC of Q could not be measured")
    minus = {name: dig(of.found, "q_minus", name, "auroc") for name in ("q_without_d", "q_random_d", "l2_norm")}
    conditions = {
        "an AUROC above 0.5": _above(auroc, 0.5),
        f"an AUROC that reaches {LEAST_AUROC:g}": auroc["value"] >= LEAST_AUROC,
        "an AUROC above that of Q without D": _above(minus["q_without_d"]),
        "an AUROC above that of Q with a random D": _above(minus["q_random_d"]),
        "an AUROC above that of the feature norm": _above(minus["l2_norm"]),
        "a gain on top of the norm": _above(of.found["gain_on_norm"]),
    }
    return _graded(of, _numbers(auroc), conditions, 1)


def _compresses(of: Encoder) -> Case:
    undefined = _undefined(of.found)
    point = next((point for point in of.found["compression"] or () if point["keep"] == 0.6), None)
    if undefined or point is None:
        return untested(of, undefined or "its features were not reduced to 60 %")
    numbers = (point["change"], point["change_low"], point["change_high"])
    if None in numbers[:2]:
        return untested(of, "the change in accuracy could not be measured")
    both = point["accuracy"], point["random_high"]
    conditions = {
        "a change above -1 point": point["retained"],
        "accuracy above random sets' 95th percentile": None not in both and both[0] > both[1],
    }
    return _graded(of, numbers, conditions, 1)


def _lifts(of: Encoder) -> Case:
    against = dig(of.found, "differences", "qscore") or {}
    plain = dig(against, "plain", "accuracy")
    if not _measured(plain):
        return untested(of, _without(of.found))
    conditions = {
        "accuracy above that of plain fine-tuning": _above(plain),
        "a higher accuracy with every seed": all(value is not None and value > 0 for value in plain["seeds"].values()),
    }
    for arm, words in {
        "lr0": "accuracy above that at learning rate 0",
        "random-d": "accuracy above that with a random D",
    }.items():
        if arm in against:
            conditions[words] = _above(dig(against, arm, "accuracy"))
    return _graded(of, _numbers(plain), conditions, 1)


def _sparser(of: Encoder) -> Case:
    plain = dig(of.found, "differences", "qscore", "plain") or {}
    if not _measured(plain.get("hoyer")) or "zeros" not in plain:
        return untested(of, _without(of.found))
    change = plain["hoyer"]["value"]
    conditions = {
        "Hoyer sparsity above that of plain fine-tuning": _above(plain["hoyer"]),
        f"a rise by {LEAST_HOYER:g}": change >= LEAST_HOYER,
        f"a rise by {NOTABLE_HOYER:g}": change >= NOTABLE_HOYER,
        "a larger share of exact zeros": _above(plain["zeros"]),
    }
    return _graded(of, _numbers(plain["hoyer"]), conditions, 2)


def _without(fine_tuning: Found | None) -> str:
    """Return why two arms cannot be compared."""
    if refused := dig(fine_tuning, "refused"):
        return because(refused)
    arms = [dig(fine_tuning, "arms", name) or {} for name in ("qscore", "plain")]
    failed = [f"{arm['title']}: {reason}" for arm in arms for reason in (arm.get("failed") or {}).values()]
    return because(failed[0]) if failed else "an arm of the fine-tuning has no numbers"


SHAPES = {  # claim -> the explanation it is read from, and its main number
    "C3": ("free", "gap_discriminative - gap_random", "mean"),
    "C4": ("start", "spurious_discriminative - spurious_outside", "mean"),
    "C9": ("start", "q_score ~ core_discriminative", "spearman"),
    "C10": ("from-plain", "core_discriminative", "change"),
}
ASKED = {"from-start": ", against the start", "from-plain": ", against plain fine-tuning"}


def judge_shapes(claim: str, of: Encoder, complete: bool) -> Case | None:
    """Judge C3, C4, C9 or C10; None as long as the run has not got there."""
    where, quantity, statistic = SHAPES[claim]
    explained = of.found.get("explained") or {}
    places = ["from-start", "from-plain"] if claim == "C10" else [where]
    if any(place not in explained for place in places):
        return _unexplained(claim, of, complete)
    verdicts = {place: explained[place]["verdicts"].get(claim, UNTESTED) for place in places}
    for place, verdict in verdicts.items():
        if verdict == UNTESTED:
            reason = dig(explained, place, "reasons", claim)
            return untested(of, because(reason or "too few features or images in which there is something to measure"))
    worse = min(reversed(places), key=lambda place: RANK[verdicts[place]])
    asked = [
        replace(condition, words=condition.words + ASKED.get(place, ""))
        for place in places
        for condition in _asked(dig(explained, place, "conditions", claim) or {}, N_DECISIVE)
    ]
    numbers = _numbers(_record(explained[worse]["records"], quantity=quantity, statistic=statistic))
    return _case(of, verdicts[worse], numbers, tuple(asked))


def _unexplained(claim: str, of: Encoder, complete: bool) -> Case | None:
    tuned = of.found.get("tuned") or {}
    final = "refused" in tuned or ("arms" in tuned and not dig(tuned, "differences", "qscore", "plain"))
    if claim == "C10" and (final or complete):
        return untested(of, _without(tuned))
    return untested(of, "its features were not explained") if complete else None


RULES: dict[str, Callable[[Encoder], Case]] = {
    "C1": _first_two("C1", "z", "cliffs_delta"),
    "C2": _first_two("C2", "purity_discriminative", "excess"),
    "C5": _predicts,
    "C6": _compresses,
    "C7": _lifts,
    "C8": _sparser,
}
