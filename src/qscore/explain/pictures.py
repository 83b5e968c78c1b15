"""What `qscore explain` draws: the samples of lowest and highest Q, the features of D, and average representations."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from qscore._files import atomic_path
from qscore._progress import progress
from qscore._validate import QScoreError
from qscore.encoders import Encoder
from qscore.explain.attributes import attribute_codes
from qscore.explain.average import (
    average_representations,
    average_table,
    class_groups,
    draw_average,
    find_clusters,
)
from qscore.explain.cards import TOP, Activity, correlations, feature_cards, read_activity
from qscore.explain.looking import Looker, Seen
from qscore.explain.overlays import overlay
from qscore.explain.sheets import BAD, GOOD, MUTED, SMALL, Cell, Line, Row, draw_rows, draw_strip, save
from qscore.images import ImageSource
from qscore.tables import with_record

__all__ = ["FEATURES", "draw_pictures"]

SAMPLES = 8  # rows of a grid
OVERLAYS = 4  # in a row
EMPTY = 2  # rows of the lowest grid that may go to samples without overlays
FEATURES = 24  # that have pictures


def draw_pictures(
    images: ImageSource,
    encoder: Encoder,
    rows: pa.Table,
    features: pa.Table,
    out: Path,
    *,
    embeddings: str | Path | None,
    method: str,
    layer: str | None,
    batch_size: int,
    seed: int,
    n_features: int = FEATURES,
) -> dict[str, Any]:
    """Draw overlays, feature cards and average representations into a folder.

    Parameters
    ----------
    images : ImageSource
        The images, matched by id.
    encoder : Encoder
        Which the scores are of, with r features.
    rows : pyarrow.Table
        Of the score table, whose images are all in ``images``; ``correct`` and ``predicted`` may be joined to it.
    features : pyarrow.Table
        The feature table, with r rows.
    out : Path
        The folder. It gets ``lowest.png``, ``highest.png``, ``features/feature-0123.png``, ``cards.parquet`` (see
        `feature_cards`), and with embeddings ``average.png`` and ``average.parquet`` (see `average_table`). Those that
        an earlier run left there are replaced or removed.
    embeddings : str or Path, optional
        The embedding table, for correlations and averages; read batch by batch.
    method, layer
        As of `feature_heatmaps`.
    batch_size : int
        Images that go through the encoder at once, >= 1.
    seed : int
        Of clusters, and of the order of rows that tie.
    n_features : int, default=24
        Discriminative features that have pictures: those that give most of Q.

    Returns
    -------
    dict
        What there is, for JSON: ``samples`` (``lowest``, ``highest``: ``file``, ``ids``, ``alt``), ``features`` (each
        ``feature``, ``file``, ``alt``, and ``strip``, where in the file the pictures are: left, top, right, bottom),
        ``cards`` (``file``, ``n``, ``shown``), ``average`` (``file``, ``table``, ``groups``, ``alt``, or None), and
        ``sentences``.

    Raises
    ------
    QScoreError
        If no row is valid, a row has no image, tables do not belong together, or a feature cannot be explained.
    """
    rows = rows.filter(rows.column("valid"))
    if not rows.num_rows:
        raise QScoreError("rows: expected valid rows of a score table, got none")
    if features.num_rows != encoder.dim:
        raise QScoreError(
            f"encoder: expected one with the {features.num_rows} features of the feature table, got {encoder.dim}; "
            "name the encoder that the images were embedded with"
        )
    material = _Material(rows, read_activity(rows, features), _positions(images, rows), seed)
    _clear(out)
    looker = Looker(images, encoder, method, layer, batch_size)
    correlation = None
    if embeddings is not None and len(material.activity.discriminative):
        correlation = correlations(embeddings, rows, material.activity.discriminative, encoder.dim)
    cards = feature_cards(rows, features, correlation=correlation, attributes=_attributes(images, material))
    _write(cards, "cards", out / "cards.parquet")
    shown = cards.slice(0, n_features)
    with progress("draw", 2 + shown.num_rows, "pictures") as advance:
        samples = {}
        for name in ("lowest", "highest"):
            samples[name] = _draw_samples(name, material, looker, out)
            advance(1)
        strips = []
        for card in shown.to_pylist():
            strips.append(_draw_feature(card, material, looker, out, encoder.dim))
            advance(1)
    average, said = _draw_average(material, embeddings, encoder.dim, out)
    part = f", together {100 * sum(shown.column('q_share').to_pylist()):.0f} % of it" if shown.num_rows else ""
    most = f"{shown.num_rows} of the {cards.num_rows} discriminative features have pictures"
    return {
        "samples": samples,
        "features": strips,
        "cards": {"file": "cards.parquet", "n": cards.num_rows, "shown": shown.num_rows},
        "average": average,
        "sentences": [f"{most}: those that give most of Q{part}.", said],
    }


@dataclass(frozen=True)
class _Material:
    """Valid rows, and what is known of them."""

    rows: pa.Table
    activity: Activity
    positions: Int[np.ndarray, " n"]
    """Of the rows' images in their source."""
    seed: int

    def value(self, name: str, row: int) -> Any:
        """Return what a column says of a row; None where there is none."""
        return self.rows.column(name)[row].as_py() if name in self.rows.column_names else None


def _positions(images: ImageSource, rows: pa.Table) -> Int[np.ndarray, " n"]:
    place = {images.record(i).id: i for i in range(len(images))}
    found = [place.get(id, -1) for id in rows.column("id").to_pylist()]
    if -1 in found:
        first = rows.column("id")[found.index(-1)].as_py()
        raise QScoreError(
            f"{images.name}: {found.count(-1):,} of {len(found):,} scored rows have no image here, the first is "
            f"{first!r}; name the images that were embedded"
        )
    return np.array(found, dtype=np.int64)


def _attributes(images: ImageSource, material: _Material) -> dict[str, Int[np.ndarray, " n"]] | None:
    codes = attribute_codes(images)
    return codes and {name: values[material.positions] for name, values in codes.items()}


def _clear(out: Path) -> None:
    """Remove what an earlier run drew, so that nothing is left of other features."""
    names = ("lowest.png", "highest.png", "average.png", "average.parquet", "cards.parquet")
    for path in (*(out / name for name in names), *(out / "features").glob("feature-*.png")):
        path.unlink(missing_ok=True)


def _write(table: pa.Table, kind: str, path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(with_record(table.schema, {"kind": kind}).metadata), temporary)


def _extremes(material: _Material, lowest: bool) -> tuple[list[int], int]:
    """Return the rows of a grid, and how many have an empty ``L_i ∩ D``.

    Of the lowest, all may be such rows, of which there is nothing to see: two come first, then those with features.
    """
    q = material.rows.column("q_score").to_numpy(zero_copy_only=False)
    inside = material.activity.deviation[:, material.activity.discriminative]
    empty = np.diff(inside.tocsr().indptr) == 0
    # Rows that tie are shuffled: those at the top of the table are no better an example than others.
    shuffled = np.random.default_rng(material.seed).permutation(len(q))
    order = shuffled[np.argsort(q[shuffled] if lowest else -q[shuffled], stable=True)]
    if not lowest:
        return order[:SAMPLES].tolist(), int(empty.sum())
    without, others = order[empty[order]], order[~empty[order]]
    first = without[: max(EMPTY, SAMPLES - len(others))]
    return [*first.tolist(), *others[: SAMPLES - len(first)].tolist()], int(empty.sum())


def _draw_samples(name: str, material: _Material, looker: Looker, out: Path) -> dict[str, Any]:
    chosen, n_empty = _extremes(material, name == "lowest")
    strongest = [material.activity.strongest(row, OVERLAYS) for row in chosen]
    wanted = [
        (int(material.positions[row]), [j for j, _ in found]) for row, found in zip(chosen, strongest, strict=True)
    ]
    drawn = [
        _sample(material, row, found, one)
        for row, found, one in zip(chosen, strongest, looker.look(wanted), strict=True)
    ]
    n = material.rows.num_rows
    title = f"{name.capitalize()} Q of {n:,} images, and where their strongest discriminative features look"
    notes = [
        "Beside each image its features that are highly active and discriminative, the strongest first; below each the "
        "feature's number and its deviation from the row's mean. Each row has a colour scale of its own, from 0, where "
        f"the image is left as it is. Heat: {looker.method}."
    ]
    if name == "lowest" and n_empty:
        notes.append(f"{n_empty:,} of the {n:,} images have no such feature, so their Q is 0: some of them come first.")
    save(draw_rows(title, notes, drawn, looker.side, 1 + OVERLAYS), out / f"{name}.png")
    ids = [material.value("id", row) for row in chosen]
    return {"file": f"{name}.png", "ids": ids, "alt": f"{title}: {len(ids)} images, each beside overlays of heatmaps"}


def _sample(material: _Material, row: int, strongest: Sequence[tuple[int, float]], one: Seen) -> Row:
    top = max((float(heat.max()) for heat in one.heat), default=0.0)
    cells = [Cell(one.image, (), _frame(material, row))] + [
        Cell(overlay(one.image, heat, top), [Line(f"{feature} · {deviation:.3g}", MUTED, SMALL)])
        for (feature, deviation), heat in zip(strongest, one.heat, strict=True)
    ]
    label = material.value("label", row)
    lines = [Line(str(label))] if label is not None else []
    lines += [*_outcome(material, row), Line(f"Q {material.value('q_score', row):.3g}")]
    lines.append(Line(f"id {material.value('id', row)}", MUTED, SMALL))
    lines += [Line(f"scale: 0 to {top:.3g}", MUTED, SMALL)] if strongest else []
    return Row(lines, cells, "" if strongest else "no discriminative feature is highly active")


def _outcome(material: _Material, row: int) -> list[Line]:
    correct, predicted = material.value("correct", row), material.value("predicted", row)
    if correct is None:
        return []
    if correct:
        return [Line("classified correctly", GOOD, SMALL)]
    return [Line("misclassified" if predicted is None else f"taken for {predicted}", BAD, SMALL)]


def _frame(material: _Material, row: int) -> str | None:
    return {True: GOOD, False: BAD, None: None}[material.value("correct", row)]


def _draw_feature(
    card: dict[str, Any], material: _Material, looker: Looker, out: Path, n_features: int
) -> dict[str, Any]:
    feature = card["feature"]
    top = material.activity.top(feature, TOP)
    found = list(looker.look([(int(material.positions[row]), [feature]) for row, _ in top]))
    largest = max((float(one.heat[0].max()) for one in found), default=0.0)
    plain = [Cell(one.image, (), _frame(material, row)) for (row, _), one in zip(top, found, strict=True)]
    overlays = []
    for (row, deviation), one in zip(top, found, strict=True):
        label = material.value("label", row)
        name = Line(str(material.value("id", row) if label is None else label), "#1d2430", SMALL)
        lines = [name, *_outcome(material, row), Line(f"deviation {deviation:.3g}", MUTED, SMALL)]
        overlays.append(Cell(overlay(one.image, one.heat[0], largest), lines))
    title = f"Feature {feature}: highly active in {_percent(card['activation_rate'])} of the fitted rows"
    title += f", rank {card['rank']:,} of {n_features:,}"
    notes = [describe_card(card), f"The images with the largest deviation; one colour scale. Heat: {looker.method}."]
    sheet, strip = draw_strip(title, notes, plain, overlays, looker.side, TOP, f"{largest:.3g}")
    file = f"features/feature-{feature:04d}.png"
    save(sheet, out / file)
    return {"feature": feature, "file": file, "strip": list(strip), "alt": f"{title}. {notes[0]}"}


def describe_card(card: dict[str, Any]) -> str:
    """Say in words what a row of `feature_cards` holds.

    Examples
    --------
    >>> describe_card({"q_share": 0.25, "n_active": 4, "correct_share": 0.5, "correct_base": 0.75})
    'Gives 25 % of Q. Of its 4 rows here 50 % are classified correctly, of all rows 75 %.'
    """
    said = [f"Gives {_percent(card['q_share'])} of Q."]
    n = card["n_active"]
    among = []
    if card.get("classes"):
        (first, share), *others = zip(card["classes"], card["class_shares"], strict=True)
        among.append(f"{_percent(share)} are {first}, {card['lift']:.1f} times its share of all rows")
        among += [f"{_percent(share)} {name}" for name, share in others]
    if card.get("correct_share") is not None:
        right, base = _percent(card["correct_share"]), _percent(card["correct_base"])
        among.append(f"{right} are classified correctly, of all rows {base}")
    if among:
        said.append(f"Of its {n:,} rows here {'; '.join(among)}.")
    if card.get("attribute"):
        told = f"{card['adjusted_information']:.2f} of 1"
        said.append(f"It tells most of the {card['attribute']} ({told}): {card['attribute_value']}.")
    if card.get("correlated"):
        pairs = zip(card["correlated"], card["correlation"], strict=True)
        said.append(f"Correlated with {', '.join(f'{j} ({r:+.2f})' for j, r in pairs)}.")
    return " ".join(said)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _draw_average(
    material: _Material, embeddings: str | Path | None, n_features: int, out: Path
) -> tuple[dict[str, Any] | None, str]:
    discriminative = material.activity.discriminative
    if embeddings is None:
        return None, "Average representations are not drawn, and cards name no correlated features: no embedding table."
    if not len(discriminative):
        return None, "Average representations are not drawn: no feature is discriminative."
    groups = class_groups(material.rows)
    if groups is None:
        groups = find_clusters(embeddings, material.rows, discriminative, n_features, material.seed)
    found = average_representations(embeddings, material.rows, groups, discriminative, n_features)
    _write(average_table(found), "average", out / "average.parquet")
    save(draw_average(found), out / "average.png")
    what = f"{groups.count} by {len(discriminative)} discriminative features"
    beside = ", correctly classified rows beside misclassified ones" if len(found.outcomes) > 1 else ""
    record = {
        "file": "average.png",
        "table": "average.parquet",
        "groups": groups.kind,
        "alt": f"Mean representations of {what}{beside}",
    }
    return record, f"Average representations are drawn for {what}{beside}."
