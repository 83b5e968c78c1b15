"""What `qscore explain` found, for the report: pictures inlined, cards, and what was measured of them."""

import base64
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import altair as alt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from qscore._files import sha256
from qscore._validate import QScoreError
from qscore.report.charts import HEIGHT, WIDTH, data

__all__ = ["look_chart", "read_why"]

FOLDER = "heatmaps"
STRIP = (512, 136)  # a feature's pictures at most, in pixels
SAMPLES = {"lowest": "Lowest Q: represented badly", "highest": "Highest Q: represented well"}
SETS = {
    "discriminative": "discriminative features, D",
    "outside": "features outside D",
    "random": "random features",
    "frequent": "most frequent features",
    "gaussian": "a centred map",
    "random_map": "a random map",
}


def read_why(run: Path) -> dict[str, Any]:
    """Read ``heatmaps/explain.json`` and the pictures it names; nothing where it is not there.

    Returns
    -------
    dict
        ``sentences``, ``claims``, ``kinds`` and ``localisation``, ``samples``, ``cards``, ``n_cards``, ``average``,
        ``points``, ``method``: what is missing is empty.

    Raises
    ------
    QScoreError
        If the file is damaged, or belongs to other scores.
    """
    folder = run / FOLDER
    if not (folder / "explain.json").exists():
        return {}
    try:
        found = json.loads((folder / "explain.json").read_text(encoding="utf-8"))
        digest = found["scores"]["sha256"]
        why = _contents(folder, found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise QScoreError(f"{run}: {FOLDER}/explain.json is not what qscore explain wrote") from error
    if digest != sha256(run / "scores.parquet"):
        raise QScoreError(f"{run}: {FOLDER} belongs to other scores; run qscore explain again with --overwrite")
    return why


def look_chart(points: Mapping[str, list[float]], kinds: tuple[str, str]) -> Any:
    """Draw where features look against what they carry, a point a feature."""
    rows = [
        {"feature": feature, "carries": carries, "looks": looks}
        for feature, carries, looks in zip(points["feature"], points["carries"], points["looks"], strict=True)
    ]
    axes = {
        "x": alt.X("carries:Q", title="information: best of the object minus best of the background"),
        "y": alt.Y("looks:Q", title=f"looks: {kinds[0]} IoU minus {kinds[1]} IoU"),
    }
    zero = [
        alt.Chart(data([{"zero": 0.0}])).mark_rule(color="#999999", strokeDash=[4, 4]).encode(**{axis: "zero:Q"})
        for axis in ("x", "y")
    ]
    dots = alt.Chart(data(rows), title="What features carry, and where they look").mark_point(
        filled=True, size=30, opacity=0.6, color="#4477aa"
    )
    tooltip = ["feature:Q", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("carries", "looks"))]
    return alt.layer(*zero, dots.encode(**axes, tooltip=tooltip)).properties(width=2 * WIDTH, height=HEIGHT)


def _contents(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    pictures = found.get("pictures") or {}
    kinds = found.get("kinds")
    samples = pictures.get("samples") or {}
    average = pictures.get("average")
    cards = pictures.get("cards") or {}
    return {
        "sentences": [str(said) for said in (*(found.get("sentences") or ()), *(pictures.get("sentences") or ()))],
        "claims": _claims(found.get("claims") or {}),
        "kinds": list(kinds or ()),
        "localisation": _localisation(found.get("localisation") or [], kinds or ()),
        "samples": [
            {"title": title, "image": image, "alt": samples[name]["alt"]}
            for name, title in SAMPLES.items()
            if name in samples and (image := _png(folder, samples[name]["file"]))
        ],
        "cards": _cards(folder, pictures.get("features") or [], cards),
        "n_cards": cards.get("n", 0),
        "average": average and {"image": _png(folder, average["file"]), "alt": average["alt"]},
        "points": ((found.get("scatter") or {}).get("points")) if kinds else None,
        "method": found.get("method"),
    }


def _claims(claims: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return verdicts with their conditions."""
    return [
        {
            "claim": claim,
            "verdict": str(verdict),
            "conditions": [(str(text), bool(met)) for text, met in claims["conditions"].get(claim, {}).items()],
        }
        for claim, verdict in claims.get("verdicts", {}).items()
    ]


def _localisation(records: Iterable[Mapping[str, Any]], kinds: Iterable[str]) -> list[dict[str, Any]]:
    """Return the mean IoU of each set of features with each kind of mask."""
    shown = ("value", "low", "high", "n")
    iou = {(of["set"], of["kind"]): {name: of[name] for name in shown} for of in records if of["metric"] == "iou"}
    rows = [{"title": title, "values": [iou.get((name, kind)) for kind in kinds]} for name, title in SETS.items()]
    return [row for row in rows if any(row["values"])]


def _cards(folder: Path, features: list[dict[str, Any]], about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the cards of features that have pictures, each with its strip of them."""
    known: dict[int, dict[str, Any]] = {}
    path = _inside(folder, about["file"]) if about.get("file") else None
    if path is not None and features:
        table = pq.read_table(path)
        shown = pc.is_in(table.column("feature"), pa.array([one["feature"] for one in features], pa.int32()))
        known = {card["feature"]: card for card in table.filter(shown).to_pylist()}
    return [
        {"feature": one["feature"], "alt": one["alt"], "image": strip, "card": known.get(one["feature"], {})}
        for one in features
        if (strip := _strip(folder, one)) is not None
    ]


def _inside(folder: Path, name: str) -> Path | None:
    """Return a file of the folder, or None where it has gone."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name} is not in {folder}")
    return path if path.is_file() else None


def _png(folder: Path, name: str) -> str | None:
    """Return a picture as it is, as a data URI."""
    path = _inside(folder, name)
    return None if path is None else _uri("png", path.read_bytes())


def _strip(folder: Path, feature: Mapping[str, Any]) -> str | None:
    """Return the pictures of a feature, without the words around them, at the size of a table's row."""
    path = _inside(folder, feature["file"])
    if path is None:
        return None
    with Image.open(path) as sheet:
        part = sheet.convert("RGB").crop(tuple(feature["strip"]) if feature.get("strip") else None)
    part.thumbnail((2 * STRIP[0], 2 * STRIP[1]))  # twice, for fine screens
    buffer = io.BytesIO()
    part.save(buffer, format="WEBP", quality=85)
    return _uri("webp", buffer.getvalue())


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
