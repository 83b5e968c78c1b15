"""`reproduce`: the paper's ten claims, stage by stage, each method a unit that is skipped where it is finished."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qscore._validate import QScoreError, nearest, one_line
from qscore.embedding import launched
from qscore.images import ImageSource, open_images
from qscore.ssl import METHODS
from qscore.ssl.hardware import check_hardware
from qscore.ssl.overrides import replace_fields
from qscore.study.reproduce import curve, repair, sensitivity, shapes
from qscore.study.reproduce import methods as eight
from qscore.study.reproduce.budget import OutOfTime, time_budget
from qscore.study.reproduce.context import Context, choose_classes, some_images
from qscore.study.reproduce.page import write_page
from qscore.study.reproduce.processes import run_processes
from qscore.study.reproduce.results import (
    STAGES,
    Unit,
    compact,
    elapsed,
    hardware,
    short_name,
    software,
    timed,
    write_result,
)
from qscore.study.reproduce.scales import CONTROLS, choose_scale, named_methods
from qscore.study.reproduce.training import Trained
from qscore.study.splits import train_and_test

__all__ = ["NAMES", "reproduce"]

log = logging.getLogger(__name__)

NAMES = (*METHODS, *CONTROLS)  # what `methods` may name


class Stage(NamedTuple):
    """What a stage offers."""

    units: Callable[[Context], Iterator[Unit]]
    settings: Callable[[Context, Unit], dict[str, Any]]
    run: Callable[[Context, Unit, curve.Save], None]
    derived: bool = False
    """Whether a result of other settings is made anew instead of refused: it costs little."""


TABLE = {
    "curve": Stage(curve.units, curve.settings, curve.run),
    "repair": Stage(repair.units, repair.settings, repair.run),
    "methods": Stage(eight.units, eight.settings, eight.run),
    "shapes": Stage(shapes.units, shapes.settings, shapes.run),
    "sensitivity": Stage(sensitivity.units, sensitivity.settings, sensitivity.run, derived=True),
}


def reproduce(
    images: str | Path | ImageSource,
    out: str | Path,
    *,
    test_images: str | Path | ImageSource | None = None,
    methods: str = "all",
    scale: str = "small",
    stage: str = "all",
    overrides: Mapping[str, Any] | None = None,
    classes: str | None = None,
    checkpoints: Mapping[str, str] | None = None,
    minutes: float | None = None,
    processes: int = 1,
    seed: int = 0,
    device: str = "auto",
    devices: int = 1,
    workers: int | None = None,
    train_only: str | None = None,
) -> dict[str, Any]:
    """Put the paper's ten claims to the test on any images, at the scale that can be had.

    Five stages, in order: ``curve`` trains two methods as far as the scale says, and measures Q and its rivals along
    the way; ``repair`` branches a checkpoint into Q-Score regularisation and its controls; ``methods`` measures and
    fine-tunes all eight; ``shapes`` explains features where attributes and masks are known; ``sensitivity`` varies the
    settings of Q on the embeddings that the others left. Each stage of a method is a unit: its result is a file in
    ``OUT/results``, and is skipped once it is there. Encoders lie in ``OUT/encoders/SCALE/STAGE/METHOD``, as `pretrain`
    writes them; one that was trained elsewhere by the same call may be put there. The same call again goes on.

    Parameters
    ----------
    images : str, Path or ImageSource
        To learn from, each with a label.
    out : str or Path
        The folder of encoders, tables, results, and the page ``results.md``.
    test_images : str, Path or ImageSource, optional
        To test on; by default a fifth of ``images`` is held out, by label.
    methods : str, default="all"
        Names with commas between: of the eight, and ``supervised`` and ``random``, the controls of the curve.
    scale : {"small", "medium", "paper"}
        See :class:`~qscore.study.reproduce.scales.Scale`.
    stage : str, default="all"
        One stage, or several with commas between.
    overrides : mapping, optional
        Values for fields of the scale.
    classes : str, optional
        ``"imagenet100"``, or a file of labels: only images of these classes are taken.
    checkpoints : mapping, optional
        Method -> what `load_encoder` takes: a released encoder, in stage ``methods`` instead of pre-training.
    minutes : float, optional
        Stop after so much time, with everything saved.
    processes : int, default=1
        Methods at a time, each in a process of its own: one GPU serves several small networks. Images must then be
        named by strings.
    seed : int, default=0
        Of everything random.
    device, workers
        As `pretrain` takes them.
    devices : int, default=1
        Processes of pre-training, each on a GPU of its own. Images must then be named by strings.
    train_only : str, optional
        ``STAGE/LABEL`` of the one pre-training to do, and nothing else: what such processes are started with.

    Returns
    -------
    dict
        ``done`` (keys of the units finished, now or before), ``left``, ``refused`` (key -> reason), ``out_of_time``,
        and ``page``, the results page; None where a file among the results cannot be read.

    Raises
    ------
    QScoreError
        If an argument is out of range, or images lack labels; or if the only unit asked for cannot be made, be it that
        a result of other settings is there.
    KeyboardInterrupt
        After Ctrl-C, with what was done saved.
    """
    chosen = replace_fields(choose_scale(scale), dict(overrides or {}))
    chosen.check()
    stages = _stages(stage)
    names = named_methods(methods, NAMES)
    if minutes is not None and not minutes > 0:
        raise QScoreError(f"minutes: expected a number above 0, got {minutes}")
    if seed < 0:
        raise QScoreError(f"seed: expected an integer of at least 0, got {seed}")
    if processes < 1:
        raise QScoreError(f"processes: expected at least 1, got {processes}")
    check_hardware(device, devices, chosen.precision, chosen.accumulate)
    if launched().count > 1 and train_only is None:
        raise QScoreError("reproduce starts its own processes: run it without a launcher, with devices (--devices N)")
    for name in checkpoints or {}:
        named_methods(name, tuple(METHODS), "checkpoints")
    train, test = _images(images, test_images, classes, seed)
    context = Context(
        chosen,
        some_images(train, chosen.n_train, "training"),
        some_images(test, chosen.n_test, "test"),
        Path(out),
        seed,
        device,
        devices,
        workers,
        dict(checkpoints or {}),
        classes,
        _typed(images, test_images, overrides, classes, checkpoints),
        train_only=train_only,
    )
    context = replace(context, options=_options(context, images, test_images))
    asked = [unit for name in stages for unit in TABLE[name].units(context) if unit.method in names]
    if not asked:
        raise QScoreError(f"methods {methods!r}: none of them has a part in stage {stage} at scale {scale}")
    if train_only is not None:
        return _train_only(context, asked)
    found = _run_apart(context, asked, minutes, processes) if processes > 1 else _run(context, asked, minutes)
    return found | {"page": _page(context)}


def _train_only(context: Context, asked: Sequence[Unit]) -> dict[str, Any]:
    """Do one pre-training, in every process that takes part in it."""
    for unit in asked:
        if f"{unit.stage}/{unit.label}" == context.train_only:
            with suppress(Trained):
                TABLE[unit.stage].run(context, unit, lambda _found, _complete: None)
    return {"done": [], "left": [], "refused": {}, "out_of_time": False, "page": None}


def _page(context: Context) -> str | None:
    try:
        return str(write_page(context.folder))
    except QScoreError as error:  # of a result that was there before; what was done now is saved
        log.warning("the page is not written: %s", one_line(error))
        return None


@dataclass
class Progress:
    """What became of the units."""

    done: list[str]
    refused: dict[str, str]


def _run(context: Context, asked: Sequence[Unit], minutes: float | None) -> dict[str, Any]:
    """Work through the units; of several, one that cannot be made is named, and the others go on."""
    so_far = Progress([], {})
    out_of_time = False
    _look_around(context, asked, so_far)
    try:
        with time_budget(minutes):
            for number, unit in enumerate(asked, 1):
                if unit.key not in so_far.refused:
                    _run_unit(context, unit, f"{number} of {len(asked)}", so_far, alone=len(asked) == 1)
    except OutOfTime:
        out_of_time = True
        log.info("the time is up; the same command goes on")
    left = [unit.key for unit in asked if unit.key not in so_far.done]
    return {"done": so_far.done, "left": left, "refused": so_far.refused, "out_of_time": out_of_time}


def _look_around(context: Context, asked: Sequence[Unit], so_far: Progress) -> None:
    """Refuse, before anything begins, the units whose results are there and are others.

    Raises
    ------
    QScoreError
        If there is one unit alone.
    """
    for unit in asked:
        try:
            _finished(context, unit, _expected(context, unit))
        except QScoreError as error:
            if len(asked) == 1:
                raise
            log.warning("%s", one_line(error))
            so_far.refused[unit.key] = one_line(error)


def _run_apart(context: Context, asked: Sequence[Unit], minutes: float | None, processes: int) -> dict[str, Any]:
    """Work through the units in processes of their own; what came of it stands in their result files."""
    if not context.options:
        raise QScoreError("processes: images must be named by strings, for other processes to open them")
    so_far = Progress([], {})
    _look_around(context, asked, so_far)
    asked = [unit for unit in asked if unit.key not in so_far.refused]
    failed = run_processes(asked, context.options, processes, minutes)
    done = [unit.key for unit in asked if _finished(context, unit, _expected(context, unit))]
    refused = so_far.refused | {
        unit.key: failed[name]
        for unit in asked
        if (name := f"{unit.stage} {unit.method}") in failed and unit.key not in done
    }
    left = [unit.key for unit in asked if unit.key not in done] + list(so_far.refused)
    over = minutes is not None and bool(set(left) - set(refused))
    return {"done": done, "left": left, "refused": refused, "out_of_time": over}


def _expected(context: Context, unit: Unit) -> dict[str, Any]:
    """Return what the result of a unit says of settings and images."""
    return {"settings": compact(TABLE[unit.stage].settings(context, unit)), "images": context.images_record()}


def _options(
    context: Context, images: str | Path | ImageSource, test_images: str | Path | ImageSource | None
) -> tuple[str, ...]:
    """Return the options of a command that does a part of the same; none where images are not named by strings."""
    named = {"--images": images, "--test-images": test_images}
    if not all(isinstance(source, str | Path | None) for source in named.values()):
        return ()
    options = [f"--scale={context.scale.name}", f"--out={context.folder}", f"--device={context.device}"]
    options += [f"--seed={context.seed}", f"--devices={context.devices}"]
    options += [f"{name}={source}" for name, source in named.items() if source is not None]
    options += [f"--checkpoint={method}={spec}" for method, spec in context.checkpoints.items()]
    options += [f"--set={part}" for part in context.typed.get("set", "").split("\n") if part]
    if context.classes is not None:
        options.append(f"--classes={context.classes}")
    if context.workers is not None:
        options.append(f"--workers={context.workers}")
    return tuple(options)


def _run_unit(context: Context, unit: Unit, place: str, so_far: Progress, *, alone: bool) -> None:
    stage, expected = TABLE[unit.stage], _expected(context, unit)
    if _finished(context, unit, expected):
        log.info("%s: stage %s, %s, seed %d is finished", place, unit.stage, unit.name, unit.seed)
        so_far.done.append(unit.key)
        return
    log.info("%s: stage %s, %s, seed %d begins", place, unit.stage, unit.name, unit.seed)
    clock = context.work(unit) / "seconds"
    trained = context.encoder_folder(unit.stage, unit.label) / "encoder.safetensors"
    elsewhere = not clock.exists() and (trained.exists() or clock.parent.exists())
    record = expected | {"command": context.command(unit), "hardware": hardware(context.device), "software": software()}
    marker = context.work(unit) / "trained-elsewhere"
    if elsewhere:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    record["trained_here"] = not marker.exists()

    def save(found: Mapping[str, Any], complete: bool) -> None:
        note()
        write_result(context.results, unit, {"complete": complete, "seconds": elapsed(clock), **record}, found)

    try:
        with timed(clock) as note:
            stage.run(context, unit, save)
    except (QScoreError, OSError, torch.OutOfMemoryError) as error:
        if alone:
            raise
        log.warning("stage %s, %s, seed %d is left out: %s", unit.stage, unit.name, unit.seed, one_line(error))
        so_far.refused[unit.key] = one_line(error)
        return
    so_far.done.append(unit.key)


def _finished(context: Context, unit: Unit, record: Mapping[str, Any]) -> bool:
    """Return whether a result is there, whole.

    Raises
    ------
    QScoreError
        If it is of other settings or images.
    """
    file = context.results / f"{unit.key}.json"
    if not file.exists():
        return False
    try:
        found = json.loads(file.read_text())
        differing = [
            f"{name} {key} is {found[name].get(key)!r} there and {value!r} here"
            for name, of in record.items()
            for key, value in of.items()
            if found[name].get(key) != value
        ]
        complete = bool(found["complete"])
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise QScoreError(f"{file}: cannot read this result; remove it to make it anew") from error
    if differing and TABLE[unit.stage].derived and not any(words.startswith("images") for words in differing):
        return complete and not record["settings"]["sources"]  # of embeddings that are gone it says what can be said
    if differing:
        raise QScoreError(f"{file} is another result: {'; '.join(differing)}; name another --out, or remove it")
    return complete


def _stages(text: str) -> tuple[str, ...]:
    asked = [name.strip() for name in text.split(",") if name.strip()]
    known = tuple(name for name in STAGES if name in TABLE)
    for name in asked:
        if name not in (*known, "all"):
            raise QScoreError(f"stage {name!r}: expected all, or some of {', '.join(known)}{nearest(name, known)}")
    if not asked:
        raise QScoreError(f"stage: expected all, or some of {', '.join(known)}, got none")
    return known if "all" in asked else tuple(name for name in known if name in asked)


def _images(
    images: str | Path | ImageSource, test_images: str | Path | ImageSource | None, classes: str | None, seed: int
) -> tuple[ImageSource, ImageSource]:
    if classes is not None:
        images = choose_classes(open_images(images), classes)
        test_images = None if test_images is None else choose_classes(open_images(test_images), classes)
    return train_and_test(images, test_images, seed)


def _typed(
    images: str | Path | ImageSource,
    test_images: str | Path | ImageSource | None,
    overrides: Mapping[str, Any] | None,
    classes: str | None,
    checkpoints: Mapping[str, str] | None,
) -> dict[str, str]:
    """Return the options of the command line that say the same as these arguments."""
    names = {"images": images, "test_images": test_images}
    found = {
        name: short_name(str(source) if isinstance(source, str | Path) else source.name)
        for name, source in names.items()
        if source is not None
    }
    if classes is not None:
        found["classes"] = short_name(classes)
    if checkpoints:
        found["checkpoint"] = "\n".join(f"{method}={short_name(spec)}" for method, spec in checkpoints.items())
    if overrides:
        found["set"] = "\n".join(f"{name}={'none' if value is None else value}" for name, value in overrides.items())
    return found
