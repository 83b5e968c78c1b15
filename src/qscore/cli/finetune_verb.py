"""The verb that repairs an encoder, and tells the cure from what would have happened anyway."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from qscore._validate import QScoreError, nearest, require
from qscore.cli.options import IMAGES, Device, Overwrite, Precision, Seed, read_epsilon
from qscore.cli.verb import Outcome, verb

__all__ = ["finetune_app"]

finetune_app = typer.Typer()

TITLES = {
    "accuracy": "probe accuracy, %",
    "auroc": "AUROC of Q",
    "q_over_sigma": "Q / sigma",
    "hoyer": "Hoyer sparsity",
    "zeros": "exact zeros, %",
    "n_active": "|L_i|",
    "coverage": "coverage, %",
    "q": "raw Q",
}
PERCENT = ("accuracy", "zeros", "coverage")


@finetune_app.command()
@verb
def finetune(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="A directory of pretrain or finetune, with its heads; or any encoder, which gets fresh heads."
        ),
    ],
    method: Annotated[str, typer.Option(help="simclr, moco, swav, byol, simsiam, dino, vicreg, or barlow.")],
    images: Annotated[str, typer.Option(help=IMAGES)],
    out: Annotated[Path, typer.Option(help="Encoder directory to write; with --compare, one for each arm and seed.")],
    test_images: Annotated[
        str | None, typer.Option(help="Images to measure on.", show_default="a fifth of --images, held out")
    ] = None,
    regularizer: Annotated[
        Literal["qscore", "lasso", "none"], typer.Option(help="What is added to the method's own loss.")
    ] = "qscore",
    compare: Annotated[
        bool, typer.Option("--compare", help="Branch the checkpoint into Q-Score regularisation and its controls.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="With --compare: fine-tunings of each arm.", show_default="3")
    ] = None,
    arms: Annotated[
        str | None,
        typer.Option(help="With --compare: which arms.", show_default="lr0,plain,lasso,qscore,random-d"),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 50,
    learning_rate: Annotated[
        float, typer.Option(min=0.0, help="Absolute, whatever the batch; 0 moves BatchNorm's statistics alone.")
    ] = 1e-5,
    schedule: Annotated[
        Literal["constant", "cosine"],
        typer.Option(help="Of the learning rate; the paper names a single one, and no schedule."),
    ] = "constant",
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images per step.", show_default="that of the checkpoint, or the recipe's")
    ] = None,
    lambda1: Annotated[
        float | None,
        typer.Option(help="Weight of the term that lifts rows of low quality.", show_default="1e-4; means: calibrated"),
    ] = None,
    lambda2: Annotated[
        float | None,
        typer.Option(help="Weight of the term against features of all rows.", show_default="1e-4; means: calibrated"),
    ] = None,
    lasso_lambda: Annotated[
        float | None, typer.Option(help="Weight of Lasso.", show_default="1e-4; means: calibrated")
    ] = None,
    reduction: Annotated[
        Literal["sum", "mean"], typer.Option(help="The paper's sums, or means with weights set at the first step.")
    ] = "sum",
    refresh_every: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Find D anew every K epochs.", show_default="never")
    ] = None,
    epsilon: Annotated[
        str, typer.Option(help="Standard deviations at which a feature is highly active, auto, or paper, which is 4.")
    ] = "auto",
    features: Annotated[
        Path | None, typer.Option(help="A feature table with D.", show_default="found with the checkpoint")
    ] = None,
    warmup_heads: Annotated[
        int, typer.Option(min=0, metavar="E", help="Epochs in which fresh heads are trained first, the encoder frozen.")
    ] = 10,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a setting of the method: optimizer=sgd, augment.flip=0, ..."
        ),
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples.")] = 2000,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "32-true",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads or, streaming, processes that read images.", show_default="by the processors"
        ),
    ] = None,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--in-memory", help="Read images anew for each view, or hold them.", show_default="by the memory"
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> Outcome:
    """Fine-tune an encoder with Q-Score regularisation; the same command continues what was interrupted.

    Example:  qscore finetune encoders/simclr --method simclr --images 'data/train-*.npz' --test-images data/test.npz \
--out encoders/repaired
    """
    require("lightning", "vision")
    from qscore.ssl import METHODS, parse_overrides
    from qscore.study import Tuning
    from qscore.study import compare as run_arms
    from qscore.study import finetune as run

    if method not in METHODS:
        raise QScoreError(f"method {method!r}: expected one of {', '.join(METHODS)}{nearest(method, METHODS)}")
    if not compare and (seeds is not None or arms is not None):
        raise QScoreError("--seeds and --arms belong to --compare, which was not given")
    if compare and regularizer != "qscore":
        raise QScoreError("--regularizer: with --compare the arms settle it; choose them by --arms")
    common: dict[str, Any] = {
        "test_images": test_images,
        "features": features,
        "overrides": parse_overrides(settings or [], METHODS[method].recipes["imagenet"]),
        "resamples": resamples,
        "seed": seed,
        "overwrite": overwrite,
        "settings": Tuning(
            epochs=epochs,
            learning_rate=learning_rate,
            schedule=schedule,
            batch_size=batch_size,
            lambda1=lambda1,
            lambda2=lambda2,
            lasso_lambda=lasso_lambda,
            reduction=reduction,
            refresh_every=refresh_every,
            epsilon=read_epsilon(epsilon),
            warmup_heads=warmup_heads,
            device=device,
            precision=precision,
            workers=workers,
            stream=stream,
        ),
    }
    if compare:
        chosen: dict[str, Any] = (
            {} if arms is None else {"arms": [name.strip() for name in arms.split(",") if name.strip()]}
        )
        found = run_arms(checkpoint, method, images, out, seeds=seeds or 3, **chosen, **common)
        return Outcome(found, [*_arms(found), *found["sentences"], f"Comparison: {out / 'compare.json'}"])
    found = run(checkpoint, method, images, out, regularizer=regularizer, **common)
    return Outcome(found, [_before_and_after(found), *found["sentences"], f"Encoder: {found['encoder']}"])


def _before_and_after(found: Mapping[str, Any]) -> Table:
    table = _table(f"{found['n_test']:,} test rows (95 % intervals)", ("", "before", "after", "change"))
    for metric, title in TITLES.items():
        if metric in found["before"]:
            change = found["change"].get(metric)
            after = found["after"].get(metric)
            table.add_row(
                title,
                _cell(metric, found["before"][metric], interval=False),
                "" if after is None else _cell(metric, after, interval=False),
                "" if change is None else _cell(metric, change, sign="+"),
            )
    for name, ratio in found["gradient_ratios"].items():
        table.add_row(name.replace("_", " "), "", f"{ratio['mean']:.2g}", "")
    return table


def _arms(found: Mapping[str, Any]) -> Iterator[Table]:
    n = len(found["seeds"])
    seeds = "1 seed" if n == 1 else f"{n} seeds"
    title = f"{found['n_test']:,} test rows, {seeds} (95 % intervals over rows; sd over seeds)"
    if "accuracy" in found["start"]:
        table = _table(title, ("arm", "accuracy, %", "sd", "points on plain", "relative, %", "on lr 0", "shown from"))
        table.add_row("start", _cell("accuracy", found["start"]["accuracy"], interval=False))
        for name, arm in found["arms"].items():
            table.add_row(arm["title"], *_accuracy(found, name, arm))
        yield table
    shown = [metric for metric in TITLES if metric != "accuracy" and metric in found["start"]]
    ratios = ("gradient_ratio", "gradient_ratio_1", "gradient_ratio_2")
    table = _table(
        "Quality and sparsity, and gradients on h over the loss's",
        ("arm", *(TITLES[metric] for metric in shown), "ratios"),
    )
    table.add_row("start", *(_cell(metric, found["start"][metric], interval=False) for metric in shown))
    for arm in found["arms"].values():
        cells = [_cell(m, arm["metrics"][m], interval=False) if m in arm["metrics"] else "" for m in shown]
        table.add_row(
            arm["title"],
            *(cells if arm["metrics"] else ["diverged"]),
            " ".join(f"{arm['gradient_ratios'][r]['mean']:.2g}" for r in ratios if r in arm["gradient_ratios"]),
        )
    yield table
    against = {name: of["plain"] for name, of in found["differences"].items() if "plain" in of}
    changes = _table("Changes against plain fine-tuning", ("", *(found["arms"][name]["title"] for name in against)))
    for metric in shown:
        cells = [_cell(metric, of[metric], sign="+") if metric in of else "" for of in against.values()]
        changes.add_row(TITLES[metric], *cells)
    if against:
        yield changes
    verdicts = _table("By rules fixed beforehand", ("claim", "what", "verdict"))
    for row in found["verdicts"]:
        verdicts.add_row(row["claim"], row["what"], row["verdict"])
    yield verdicts


def _accuracy(found: Mapping[str, Any], name: str, arm: Mapping[str, Any]) -> list[str]:
    own = arm["metrics"].get("accuracy")
    if own is None:
        return ["diverged"]
    cells = [_cell("accuracy", own, interval=False), _number(100 * own["seeds_sd"], ".2f")]
    plain, still = (found["differences"].get(name, {}).get(r, {}).get("accuracy") for r in ("plain", "lr0"))
    if plain is None:
        cells += ["", ""]
    else:
        cells += [_cell("accuracy", plain, sign="+"), _number(100 * plain["relative"]["value"], "+.2f")]
    cells.append("" if still is None else _cell("accuracy", still, sign="+"))
    cells.append("" if plain is None else _number(100 * plain["minimum_effect"], ".2f"))
    return cells


def _cell(metric: str, of: Mapping[str, float], *, interval: bool = True, sign: str = "") -> str:
    scale = 100 if metric in PERCENT else 1
    form = f"{sign}.{2 if metric in (*PERCENT, 'n_active') else 3}f"
    text = _number(scale * of["value"], form)
    return f"{text} ({_number(scale * of['low'], form)}, {_number(scale * of['high'], form)})" if interval else text


def _number(value: float, form: str) -> str:
    return "" if value != value else f"{value:{form}}"


def _table(title: str, columns: tuple[Any, ...]) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for k, column in enumerate(columns):
        table.add_column(column, justify="right" if k else "left")
    return table
