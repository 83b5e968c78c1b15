import base64
import io
import json
import re
import shutil
import subprocess
from html import unescape

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qscore import QScoreError, score
from qscore._files import sha256
from qscore.report import write_report
from qscore.tables import write_shard

CONDITION = "a core IoU above a random map's"


@pytest.fixture
def run(tmp_path, rng):
    """A run with what `qscore explain` leaves: sheets whose colours tell them apart, cards and explain.json."""
    H = rng.gamma(0.3, 1.0, size=(60, 40)).astype(np.float32)
    write_shard(tmp_path / "e.parquet", H, {"id": pa.array([f"i{k}" for k in range(60)])}, {})
    score(tmp_path / "e.parquet", tmp_path / "scores.parquet", epsilon=2.0)
    folder = tmp_path / "heatmaps"
    (folder / "features").mkdir(parents=True)
    sheets = {"lowest": (255, 0, 0), "highest": (0, 255, 0), "average": (0, 0, 255)}
    for name, colour in sheets.items():
        Image.new("RGB", (30, 20), colour).save(folder / f"{name}.png")
    for feature in (7, 12):
        sheet = Image.new("RGB", (200, 120), "white")
        sheet.paste(Image.new("RGB", (100, 40), (90, 10 * feature, 20)), (10, 30))
        sheet.save(folder / "features" / f"feature-{feature:04d}.png")
    cards = {
        "feature": pa.array([7, 12, 30], pa.int32()),
        "activation_rate": [0.125, 0.25, 0.5],
        "n_active": [1234, 5, 6],
        "q_share": [0.5, 0.25, 0.25],
        "classes": [["<cat>", "dog"], [], []],
        "class_shares": [[0.75, 0.25], [], []],
        "lift": [3.0, None, None],
        "correct_share": [0.5, None, 1.0],
        "correct_base": [0.6, 0.6, 0.6],
        "correlated": pa.array([[12, 30], [], []], pa.list_(pa.int32())),
        "correlation": [[0.5, -0.25], [], []],
        "attribute": ["background", None, None],
        "attribute_value": ["dots", None, None],
        "adjusted_information": [0.5, None, None],
    }
    pq.write_table(pa.table(cards), folder / "cards.parquet")
    found = {
        "scores": {"sha256": sha256(tmp_path / "scores.parquet")},
        "kinds": ["core", "spurious"],
        "sentences": ["D meets the core.", "C9 <holds>."],
        "claims": {
            "records": [],
            "verdicts": {"C9": "holds weakly", "C3": "cannot be tested"},
            "conditions": {"C9": {CONDITION: True, "a lift": False}, "C3": {}},
            "sentences": [],
        },
        "localisation": [
            {
                "kind": "core",
                "metric": "iou",
                "set": "discriminative",
                "value": 0.25,
                "low": 0.2,
                "high": 0.3,
                "n": 1234,
            },
            {"kind": "core", "metric": "iou", "set": "random_map", "value": 0.0625, "low": None, "high": None, "n": 1},
            {"kind": "core", "metric": "energy", "set": "discriminative", "value": 0.9, "low": 0.8, "high": 1.0},
        ],
        "scatter": {"points": {"feature": [7, 12], "carries": [0.1, -0.1], "looks": [0.5, -0.5]}},
        "method": "activation",
        "pictures": {
            "samples": {name: {"file": f"{name}.png", "ids": [], "alt": f"{name} <Q>"} for name in list(sheets)[:2]},
            "features": [
                {
                    "feature": feature,
                    "file": f"features/feature-{feature:04d}.png",
                    "strip": [10, 30, 110, 70],
                    "alt": f"Feature {feature}",
                }
                for feature in (7, 12)
            ],
            "cards": {"file": "cards.parquet", "n": 3, "shown": 2},
            "average": {"file": "average.png", "table": "average.parquet", "groups": "classes", "alt": "means"},
            "sentences": ["2 of the 3 features have pictures."],
        },
    }
    return tmp_path, found


def write(run, found):
    (run / "heatmaps" / "explain.json").write_text(json.dumps(found))
    return write_report(run).read_text()


def section(html):
    return re.search(r'<section id="why">(.*?)</section>', html, flags=re.S).group(1)


def pictures(html):
    """Alternative text and picture of each image."""
    found = re.findall(r'<img[^>]*src="data:image/(\w+);base64,([^"]+)" alt="([^"]*)"', html)
    return {unescape(alt): Image.open(io.BytesIO(base64.b64decode(data))) for _, data, alt in found}


def test_the_report_shows_why(run):
    html = write(*run)
    why = section(html)
    without_script = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert not re.search(r"""(src|href)=["'](?!data:)""", without_script)
    assert why.count("<img") == 5 == len(re.findall(r'<img[^>]* alt="[^"]+"', why))
    shown = pictures(why)
    assert [shown[alt].getpixel((9, 9)) for alt in ("lowest <Q>", "highest <Q>", "means")] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]
    for sentence in ("D meets the core.", "C9 &lt;holds&gt;.", "2 of the 3 features have pictures."):
        assert f"<li>{sentence}</li>" in why
    assert '<td>C9</td><td>holds weakly</td><td><span class="met">met: a core IoU above a random map' in why
    assert '<span class="unmet">not met: a lift</span>' in why
    assert "<td>C3</td><td>cannot be tested</td><td><em>none tested</em></td>" in why
    rows = re.findall(r"<tr[^>]*><td>([^<]*)</td><td>(.*?)</td><td>(.*?)</td></tr>", why)
    assert (
        "discriminative features, D",
        "0.250 <small>0.200 to 0.300</small>, <small>1,234 images</small>",
        "<em>undefined</em>",
    ) in rows
    assert ("a random map", "0.062, <small>1 images</small>", "<em>undefined</em>") in rows and "energy" not in why
    assert "What features carry, and where they look" in html and 'id="chart-look"' in why


def test_cards_stand_beside_strips_of_their_pictures(run):
    why = section(write(*run))
    strips = pictures(why)
    for feature in (7, 12):
        strip = strips[f"Feature {feature}"]
        assert strip.size == (100, 40)
        middle = np.asarray(strip.convert("RGB"))[2:-2, 2:-2].reshape(-1, 3)
        assert np.abs(middle - np.array([90, 10 * feature, 20])).max() <= 8  # what WebP makes of one colour
    rows = re.findall(r'<tr><td class="name">(\d+)</td>(.*?)</tr>', why, flags=re.S)
    assert [feature for feature, _ in rows] == ["7", "12"]
    text = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", rows[0][1])))
    assert "12 % of fitted rows 1,234 rows here gives 50 % of Q" in text
    assert "<cat> 75 %, 3.0 times its base rate dog 25 % correct 50 %, of all rows 60 %" in text
    assert "background: dots (0.50 of 1) goes with 12 (+0.50) , 30 (-0.25)" in text
    assert "correct" not in rows[1][1] and "goes with" not in rows[1][1] and "base rate" not in rows[1][1]
    assert "2 of 3, those that give most of Q; all stand in heatmaps/cards.parquet" in why


def test_what_is_missing_is_left_out(run):
    folder, found = run
    why = section(write(folder, {"scores": found["scores"]}))
    assert "<img" not in why and "<table" not in why and "<li>" not in why
    (folder / "heatmaps" / "lowest.png").unlink()
    (folder / "heatmaps" / "average.png").unlink()
    (folder / "heatmaps" / "cards.parquet").unlink()
    (folder / "heatmaps" / "features" / "feature-0007.png").unlink()
    why = section(write(folder, found))
    assert set(pictures(why)) == {"highest <Q>", "Feature 12"}
    assert "Average representations" not in why and "of fitted rows" not in why


def test_a_run_that_was_not_explained_has_no_such_section(run):
    assert '<section id="why">' not in write_report(run[0]).read_text()


def test_heatmaps_of_other_scores_are_refused(run):
    folder, found = run
    found["scores"]["sha256"] = "0" * 64
    with pytest.raises(
        QScoreError, match="heatmaps belongs to other scores; run qscore explain again with --overwrite"
    ):
        write(folder, found)


@pytest.mark.parametrize(
    "change",
    [
        {"scores": None},
        {"claims": {"verdicts": {"C9": "holds"}}},
        {"pictures": {"samples": {"lowest": {}}}},
        {"pictures": {"samples": {"lowest": {"file": "../scores.parquet", "alt": "x"}}}},
        {"pictures": {"features": [{"feature": 1, "file": "explain.json", "alt": "x"}]}},
        {"localisation": [{"metric": "iou"}]},
        {"localisation": [{"kind": "core", "metric": "iou", "set": "discriminative"}]},
    ],
)
def test_what_explain_did_not_write_is_refused(run, change):
    folder, found = run
    with pytest.raises(QScoreError, match=r"heatmaps/explain.json is not what qscore explain wrote"):
        write(folder, found | change)


def test_a_damaged_file_is_refused(run):
    (run[0] / "heatmaps" / "explain.json").write_text('{"scores"')
    with pytest.raises(QScoreError, match=r"heatmaps/explain.json is not what qscore explain wrote"):
        write_report(run[0])


@pytest.mark.browser
def test_the_pictures_and_the_chart_are_drawn_in_a_browser(run, tmp_path):
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium or google-chrome on the PATH")
    write(*run)
    page = (run[0] / "report.html").read_text()
    check = "<script>window.onload = () => { document.title = [...document.images].map(i => i.naturalWidth) }</script>"
    before, _, after = page.rpartition("</body>")  # the scripts may speak of others
    (tmp_path / "checked.html").write_text(f"{before}{check}</body>{after}")
    dom = subprocess.run(
        [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=10000"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom", (tmp_path / "checked.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    assert re.search(r"<title>(.*?)</title>", dom).group(1) == "30,30,100,100,30"
    assert re.search(r'<div id="chart-look"[^>]*class="[^"]*vega-embed', dom)
