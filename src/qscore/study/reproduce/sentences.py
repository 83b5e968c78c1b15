"""The sentences of the results page, made from result files and verdicts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from qscore.evaluate.judgement import FAILS, HOLDS, UNTESTED, WEAKLY
from qscore.study.reproduce.beside import beside, unmoved
from qscore.study.reproduce.rules import because, dig
from qscore.study.reproduce.scales import CONTROLS
from qscore.study.reproduce.tables import NOTHING, interval, main_number, number
from qscore.study.reproduce.verdicts import CLAIMS, MISSING, Case, Claim, judge

__all__ = ["claim_lines", "repair_sentence", "settings_sentence", "terms_sentence"]

Found = Mapping[str, Any]
PAPERS_SETTING = (
    "In the paper: photographs, ResNet-50 on ImageNet-1K and ResNet-18 on ImageNet-100, trained for hundreds of "
    "epochs, and 50 epochs of fine-tuning."
)


def claim_lines(results: Sequence[Found]) -> Iterator[str]:
    """Yield a list in Markdown: each claim's verdict, counts and numbers, and below it what they are to be read beside.

    Parameters
    ----------
    results : sequence of mapping
        Of one scale, at least one.
    """
    for name, (verdict, found) in judge(results).items():
        claim = CLAIMS[name]
        if not found:
            yield f"- **{name}** ({claim.title}): {MISSING}."
            continue
        yield f"- **{name}** ({claim.title}): **{verdict}**. {_counted(found)}; {claim.number}: {_range(claim, found)}."
        yield from (f"  - {said}" for said in (*_unmet(found), *beside(name, verdict, found, results)))


def _counted(found: Sequence[Case]) -> str:
    rising = sum(case.undertrained for case in found)
    if len(found) == 1:
        return f"One case{_seeds(found)}{', undertrained' if rising else ''}"
    counts = {verdict: sum(case.verdict == verdict for case in found) for verdict in (HOLDS, WEAKLY, FAILS, UNTESTED)}
    words = ", ".join(f"{verdict} in {n}" for verdict, n in counts.items() if n)
    return f"{len(found)} cases{_seeds(found)}: {words}{f' ({rising} undertrained)' if rising else ''}"


def _seeds(found: Sequence[Case]) -> str:
    """Say how many fine-tunings a case is the mean of, which differs between stages."""
    numbers: dict[str, set[int]] = {}
    for case in found:
        if case.seeds:
            numbers.setdefault(case.stage, set()).add(case.seeds)
    said = [f"{' or '.join(map(str, sorted(of)))} {_plural(of)} each in {stage}" for stage, of in numbers.items()]
    return f" ({', '.join(said)})" if said else ""


def _plural(numbers: set[int]) -> str:
    return "seed" if numbers == {1} else "seeds"


def _range(claim: Claim, found: Sequence[Case]) -> str:
    """Return the lowest and the highest main number, each with its interval and encoder."""
    known = sorted((case for case in found if case.value is not None), key=lambda case: float(case.value or 0.0))
    if not known:
        return "not measured"
    said = [f"{main_number(claim, case).removesuffix(')')}; {case.encoder})" for case in (known[0], known[-1])]
    return said[0] if len(known) == 1 else f"from {said[0]} to {said[1]}"


def _unmet(found: Sequence[Case]) -> Iterator[str]:
    """Name the conditions that were not met, the most frequent first: the decisive ones, and those beyond."""
    for title, decisive in {"Decisive and not met": True, "Asked beyond and not met": False}.items():
        of = [condition for case in found for condition in case.conditions if condition.decisive == decisive]
        asked = Counter(condition.words for condition in of)
        unmet = Counter(condition.words for condition in of if not condition.met).most_common()
        unmeasured = {condition.words for condition in of if condition.met is None}
        said = [
            f"*{words}*{' (not measured)' if words in unmeasured else ''}"
            + (f" ({n} of {asked[words]})" if len(found) > 1 else "")
            for words, n in unmet
        ]
        if said:
            yield f"{title}: {'; '.join(said)}."


def settings_sentence(results: Sequence[Found]) -> str:
    """Say on what and for how long encoders were trained, and what the paper's setting is.

    Parameters
    ----------
    results : sequence of mapping
        Of one scale, at least one.
    """
    said = []
    for claims, stages in (("C1, C2, C5, C6", ("curve", "methods")), ("C7, C8", ("repair", "methods"))):
        of = _of(results, stages)
        if not of:
            continue
        images = _both(sorted({number(result["images"]["train"]["n"], ",") for result in of}))
        if stages[0] == "curve":
            epochs = _both(_settings(of, "curve_epochs", "methods_epochs"))
            recipes = _settings(of, "recipe", "methods_recipe")
            by = f" (recipes: {_both(recipes)})" if recipes else ""
            said.append(f"{claims}: {_backbones(of)} on {images} images for {epochs} epochs{by}")
        else:
            epochs = _both(_settings(of, "repair_epochs", "methods_tune_epochs"))
            optimizer = _both(_settings(of, "tune_optimizer"))
            said.append(f"{claims}: {_backbones(of)}, {epochs} epochs of fine-tuning by {optimizer} on {images} images")
    if shapes := _of(results, ("shapes",)):
        known = _settings(shapes, "shapes_epochs")
        trained = f" for {_both(known)} epochs" if known else ""
        said.append(f"C3, C4, C9, C10: {_backbones(shapes)} on drawn shapes{trained}")
    here = f"Here: {'; '.join(said)}. " if said else ""
    return here + PAPERS_SETTING


def _of(results: Sequence[Found], stages: Sequence[str]) -> list[Found]:
    """Return the results that cases come from."""
    return [result for result in results if result["stage"] in stages and result["method"] not in CONTROLS]


def _settings(results: Sequence[Found], *names: str) -> list[str]:
    """Return the distinct values of some settings."""
    values = [result["settings"].get(name) for result in results for name in names]
    return [str(value) for value in dict.fromkeys(values) if value is not None]


def _backbones(results: Sequence[Found]) -> str:
    return _both(f"`{name}`" for name in _settings(results, "backbone"))


def _both(values: Iterable[str]) -> str:
    *first, last = [*values] or [NOTHING]
    return f"{', '.join(first)} and {last}" if first else last


def repair_sentence(label: str, name: str, rate: Found) -> str:
    """Say what was fine-tuned at one learning rate, and how.

    Parameters
    ----------
    label, name : str
        Of the encoder, and of the rate.
    rate : mapping
        What was found at it.
    """
    whose = "paper's" if name == "paper" else name
    at = f"**{label}, the {whose} learning rate, {number(rate.get('learning_rate'), 'g')}**"
    if "refused" in rate:
        return f"{at}: {because(rate['refused'])}."
    return (
        f"{at}: {len(rate.get('seeds') or ())} seeds of {number(dig(rate, 'settings', 'epochs'), 'g')} epochs by "
        f"{dig(rate, 'settings', 'optimizer') or NOTHING}, {number(rate.get('n_discriminative'), 'g')} features in D "
        f"at epsilon {number(rate.get('epsilon'), 'g')}."
    )


def terms_sentence(rate: Found) -> str:
    """Say which of its two terms the regulariser is made of, and what D does for it; nothing without numbers."""
    ratios = dig(rate, "arms", "qscore", "gradient_ratios") or {}
    first, second = (dig(ratios, f"gradient_ratio_{k}", "mean") for k in (1, 2))
    random = dig(rate, "differences", "qscore", "random-d", "accuracy")
    said = []
    if first is not None and second is not None:
        said.append(
            f"The regulariser's Q term pulls with {first:.3f} of the self-supervised loss's gradient, its norm term "
            f"with {second:.3f}."
        )
    if unmoved(rate):
        said.append(
            "The accuracy of neither plain nor Q-Score fine-tuning can be told from that at learning rate 0 here, so a "
            "lift could hardly show."
        )
    if dig(random, "value") is not None:
        said.append(f"Against a random D, accuracy differs by {interval(random, '+z.2f', 100)} points.")
    return " ".join(said)
