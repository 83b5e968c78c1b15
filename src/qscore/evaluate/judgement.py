"""What the claims' numbers say: the table, the rules fixed beforehand, and both in sentences made from the numbers."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

__all__ = [
    "CLAIMS",
    "NOTABLE",
    "OVERALL",
    "SCOPES",
    "TITLES",
    "WITHIN",
    "ClaimTable",
    "ClaimVerdict",
    "Measure",
    "judge",
]

HOLDS, WEAKLY, FAILS, UNTESTED = "holds", "holds weakly", "does not hold here", "cannot be tested"
N_DECISIVE = 2  # the first conditions of a rule, without which a claim does not hold at all
FEW = 50
NOTABLE = 0.147  # below it a Cliff's delta is called negligible (Romano, Kromrey, Coraggio and Skowronek 2006)
OVERALL, WITHIN = SCOPES = ("overall", "within class")
CLAIMS = {
    "C1": "correct rows have few, highly deviated features",
    "C2": "discriminative features sit mostly in correct rows",
}
TITLES = {
    "n_active": "|L_i|",
    "z": "Z_i",
    "deviation": "mean deviation of L_i in sigmas",
    "n_discriminative": "|L_i ∩ D|",
    "n_frequent": "|L_i ∩ most frequent|",
    "n_random": "|L_i ∩ random set|",
    "share_discriminative": "|L_i ∩ D| / |L_i|",
    "share_frequent": "|L_i ∩ most frequent| / |L_i|",
    "share_random": "|L_i ∩ random set| / |L_i|",
    "purity_discriminative": "correct share of the rows that features of D are highly active in",
    "purity_frequent": "correct share of the rows that the most frequent features are highly active in",
    "purity_random": "correct share of the rows that random features are highly active in",
}


@dataclass(frozen=True)
class Measure:
    """One number with its 95 % bootstrap interval."""

    quantity: str
    """A key of `TITLES`, or two of them as ``a - b``."""
    scope: str
    """``overall`` or ``within class``."""
    statistic: str
    """One of `qscore.evaluate.effects.STATISTICS`. Of a purity: ``purity``; ``excess``, over the base rate (within
    class: over the accuracy of the rows' own classes); and of random sets ``excess_p95``, the 95th percentile over the
    sets, without interval."""
    value: float
    low: float
    high: float
    n_correct: int
    """Correct rows behind it."""
    n_wrong: int
    n_classes: int
    """Classes behind it, those with rows of both outcomes; 1 overall."""


@dataclass(frozen=True)
class ClaimVerdict:
    """What the rule fixed beforehand says of a claim."""

    claim: str
    """``C1`` or ``C2``."""
    verdict: str
    """``holds``, ``holds weakly``, ``does not hold here``, or ``cannot be tested``."""
    conditions: dict[str, bool]
    """Each condition of the rule in words, and whether it was met; empty where the claim cannot be tested."""


@dataclass(frozen=True)
class ClaimTable:
    """How correct and wrong rows differ in their highly active features, and what that says of the claims."""

    measures: tuple[Measure, ...]
    n_correct: int
    n_wrong: int
    n_classes: int | None
    """Classes with rows of both outcomes, the ones that count within class; None without labels."""
    n_all_classes: int | None
    n_empty_correct: int
    """Correct rows with an empty L_i: shares and deviations leave them out."""
    n_empty_wrong: int
    n_invalid: int
    """Rows left out: not valid, or with a mean, maximum or standard deviation beyond float32."""
    n_discriminative: int
    """|D|."""
    n_random: int
    """Random sets drawn."""
    signed: bool

    def get(self, quantity: str, statistic: str, scope: str = OVERALL) -> Measure:
        """Return one number; NaN where it was not measured."""
        wanted = (quantity, scope, statistic)
        nothing = Measure(*wanted, math.nan, math.nan, math.nan, 0, 0, 0)
        return next((m for m in self.measures if (m.quantity, m.scope, m.statistic) == wanted), nothing)

    @property
    def verdicts(self) -> tuple[ClaimVerdict, ClaimVerdict]:
        """What the rules say of C1 and C2."""
        return judge(self)

    def records(self) -> list[dict[str, Any]]:
        """Return the numbers as tidy records; ``n`` counts the rows behind each."""
        return [asdict(measure) | {"n": measure.n_correct + measure.n_wrong} for measure in self.measures]

    def sentences(self) -> list[str]:
        """Say what was measured, and no more than the intervals allow."""
        return list(_sentences(self))


def judge(table: ClaimTable) -> tuple[ClaimVerdict, ClaimVerdict]:
    """Judge both claims by rules fixed before any number was seen.

    "Above" and "below" mean that the whole 95 % interval lies there; effects are Cliff's deltas, correct against wrong.

    **C1.** *Highly deviated* is read as a higher Z_i (the quantity of version 1), *few* as a smaller ``|L_i|``.

    - *Holds*: Z_i's effect is above 0 overall and within class, and at least 0.147 overall, the least that is not
      called negligible; the effect of ``|L_i|`` is below 0 overall and within class.
    - *Holds weakly*: Z_i's effect is above 0 overall, and that of ``|L_i|`` is not above 0 overall.

    **C2.** The excess of a set is the mean over its features of the correct share of the rows they are highly active
    in, over the base rate.

    - *Holds*: D's excess is above 0, and above that of the most frequent features; it is above the mean excess of the
      random sets, and larger than the 95th percentile over these; the effect of ``|L_i ∩ D|`` is above 0 overall, and
      at least 0.147; within class, D's excess and the effect of ``|L_i ∩ D|`` are above 0.
    - *Holds weakly*: D's excess is above 0; it is above the mean excess of the random sets, and larger than the 95th
      percentile over these.

    Otherwise a claim *does not hold here*. Without labels, or where no class has rows of both outcomes, nothing is
    shown within class, and a claim holds weakly at best. With an empty D, or one that is active in no row, C2 *cannot
    be tested*.
    """
    return _judge_first(table), _judge_second(table)


def _judge_first(table: ClaimTable) -> ClaimVerdict:
    z, size = (table.get(name, "cliffs_delta") for name in ("z", "n_active"))
    conditions = {
        "higher Z": z.low > 0,
        "no more highly active features than wrong rows": not size.low > 0,
        "fewer highly active features": size.high < 0,
        f"a Z whose effect reaches {NOTABLE}": z.value >= NOTABLE,
        "higher Z within class": table.get("z", "cliffs_delta", WITHIN).low > 0,
        "fewer highly active features within class": table.get("n_active", "cliffs_delta", WITHIN).high < 0,
    }
    return _verdict("C1", conditions)


def _judge_second(table: ClaimTable) -> ClaimVerdict:
    excess = table.get("purity_discriminative", "excess")
    if math.isnan(excess.value):
        return ClaimVerdict("C2", UNTESTED, {})
    against = {
        name: table.get(f"purity_discriminative - purity_{name}", "excess").low > 0 for name in ("random", "frequent")
    }
    rows = table.get("n_discriminative", "cliffs_delta")
    within = table.get("purity_discriminative", "excess", WITHIN), table.get("n_discriminative", "cliffs_delta", WITHIN)
    conditions = {
        "D above the base rate": excess.low > 0,
        "D above the random sets": against["random"] and excess.value > table.get("purity_random", "excess_p95").value,
        "D above the most frequent features": against["frequent"],
        "more of D in correct rows": rows.low > 0,
        f"more of D in correct rows by an effect that reaches {NOTABLE}": rows.value >= NOTABLE,
        "D above the accuracy of the rows' classes": within[0].low > 0,
        "more of D in correct rows within class": within[1].low > 0,
    }
    return _verdict("C2", conditions)


def _verdict(claim: str, conditions: dict[str, bool]) -> ClaimVerdict:
    """Return "holds" if all conditions are met, "holds weakly" if the decisive ones are."""
    met = list(conditions.values())
    verdict = HOLDS if all(met) else WEAKLY if all(met[:N_DECISIVE]) else FAILS
    return ClaimVerdict(claim, verdict, conditions)


def _sentences(table: ClaimTable) -> Iterator[str]:
    first, second = table.verdicts
    within = ""
    if table.n_classes is not None:
        within = f"; within class, {table.n_classes:,} of {table.n_all_classes:,} classes count, those with both"
    yield f"Highly active features of {table.n_correct:,} correct and {table.n_wrong:,} wrong rows{within}."
    yield (
        f"C1 ({CLAIMS['C1']}) {first.verdict}: the highest feature lies {_means(table, 'z')} standard deviations above "
        f"its row's mean, and {_means(table, 'n_active')} features are highly active{_unmet(first)}."
    )
    if second.verdict == UNTESTED:
        yield f"C2 ({CLAIMS['C2']}) {UNTESTED}: no feature of D is highly active in any of these rows."
    else:
        share = table.get("purity_discriminative", "purity").value
        yield (
            f"C2 ({CLAIMS['C2']}) {second.verdict}: of the rows in which a feature of D is highly active, {share:.1%} "
            f"are correct on average over features, {_points(table, 'purity_discriminative')} points against the base "
            f"rate, {_points(table, 'purity_discriminative - purity_random')} against {table.n_random} random sets of "
            f"equal size, {_points(table, 'purity_discriminative - purity_frequent')} against as many of the most "
            f"frequent features; {_means(table, 'n_discriminative')} features of D are highly active{_unmet(second)}."
        )
    rarer = min(table.n_correct, table.n_wrong)
    if rarer < FEW:
        outcome = "correct" if rarer == table.n_correct else "wrong"
        yield f"Only {rarer} rows are {outcome}, so the intervals are wide and themselves rough."
    if table.n_empty_correct + table.n_empty_wrong:
        yield (
            f"{table.n_empty_correct:,} correct and {table.n_empty_wrong:,} wrong rows have no highly active feature: "
            "shares and mean deviations leave them out."
        )
    if table.n_invalid:
        yield f"{table.n_invalid:,} rows that are not valid were left out."
    if table.signed:
        yield "Rows are signed: Z is that of the features as they are, and deviations, which are scaled, are left out."


def _means(table: ClaimTable, quantity: str) -> str:
    """Return the means among correct and wrong rows, and Cliff's delta overall and within class."""
    correct, wrong = (table.get(quantity, f"mean_{outcome}").value for outcome in ("correct", "wrong"))
    effect, within = (table.get(quantity, "cliffs_delta", scope) for scope in SCOPES)
    inside = "not tested within class" if math.isnan(within.value) else f"within class {_interval(within)}"
    return f"{correct:.3g} (correct) and {wrong:.3g} (wrong; Cliff's delta {_interval(effect)}; {inside})"


def _interval(measure: Measure, scale: float = 1.0, digits: int = 3) -> str:
    value, low, high = (f"{scale * x:+z.{digits}f}" for x in (measure.value, measure.low, measure.high))
    return f"{value}, 95 % interval {low} to {high}"


def _points(table: ClaimTable, quantity: str) -> str:
    return _interval(table.get(quantity, "excess"), 100, 1).replace(", ", " (", 1) + ")"


def _unmet(verdict: ClaimVerdict) -> str:
    """Name the conditions that stood in the way of a better verdict."""
    asked = list(verdict.conditions.items())[: N_DECISIVE if verdict.verdict == FAILS else None]
    unmet = [words for words, met in asked if not met]
    return f". Conditions not met: {'; '.join(unmet)}" if unmet else ""
