"""`rank`: which of several checkpoints to take, by criteria that need no labels; with labels, how well each chooses."""

import glob
import logging
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from qscore._files import atomic_path, to_json
from qscore._validate import Epsilon, QScoreError, check_epsilon, nearest, one_line, settle_epsilon
from qscore.core import apply_scaling, discriminative_features, robust_scaling
from qscore.embedding import embed, views_path
from qscore.encoders import load_encoder
from qscore.evaluate.probes import fit_probe
from qscore.images import ImageSource, subset
from qscore.kernels import Scan, automatic_epsilon, scan
from qscore.metrics import representation_metrics
from qscore.study.criteria import CRITERIA, LEAST_FOR_INTERVAL, correlations, goodness, regret
from qscore.study.splits import has_labels, train_and_test
from qscore.tables import open_embeddings

__all__ = ["rank_checkpoints"]

log = logging.getLogger(__name__)

DEFAULT = "rankme"
MOST_ROWS = 10_000
FLOOR = 1.5  # the smallest epsilon that "auto" may take: what is kept above it serves all others
LEAST = 2  # checkpoints that there is an order of


def rank_checkpoints(
    checkpoints: Sequence[str | Path] | str | Path,
    images: str | Path | ImageSource,
    *,
    test_images: str | Path | ImageSource | None = None,
    out: str | Path | None = None,
    by: str = DEFAULT,
    rows: int = MOST_ROWS,
    views: int = 0,
    epsilon: Epsilon = "auto",
    batch_size: int = 256,
    device: str = "auto",
    workers: int | None = None,
    precision: str = "32-true",
    resamples: int = 2000,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Order checkpoints by a criterion that needs no labels; where there are labels, say how well each one chooses.

    D and the probe come from one part of the images, everything else from another. A checkpoint that cannot be read or
    used is named with the reason, and the others go on.

    Parameters
    ----------
    checkpoints : sequence of str or Path
        What `load_encoder` takes, patterns such as ``"run/checkpoints/epoch-*"``, or a folder of such checkpoints.
    images : str, Path or ImageSource
        What `open_images` understands.
    test_images : str, Path or ImageSource, optional
        Images to measure on; by default a fifth of ``images`` is held out, by label if there are any.
    out : str or Path, optional
        Folder for ``rank.json`` and the embeddings, from which the same call goes on. By default nothing is kept.
    by : str, default="rankme"
        The criterion that orders; RankMe was made for this choice.
    rows : int, default=10,000
        Images taken of each part at most, at random, at least 10.
    views : int, default=0
        Augmented views of each image, for alignment: 0, or 2 to 127.
    epsilon : float, "auto" or "paper" (4.0)
        Of Q and coverage, the same for all checkpoints. ``"auto"`` takes the largest of their automatic ones: the
        checkpoint that it suits has a feature of D in 95 % of its training rows, and others fall behind.
    batch_size, device, workers, precision
        As `embed` takes them.
    resamples : int, default=2000
        Bootstrap resamples of the checkpoints.
    seed : int, default=0
        Of split, subset, views, probe and resamples.
    overwrite : bool
        Whether embeddings of other checkpoints found in ``out`` are replaced.

    Returns
    -------
    dict
        ``by``, ``chosen`` (None where the criterion is undefined for all), ``tied`` (how many share the best value:
        ``chosen`` is the first of them), ``checkpoints`` (best first: ``checkpoint``, ``place``, ``criteria``,
        ``accuracy``),
        ``criteria`` (name -> ``title``, ``better``, ``why``, ``chosen``, and with labels ``spearman``, ``kendall``,
        ``regret``), ``refused``, ``epsilon``, ``sentences``.

    Raises
    ------
    QScoreError
        If an argument is out of range, or no checkpoint can be used.
    """
    _check(by, rows, views, resamples, seed, epsilon)
    names = _expand([checkpoints] if isinstance(checkpoints, str | Path) else checkpoints)
    train, test = (_some(part, rows, seed) for part in train_and_test(images, test_images, seed))
    labelled = has_labels(train) and has_labels(test)
    settings = {"batch_size": batch_size, "device": device, "workers": workers, "precision": precision}
    epsilon = settle_epsilon(epsilon)
    fixed = None if epsilon == "auto" else epsilon
    measured: dict[str, dict[str, Any]] = {}
    scans: dict[str, tuple[Scan, Scan]] = {}
    refused: list[dict[str, str]] = []
    with _place(out) as folder:
        for number, name in enumerate(names):
            log.info("checkpoint %d of %d: %s", number + 1, len(names), name)
            parts = folder / "embeddings" / _folder_name(name, number)
            try:
                measured[name], scans[name] = _measure(
                    name, parts, train, test, views, labelled, seed, fixed, settings, overwrite=overwrite
                )
            except QScoreError as error:
                log.warning("%s is left out: %s", name, one_line(error))
                refused.append({"checkpoint": name, "reason": one_line(error)})
        if not measured:
            raise QScoreError(f"none of {len(names)} checkpoints can be used; the first: {refused[0]['reason']}")
        chosen_epsilon = _add_quality(measured, scans, epsilon)
        found = _order(measured, by, resamples=resamples, seed=seed)
        found |= {"refused": refused, "epsilon": chosen_epsilon, "n_train": len(train), "n_test": len(test)}
        found["sentences"] = _sentences(found)
        if out is not None:
            with atomic_path(folder / "rank.json") as file:
                file.write_text(to_json(found, indent=2) + "\n")
    return found


def _check(by: str, rows: int, views: int, resamples: int, seed: int, epsilon: float | str) -> None:
    if by not in CRITERIA:
        raise QScoreError(f"by {by!r}: expected one of {', '.join(CRITERIA)}{nearest(by, CRITERIA)}")
    if rows < 10 or resamples < 1 or seed < 0:
        raise QScoreError(f"expected rows >= 10, resamples >= 1, seed >= 0; got {rows}, {resamples}, {seed}")
    if not (views == 0 or 2 <= views <= 127):
        raise QScoreError(f"views: expected 0, or 2 to 127, got {views}")
    if by == "alignment" and not views:
        raise QScoreError("by 'alignment': it needs views of each image; give --views 2")
    settle_epsilon(epsilon)


def _expand(patterns: Sequence[str | Path]) -> list[str]:
    """Return names one by one: patterns matched, folders of checkpoints opened, each once, numbers in their order."""
    names: list[str] = []
    for pattern in map(str, patterns):
        here = [pattern]
        if any(sign in pattern for sign in "*?[") and not Path(pattern).exists():
            here = sorted(glob.glob(pattern), key=_natural)  # noqa: PTH207 (patterns may be absolute)
            if not here:
                raise QScoreError(f"{pattern}: no checkpoint matches this pattern")
        for name in here:
            inside = sorted(map(str, Path(name).glob("*/encoder.safetensors")), key=_natural)
            whole = not Path(name).is_dir() or any(file.is_file() for file in Path(name).iterdir())
            names += [name] if whole or not inside else [str(Path(file).parent) for file in inside]
    if not names:
        raise QScoreError("checkpoints: expected at least one, got none")
    return list(dict.fromkeys(names))


def _natural(name: str) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _folder_name(name: str, number: int) -> str:
    return f"{number:03d}-" + re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-60:]


def _some(source: ImageSource, rows: int, seed: int) -> ImageSource:
    if len(source) <= rows:
        return source
    chosen = np.random.default_rng(seed).choice(len(source), size=rows, replace=False)
    return subset(source, np.sort(chosen))


@contextmanager
def _place(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="qscore-rank-") as folder:
        yield Path(folder)


def _measure(
    name: str,
    folder: Path,
    train: ImageSource,
    test: ImageSource,
    views: int,
    labelled: bool,
    seed: int,
    fixed: float | None,
    settings: Mapping[str, Any],
    *,
    overwrite: bool,
) -> tuple[dict[str, Any], tuple[Scan, Scan]]:
    """Return a checkpoint's criteria, but for those that need a common epsilon, and scans of both parts."""
    encoder = load_encoder(name)
    common = {"on_error": "raise", "overwrite": overwrite, **settings}
    embed(train, encoder, folder / "train", **common)
    embed(test, encoder, folder / "test", views=views, seed=seed, **common)
    learned, seen = (open_embeddings(folder / part).read() for part in ("train", "test"))
    for table in (learned, seen):
        if not np.isfinite(table.embedding).all():
            raise QScoreError("its representations hold NaN or infinity")
    apart = None
    if views:
        batch = open_embeddings(views_path(folder / "test")).read()
        image = pc.index_in(batch.columns["id"], value_set=seen.columns["id"]).to_numpy()
        apart = [(batch.embedding, image)]
    found = representation_metrics(seen.embedding, apart, resamples=2, seed=seed)
    criteria = {name: getattr(found, name) for name in ("rankme", "alpha_req", "nesum", "stable_rank", "uniformity")}
    criteria |= {"normalized_std": found.normalized_std, "hoyer": found.hoyer.value, "dead": float(found.n_dead)}
    if found.alignment is not None:
        criteria["alignment"] = found.alignment.value
    accuracy = None
    if labelled:
        known = [table.columns["label"].to_numpy(zero_copy_only=False) for table in (learned, seen)]
        probe = fit_probe("logistic", learned.embedding, known[0], seed=seed, test_labels=known[1])
        accuracy = float((probe.predict(seen.embedding)[0] == known[1]).mean())
    if fixed is not None:
        check_epsilon(fixed, n_features=found.n_features)
    signed = bool(learned.embedding.min() < 0)
    H = [learned.embedding, seen.embedding]
    if signed:
        center, scale = robust_scaling(H[0])
        H = [apply_scaling(part, center, scale) for part in H]
    floor = FLOOR if fixed is None else fixed
    scanned = (scan(H[0], floor, two_sided=signed), scan(H[1], floor, two_sided=signed))
    return {"criteria": criteria, "accuracy": accuracy, "n_features": found.n_features}, scanned


def _add_quality(
    measured: dict[str, dict[str, Any]], scans: Mapping[str, tuple[Scan, Scan]], epsilon: float | str
) -> float:
    """Add mean Q / sigma and coverage at one epsilon for all, D found by each on its own training rows; return it."""
    if isinstance(epsilon, str):
        epsilon = max(automatic_epsilon(partial(list, [train]), len(train.counts))[0] for train, _ in scans.values())
    for name, (train, test) in scans.items():
        D = discriminative_features(train.at(epsilon).counts)
        size, q = test.at(epsilon).select(D)
        varies = test.varies
        sigma = np.where(test.std > 0, test.std, 1.0)
        measured[name]["criteria"] |= {
            "q_over_sigma": float((q / sigma).mean()),
            "coverage": float((size[varies] > 0).mean()) if varies.any() else math.nan,
        }
    return float(epsilon)


def _order(measured: Mapping[str, dict[str, Any]], by: str, *, resamples: int, seed: int) -> dict[str, Any]:
    names = list(measured)
    good = {
        criterion: goodness(criterion, np.array([measured[name]["criteria"][criterion] for name in names]))
        for criterion in CRITERIA
        if all(criterion in measured[name]["criteria"] for name in names)
    }
    order = sorted(range(len(names)), key=lambda k: -math.inf if math.isnan(good[by][k]) else good[by][k], reverse=True)
    accuracy = np.array([measured[name]["accuracy"] for name in names], dtype=float)
    labelled = not np.isnan(accuracy).any()
    criteria: dict[str, Any] = {}
    for criterion, values in good.items():
        known = CRITERIA[criterion]
        best = None if np.isnan(values).all() else names[int(np.nanargmax(values))]
        criteria[criterion] = {"title": known.title, "better": known.better, "why": known.why, "chosen": best}
        if labelled:
            found = correlations(values, accuracy, resamples=resamples, seed=seed)
            criteria[criterion] |= {name: None if one is None else asdict(one) for name, one in found.items()}
            criteria[criterion]["regret"] = regret(values, accuracy)
    return {
        "by": by,
        "chosen": None if math.isnan(good[by][order[0]]) else names[order[0]],
        "tied": int((good[by] == good[by][order[0]]).sum()),
        "checkpoints": [
            {"checkpoint": names[k], "place": place} | measured[names[k]] for place, k in enumerate(order, 1)
        ],
        "criteria": criteria,
        "labelled": labelled,
    }


def _sentences(found: Mapping[str, Any]) -> list[str]:
    rows, by = found["checkpoints"], found["criteria"][found["by"]]
    said = []
    if len(rows) < LEAST:
        said.append("A single checkpoint has no rank; give several.")
    elif found["chosen"] is None:
        said.append(f"{by['title']} is undefined for all checkpoints, so none is chosen and their order means nothing.")
    elif found["tied"] > 1:
        said.append(
            f"By {by['title']} ({by['better']} is better: {by['why']}) {found['tied']} checkpoints are equally good; "
            f"{found['chosen']} is only the first of them."
        )
    else:
        said.append(f"By {by['title']} ({by['better']} is better: {by['why']}) the choice is {found['chosen']}.")
    if len({row["n_features"] for row in rows}) > 1:
        said.append("The checkpoints differ in width, on which most of these numbers depend: compare them with care.")
    if not found["labelled"]:
        said.append("Without labels on all images nothing tells whether that is the best choice.")
    else:
        best = max(rows, key=lambda row: float(row["accuracy"]))
        share = f"{best['accuracy']:.2%} of {found['n_test']:,} test rows"
        probed = f"The linear probe does best on {best['checkpoint']} ({share})"
        choice = "one of those taken blindly" if found["tied"] > 1 else "the choice"
        if found["chosen"] is None:
            said.append(f"{probed}.")
        else:
            mean = " on average" if found["tied"] > 1 else ""
            said.append(f"{probed}; {choice} falls {100 * by['regret']:.2f} points short of that{mean}.")
        if len(rows) >= LEAST:
            said += _judge(found)
    said += [f"Left out: {row['checkpoint']}: {row['reason'].rstrip('.')}." for row in found["refused"]]
    return said


def _judge(found: Mapping[str, Any]) -> Iterator[str]:
    by = found["criteria"][found["by"]]
    rho = by["spearman"]
    if rho is None:
        yield "There are too few checkpoints, or no differences, to speak of a rank correlation."
        return
    said = f"{by['title']} and the probe order the checkpoints with a Spearman correlation of {rho['value']:+.2f}"
    if math.isnan(rho["low"]):
        few = len(found["checkpoints"]) < LEAST_FOR_INTERVAL
        why = "five checkpoints and more would give an interval" if few else "resamples that all agree give no interval"
        yield f"{said}; {why}."
        return
    shown = "whether they agree is not shown"
    if not rho["low"] <= 0 <= rho["high"]:
        shown = "they agree" if rho["low"] > 0 else "they disagree"
    yield f"{said} (95 % interval {rho['low']:+.2f} to {rho['high']:+.2f}): {shown}."
    yield "Checkpoints of one training are no independent sample: another training may order them otherwise."
