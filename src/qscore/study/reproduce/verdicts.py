"""The ten claims, judged by rules that were fixed before anything was run.

Each claim is judged on every encoder that a finished training ended in, the controls left out (a *case*), and then as a
whole: of the cases that can be tested, it *holds* if it holds in three quarters, *holds weakly* if it holds at least
weakly in half, and otherwise *does not hold here*. "Above" and "below" mean that the whole 95 % interval lies there.

- **C1, C2**: :func:`qscore.evaluate.judgement.judge`, on test rows.
- **C3, C4, C9, C10**: :func:`qscore.explain.judgement.judge`, on drawn shapes; C3 where backgrounds are drawn evenly,
  for of two attributes that go together nothing could tell. C10 is asked twice, of the start and of plain fine-tuning
  against fine-tuning with the regulariser, and the worse answer counts: fine-tuning alone might do as much.
- **C5**: decisive, AUROC of Q above 0.5. Beyond: it reaches 0.5735 (a Cliff's delta of 0.147, the least that is not
  called negligible), is above those of Q without D, of Q with random D and of the feature norm, and Q adds to the norm.
  *Cannot be tested* where the probe is at chance.
- **C6**: at keep = 0.6. Decisive: the change in accuracy above -1 point. Beyond: accuracy above the 95th percentile of
  random subsets.
- **C7**: decisive, accuracy above that of plain fine-tuning. Beyond: above learning rate 0 and, where it was run, above
  a random D, and higher than plain with every seed.
- **C8**: decisive, Hoyer sparsity above that of plain fine-tuning, by 0.001 at least: paired differences of rows are so
  even that any number of zeros behind the point would do. Beyond: by 0.01, and the share of exact zeros is above too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qscore.evaluate.judgement import FAILS, HOLDS, NOTABLE, UNTESTED, WEAKLY
from qscore.study.reproduce.scales import CONTROLS

__all__ = ["CLAIMS", "MISSING", "Case", "Claim", "cases", "judge", "overall"]

MISSING = "not yet run"
HOLDS_SHARE, WEAKLY_SHARE = 3 / 4, 1 / 2
LEAST_AUROC = 0.5 + NOTABLE / 2
LEAST_HOYER, NOTABLE_HOYER = 0.001, 0.01  # of a range of 1
RANK = {FAILS: 0, WEAKLY: 1, HOLDS: 2}
Found = Mapping[str, Any]


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


@dataclass(frozen=True)
class Claim:
    """What the paper claims, and what is counted here."""

    title: str
    number: str
    """What the main number is."""
    paper: str
    """The number in the paper, or nothing."""
    unit: str
    """``""``, or ``" points"`` of a number that is shown times 100."""
    sign: str = "+"


CLAIMS = {
    "C1": Claim(
        "correct samples have few, highly deviated features", "Cliff's delta of Z, correct against wrong", "", ""
    ),
    "C2": Claim(
        "discriminative features sit mostly in correct samples",
        "correct share of the rows with features of D, over the base rate",
        "",
        " points",
    ),
    "C3": Claim(
        "discriminative features correspond to unique physical attributes",
        "mutual-information gap of D over that of random features",
        "",
        "",
    ),
    "C4": Claim(
        "noisy features correspond to spurious attributes", "spurious IoU of D minus that of other features", "", ""
    ),
    "C5": Claim(
        "Q predicts misclassification",
        "AUROC of Q",
        "AUPRC 91.45 (ImageNet-100), 78.78 (ImageNet-1K); version 1: up to 0.90",
        "",
        "",
    ),
    "C6": Claim("40 % of the features can go", "change in accuracy with 60 % of the features", "up to 40 %", " points"),
    "C7": Claim(
        "regularisation lifts the linear probe",
        "change in accuracy against plain fine-tuning",
        "up to +5.8 % (ImageNet-100), +3.7 % (ImageNet-1K); version 1: 3.26 % relative",
        " points",
    ),
    "C8": Claim("regularisation raises sparsity", "change in Hoyer sparsity against plain fine-tuning", "", ""),
    "C9": Claim(
        "discriminative features correlate with core attributes", "Spearman's correlation of Q and core IoU", "", ""
    ),
    "C10": Claim(
        "regularisation makes representations more interpretable",
        "change in core IoU of D against plain fine-tuning",
        "",
        "",
    ),
}


def judge(results: Sequence[Found]) -> dict[str, tuple[str, list[Case]]]:
    """Return each claim's verdict, and the cases behind it.

    Parameters
    ----------
    results : sequence of mapping
        Of one scale, as `read_results` returns them.
    """
    return {name: (overall(found), found) for name in CLAIMS for found in [cases(name, results)]}


def overall(found: Sequence[Case]) -> str:
    """Return the verdict of a claim from those of its cases.

    Examples
    --------
    >>> overall([Case("a", "holds"), Case("b", "holds weakly"), Case("c", "does not hold here")])
    'holds weakly'
    """
    if not found:
        return MISSING
    tested = [case.verdict for case in found if case.verdict != UNTESTED]
    if not tested:
        return UNTESTED
    if sum(verdict == HOLDS for verdict in tested) >= HOLDS_SHARE * len(tested):
        return HOLDS
    return WEAKLY if sum(verdict != FAILS for verdict in tested) >= WEAKLY_SHARE * len(tested) else FAILS


def cases(claim: str, results: Sequence[Found]) -> list[Case]:
    """Return a claim's cases: of encoders (C1, C2, C5, C6), of fine-tunings (C7, C8), or of shapes (all others)."""
    if claim in ("C7", "C8"):
        return [RULES[claim](*fine_tuning) for fine_tuning in _fine_tunings(results)]
    if claim in ("C1", "C2", "C5", "C6"):
        return [RULES[claim](*encoder) for encoder in _encoders(results)]
    methods = [result for result in results if result["stage"] == "shapes" and result["method"] not in CONTROLS]
    explained = [result for result in methods if "explained" in result["found"]]
    found = [_shapes(claim, result) for result in explained]
    return [case for case in found if case is not None]


def _encoders(results: Sequence[Found]) -> Iterator[tuple[str, Found, bool]]:
    """Yield name, numbers, and whether it is undertrained, of each encoder that a training ended in."""
    for result in results:
        found, name = result["found"], _name(result)
        if result["stage"] == "curve" and result["complete"] and result["method"] not in CONTROLS:
            last = found["checkpoints"][-1]
            yield name, last, bool((last["rise"] or {}).get("rising"))
        elif result["stage"] == "methods" and "scores" in found:
            yield name, found, bool((found["rise"] or {}).get("rising"))


def _fine_tunings(results: Sequence[Found]) -> Iterator[tuple[str, Found, bool]]:
    for result in results:
        found, name = result["found"], _name(result)
        if result["stage"] == "repair":
            for rate in found["rates"].values():
                yield f"{name} at {rate['learning_rate']:g}", rate, False
        elif result["stage"] == "methods" and "differences" in found.get("tuned", {}):
            rising = bool((found["rise"] or {}).get("rising"))
            yield f"{name} at {found['tuned']['learning_rate']:g}", found["tuned"], rising


def _name(result: Found) -> str:
    seed = f", seed {result['seed']}" if result["seed"] else ""
    return f"{result['name']} ({result['stage']}{seed})"


def _graded(decisive: bool, beyond: bool) -> str:
    return (HOLDS if beyond else WEAKLY) if decisive else FAILS


def _record(records: Sequence[Found], **wanted: str) -> Found | None:
    return next((row for row in records if all(row[name] == value for name, value in wanted.items())), None)


def _numbers(row: Found | None) -> tuple[float | None, float | None, float | None]:
    return (None, None, None) if row is None else (row["value"], row["low"], row["high"])


def _above(row: Found | None, bound: float = 0.0) -> bool:
    return row is not None and row["low"] is not None and row["low"] > bound


def _first_two(claim: str, quantity: str, statistic: str) -> Callable[[str, Found, bool], Case]:
    def rule(name: str, found: Found, rising: bool) -> Case:
        claims = found["claims"]
        if found["undefined"] or claims is None:
            return Case(name, UNTESTED, undertrained=rising)
        row = _record(claims["records"], quantity=quantity, statistic=statistic, scope="overall")
        return Case(name, claims["verdicts"][claim], *_numbers(row), rising)

    return rule


def _predicts(name: str, found: Found, rising: bool) -> Case:
    if found["undefined"] or "q_score" not in found["scores"]:
        return Case(name, UNTESTED, undertrained=rising)
    auroc = found["scores"]["q_score"]["auroc"]
    rivals = [found["q_minus"].get(rival, {}).get("auroc") for rival in ("q_without_d", "q_random_d", "l2_norm")]
    beyond = auroc["value"] >= LEAST_AUROC and all(_above(rival) for rival in rivals)
    verdict = _graded(_above(auroc, 0.5), beyond and _above(found["gain_on_norm"]))
    return Case(name, verdict, *_numbers(auroc), rising)


def _compresses(name: str, found: Found, rising: bool) -> Case:
    point = next((point for point in found["compression"] or () if point["keep"] == 0.6), None)
    if point is None or found["undefined"]:
        return Case(name, UNTESTED, undertrained=rising)
    numbers = (point["change"], point["change_low"], point["change_high"])
    return Case(name, _graded(point["retained"], point["holds"]), *numbers, rising)


def _lifts(name: str, found: Found, rising: bool) -> Case:
    of = found["differences"].get("qscore", {})
    plain = of.get("plain", {}).get("accuracy")
    if plain is None:
        return Case(name, UNTESTED, undertrained=rising)
    others = [of[arm].get("accuracy") for arm in ("lr0", "random-d") if arm in of]
    agree = all(value is not None and value > 0 for value in plain["seeds"].values())
    return Case(name, _graded(_above(plain), agree and all(map(_above, others))), *_numbers(plain), rising)


def _sparser(name: str, found: Found, rising: bool) -> Case:
    of = found["differences"].get("qscore", {}).get("plain", {})
    if "hoyer" not in of or "zeros" not in of:
        return Case(name, UNTESTED, undertrained=rising)
    change = of["hoyer"]["value"]
    decisive = _above(of["hoyer"]) and change >= LEAST_HOYER
    return Case(
        name, _graded(decisive, change >= NOTABLE_HOYER and _above(of["zeros"])), *_numbers(of["hoyer"]), rising
    )


SHAPES = {  # claim -> the explanation it is read from, and its main number
    "C3": ("free", "gap_discriminative - gap_random", "mean"),
    "C4": ("start", "spurious_discriminative - spurious_outside", "mean"),
    "C9": ("start", "q_score ~ core_discriminative", "spearman"),
    "C10": ("from-plain", "core_discriminative", "change"),
}


def _shapes(claim: str, result: Found) -> Case | None:
    explained, rising = result["found"]["explained"], bool((result["found"]["rise"] or {}).get("rising"))
    where, quantity, statistic = SHAPES[claim]
    if where not in explained:
        return None
    verdicts = [explained[where]["verdicts"].get(claim, UNTESTED)]
    if claim == "C10":
        verdicts.append(explained["from-start"]["verdicts"].get(claim, UNTESTED))
    worst = UNTESTED if UNTESTED in verdicts else min(verdicts, key=RANK.__getitem__)
    row = _record(explained[where]["records"], quantity=quantity, statistic=statistic)
    return Case(_name(result), worst, *_numbers(row), rising)


RULES: dict[str, Callable[[str, Found, bool], Case]] = {
    "C1": _first_two("C1", "z", "cliffs_delta"),
    "C2": _first_two("C2", "purity_discriminative", "excess"),
    "C5": _predicts,
    "C6": _compresses,
    "C7": _lifts,
    "C8": _sparser,
}
