"""See why: images, an encoder and a score table in; pictures, tables and verdicts out."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Int

from qscore._files import atomic_path, check_output, sha256, to_json
from qscore._validate import QScoreError, nearest
from qscore.embedding import pick_device
from qscore.encoders import Encoder, load_encoder
from qscore.explain import attributes
from qscore.explain.attributes import Carried
from qscore.explain.claims import (
    Measure,
    gap_measures,
    improvement,
    localisation_measures,
    scatter,
    where_features_look,
)
from qscore.explain.earlier import Earlier, read_earlier
from qscore.explain.heatmaps import METHODS
from qscore.explain.joining import check_joined
from qscore.explain.judgement import Numbers, judge, verdict_sentences
from qscore.explain.localisation import (
    CONTROLS,
    METRICS,
    SETS,
    Located,
    check_encoder,
    feature_sets,
    locate,
    on_device,
)
from qscore.explain.masks import summarise
from qscore.explain.material import Material, gather, read_lists
from qscore.explain.pictures import draw_pictures
from qscore.images import ImageSource
from qscore.tables import open_embeddings, with_record

__all__ = ["explain_scores"]

OUTPUTS = ("explain.json", "explanations.parquet", "localisation.parquet")
Sets = Mapping[str, Bool[np.ndarray, " r"]]


def explain_scores(
    images: str | Path | ImageSource,
    encoder: str | Path | Encoder,
    scores: str | Path,
    out: str | Path,
    *,
    masks: str | Path | None = None,
    evaluation: str | Path | None = None,
    embeddings: str | Path | None = None,
    before: str | Path | None = None,
    method: str = "activation",
    layer: str | None = None,
    rows: int | None = None,
    batch_size: int = 64,
    device: str = "auto",
    n_random: int = 20,
    resamples: int = 2000,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Show what highly active features look at, and measure against masks whether that is the object.

    Writes pictures; ``explanations.parquet``, a row for each image: means over the features in ``L_i ∩ D`` of how well
    their heatmaps meet each kind of mask, the same of other sets of features, and of blind maps; with masks or on drawn
    shapes ``localisation.parquet``, a row for each feature; and ``explain.json``. Claims C3, C4, C9 and C10 are judged
    by rules fixed beforehand.

    Parameters
    ----------
    images : str, Path or ImageSource
        The images, as :func:`qscore.embed` takes them. Those without a valid row in ``scores`` are left out.
    encoder : str, Path or Encoder
        The one whose embeddings were scored.
    scores : str or Path
        Their score table, the feature table beside it.
    out : str or Path
        Directory of the results.
    masks : str or Path, optional
        Masks of the images, as :func:`qscore.explain.open_masks` takes them; ``"shapes"`` for drawn shapes.
    evaluation : str or Path, optional
        The evaluation table, which tells which rows are correct; by default ``evaluation.parquet`` beside ``scores``,
        where it is there.
    embeddings : str or Path, optional
        The embedding table, for correlated features; by default ``embeddings`` beside ``scores``, where it is there.
    before : str or Path, optional
        The directory of an earlier explanation of the same images, by another encoder: for C10.
    method : {"activation", "gradcam", "gradient", "integrated_gradients"}
        Of the heatmaps, as for :func:`qscore.feature_heatmaps`.
    layer : str, optional
        Of the heatmaps, as for :func:`qscore.feature_heatmaps`.
    rows : int, optional
        Images measured against masks at most, at least 2, drawn evenly; by default all.
    batch_size : int, default=64
        Images at a time.
    device : str, default="auto"
        Where the encoder runs.
    n_random : int, default=20
        Random sets of as many features as D, at least 1.
    resamples : int, default=2000
        Bootstrap resamples, at least 1.
    seed : int, default=0
        Of sets, random maps, shuffles and resamples, at least 0.
    overwrite : bool, default=False
        Replace the results of an earlier explanation.

    Returns
    -------
    dict
        The content of ``explain.json``: ``n``, ``n_measured``, ``kinds``, ``localisation`` (kind, metric, set -> mean
        with interval, ``n``, ``excluded``), ``claims`` (``records``, ``verdicts``, ``conditions``, ``sentences``),
        ``attributes``, ``scatter``, ``pictures``, ``sentences``, and the settings. What was not measured is None or
        empty.

    Raises
    ------
    QScoreError
        If a source, table or checkpoint cannot be read or they do not belong together, an image has no mask or a mask
        no image, a mask is of another size, empty, full or in colours, the encoder has no maps, or results are there.
    """
    _check(n_random, resamples, seed, rows, batch_size, method)
    folder = _folder(Path(out), overwrite=overwrite)
    found = gather(images, scores, masks=masks, evaluation=evaluation)
    kinds = found.masks.kinds if found.masks else None
    chosen = _choose(found.masked, rows, seed)
    earlier = None if before is None else read_earlier(Path(before), folder, found.images.name, kinds, method, layer)
    if earlier is not None:
        earlier.match(_names(found, chosen))  # refuses other images before any work
    embeddings, unused = _embeddings(scores, embeddings, found)
    place = pick_device(device)
    loaded = load_encoder(encoder)
    if loaded.dim != found.features.num_rows:
        raise QScoreError(
            f"{scores} has {found.features.num_rows} features, and the encoder {loaded.dim}; both must come from the "
            "same encoder"
        )
    sets = feature_sets(found.features, n_random, seed)
    located = None
    if not found.masks:
        check_encoder(found, loaded, device=place, method=method, layer=layer, batch_size=batch_size)
    else:
        located = locate(
            found, loaded, chosen, sets,
            device=place, method=method, layer=layer, batch_size=batch_size, seed=seed,
        )  # fmt: skip
    settings: dict[str, Any] = {
        "masks": None if masks is None else str(masks),
        "kinds": kinds,
        "method": method,
        "layer": layer,
    }
    settings |= {"n_random": n_random, "resamples": resamples, "seed": seed}
    result = _about(found, loaded, scores, len(chosen)) | settings
    table = _measure(result, found, located, chosen, sets, earlier)
    result["sentences"] = [*found.sentences, *unused, *_said(result), *result["claims"]["sentences"]]
    # Until explain.json is there again nothing is: a run that is killed while it draws leaves no results of two runs.
    for name in OUTPUTS:
        (folder / name).unlink(missing_ok=True)
    with on_device(loaded, place):
        result["pictures"] = draw_pictures(
            found.images, loaded, found.rows, found.features, folder,
            embeddings=embeddings, method=method, layer=layer, batch_size=batch_size, seed=seed,
        )  # fmt: skip
    _write_tables(folder, {"explanations.parquet": _explanations(found, located), "localisation.parquet": table})
    with atomic_path(folder / "explain.json") as temporary:
        temporary.write_text(to_json(result, indent=2) + "\n")
    return result


def _about(found: Material, encoder: Encoder, scores: str | Path, n_measured: int) -> dict[str, Any]:
    """Return what was explained."""
    return {
        "images": found.images.name,
        "n": found.rows.num_rows,
        "n_unscored": found.n_unscored,
        "n_invalid": found.n_invalid,
        "n_measured": n_measured,
        "encoder": encoder.source.to_json(),
        "scores": {"path": str(scores), "sha256": sha256(scores)},
    }


def _check(n_random: int, resamples: int, seed: int, rows: int | None, batch_size: int, method: str) -> None:
    if n_random < 1 or resamples < 1 or seed < 0 or batch_size < 1 or not (rows is None or rows >= 2):
        raise QScoreError(
            "expected n_random >= 1, resamples >= 1, seed >= 0, batch_size >= 1 and rows >= 2, got "
            f"{n_random}, {resamples}, {seed}, {batch_size} and {rows}"
        )
    if method not in METHODS:
        raise QScoreError(f"method: expected one of {', '.join(METHODS)}, got {method!r}{nearest(method, METHODS)}")


def _folder(out: Path, *, overwrite: bool) -> Path:
    if out.exists() and not out.is_dir():
        raise QScoreError(f"{out} is a file; name a directory")
    check_output(out / "explain.json", overwrite=overwrite)  # written last: without it a run was not finished
    return out


def _embeddings(
    scores: str | Path, embeddings: str | Path | None, found: Material
) -> tuple[str | Path | None, list[str]]:
    """Return the embedding table that is named, or lies beside the score table; and why the latter is not taken."""
    beside = Path(scores).parent / "embeddings"
    if embeddings is None and not beside.exists():
        return None, []
    chosen, r = beside if embeddings is None else embeddings, found.features.num_rows
    try:
        width = open_embeddings(chosen).n_features
        if width != r:
            raise QScoreError(f"{chosen} has {width} features, and {scores} {r}; both must come from the same encoder")
        check_joined(chosen, found.rows, r)
    except QScoreError as error:
        if embeddings is not None:
            raise
        return None, [f"The embeddings beside the score table are not used: {error}."]
    return chosen, []


def _names(found: Material, chosen: Int[np.ndarray, " m"]) -> list[str]:
    return [str(id) for id in found.rows.column("id").take(pa.array(chosen)).to_pylist()]


def _choose(masked: Int[np.ndarray, " m"], rows: int | None, seed: int) -> Int[np.ndarray, " k"]:
    if rows is None or rows >= len(masked):
        return masked
    return np.sort(np.random.default_rng([seed, 3]).choice(masked, rows, replace=False))


def _measure(
    result: dict[str, Any],
    found: Material,
    located: Located | None,
    chosen: np.ndarray,
    sets: Sets,
    earlier: Earlier | None,
) -> pa.Table | None:
    """Add all numbers and verdicts to the result; return the table of features, where there is anything to tell."""
    options = {"resamples": result["resamples"], "seed": result["seed"]}
    kinds = result["kinds"]
    measures: list[Measure] = []
    result["localisation"] = []
    if located is not None:
        samples = {name: values[chosen] for name, values in located.samples.items()}
        q, correct = found.q[chosen], found.correct[chosen]
        result["localisation"] = _records(samples, kinds, **options)
        measures += localisation_measures(samples, q, correct, kinds, **options)
        if earlier is not None:
            own, matched = earlier.match(_names(found, chosen))
            pairs = (matched.q, q[own]), (matched.correct, correct[own])
            now = {name: values[own] for name, values in samples.items()}
            measures += improvement(matched.samples, now, *pairs, kinds, **options)
            result["before"] = {"path": earlier.name, "n": len(own)}
    codes = attributes.attribute_codes(found.images)
    association, carried = None, None
    result["attributes"] = result["scatter"] = None
    if codes is not None:
        association = attributes.tied(codes)
        carried = attributes.carried(*read_lists(found.rows), found.features.num_rows, codes, seed=result["seed"])
        measures += gap_measures(carried, sets, **options)
        result["attributes"] = _attributes(carried, association, sets)
        if located is not None:
            looks, n_images = where_features_look(located.features, kinds), located.n_images[kinds[0]]
            found_there = scatter(carried, looks, n_images, **options)
            result["scatter"] = {
                name: asdict(value) if isinstance(value, Measure) else value for name, value in found_there.items()
            }
    held_out = not found.record["transductive"]
    verdicts = judge(Numbers(measures), kinds, held_out=held_out, association=association, compared=earlier is not None)
    result["claims"] = {
        "records": [asdict(measure) for measure in measures],
        "verdicts": {claim: verdict.verdict for claim, verdict in verdicts.items()},
        "conditions": {claim: verdict.conditions for claim, verdict in verdicts.items()},
        "reasons": {claim: verdict.reason for claim, verdict in verdicts.items()},
        "sentences": verdict_sentences(verdicts.values()),
    }
    return _features(found, located, carried)


def _records(
    samples: Mapping[str, np.ndarray], kinds: tuple[str, str], *, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Return the mean over samples of each kind, metric and set."""
    records = []
    for kind in kinds:
        for metric in METRICS:
            for name in (*SETS, *CONTROLS):
                values = torch.from_numpy(samples[f"{kind}_{metric}_{name}"])
                of = summarise(values, resamples=resamples, seed=seed)
                where = {"kind": kind, "metric": metric, "set": name}
                records.append(where | asdict(of.mean) | {"n": of.n, "excluded": of.excluded})
    return records


def _attributes(carried: Carried, association: tuple[str, str, float], sets: Sets) -> dict[str, Any]:
    """Return how often each attribute is the best one, in D and outside."""
    best = np.array([name or "" for name in carried.best])
    a, b, strength = association
    return {
        "tied": {"attributes": [a, b], "adjusted_mutual_information": strength},
        "best": {
            name: {attribute: int(((best == attribute) & sets[name]).sum()) for attribute in carried.information}
            for name in ("discriminative", "outside", "frequent")
        },
        "n_features": int((best != "").sum()),
    }


def _explanations(found: Material, located: Located | None) -> pa.Table:
    shown = ("id", "q_score", "n_active", "n_discriminative", "correct")
    table = found.rows.select([name for name in shown if name in found.rows.column_names])
    for name, values in located.samples.items() if located else ():
        table = table.append_column(name, pa.array(values, pa.float32(), from_pandas=True))  # NaN is null
    return table.replace_schema_metadata(with_record(table.schema.remove_metadata(), {"kind": "explanations"}).metadata)


def _features(found: Material, located: Located | None, carried: Carried | None) -> pa.Table | None:
    if located is None and carried is None:
        return None
    table = found.features.select(["feature", "count", "activation_rate", "rank", "discriminative"])
    columns: dict[str, Any] = {}
    if located is not None:
        columns |= {f"n_images_{kind}": count for kind, count in located.n_images.items()} | located.features
    if carried is not None:
        columns |= {f"mi_{name.replace(' ', '_')}": values for name, values in carried.information.items()}
        columns |= {"mi_gap": carried.gap, "mi_gap_chance": np.where(np.isnan(carried.gap), np.nan, carried.chance)}
        columns["attribute"] = pa.array(carried.best, pa.string())
    for name, values in columns.items():
        table = table.append_column(
            name, values if isinstance(values, pa.Array) else pa.array(values, from_pandas=True)
        )
    record = {"kind": "localisation"}
    return table.replace_schema_metadata(with_record(table.schema.remove_metadata(), record).metadata)


def _said(result: Mapping[str, Any]) -> list[str]:
    """Say what the heatmaps of D meet, beside what blind maps do in the same images, and how many took part."""
    found = {of["kind"]: of for of in result["localisation"] if of["metric"] == "iou" and of["set"] == "discriminative"}
    above = {of["quantity"]: of["value"] for of in result["claims"]["records"] if of["statistic"] == "mean"}
    said = []
    for kind, of in found.items():
        if not of["n"]:
            said.append(
                f"None of {_images(of['excluded'])} has a highly active feature of D and a mask of the {kind}: nothing "
                "was measured of it."
            )
            continue
        d = of["value"]
        centred, random = (f"{d - above[f'{kind}_discriminative - {kind}_{blind}']:.3f}" for blind in CONTROLS)
        said.append(
            f"In {_images(of['n'])} the highly active features of D meet the {kind} with a mean IoU of {d:.3f} (95 % "
            f"interval {of['low']:.3f} to {of['high']:.3f}), there a centred map with {centred}, a random one with "
            f"{random}; {_images(of['excluded'])} without such a feature, or without such a mask, "
            f"{'was' if of['excluded'] == 1 else 'were'} excluded."
        )
    return said


def _images(n: int) -> str:
    return "1 image" if n == 1 else f"{n:,} images"


def _write_tables(folder: Path, tables: Mapping[str, pa.Table | None]) -> None:
    for name, table in tables.items():
        if table is None:
            continue
        with atomic_path(folder / name) as temporary:
            pq.write_table(table, temporary)
