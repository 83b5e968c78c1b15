import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn

from qscore import QScoreError
from qscore.encoders import Encoder, Preprocessing, Source
from qscore.explain.overlays import enlarge_image
from qscore.explain.pictures import draw_pictures
from qscore.images import open_images
from qscore.tables import write_shard

TOP = (240, 249, 33)
SIDE = 128
R = 6


class Planted(nn.Module):
    """Features that look at what is red, green and blue, and three that are never more than faint."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, R, 1, bias=False)
        self.mix.weight.data.zero_()
        for k in range(3):
            self.mix.weight.data[k, k] = 1.0
        self.mix.weight.data[3:] = 0.01
        self.rectify = nn.ReLU()

    def forward(self, x):
        return self.rectify(self.mix(x)).mean((2, 3))


@pytest.fixture
def planted(tmp_path, rng):
    """12 images, each dark but for one red or green square; the feature of that colour is in D, and active in it."""
    folder = tmp_path / "images"
    folder.mkdir()
    squares = []
    for k in range(12):
        pixels = rng.integers(0, 40, (32, 32, 3)).astype(np.uint8)
        pixels[..., k % 2] = 0
        y, x = rng.integers(0, 24, 2)
        pixels[y : y + 8, x : x + 8] = 0
        pixels[y : y + 8, x : x + 8, k % 2] = 255
        Image.fromarray(pixels).save(folder / f"{k:02d}.png")
        squares.append((pixels, y, x))
    encoder = Encoder(Planted(), Source("test", "planted", Preprocessing(32, mean=(0, 0, 0), std=(1, 1, 1))))
    images = open_images(folder)
    H = encoder(torch.stack([encoder.preprocess(images.image(i)) for i in range(12)])).detach().numpy()
    ids = [images.record(i).id for i in range(12)]
    write_shard(tmp_path / "e.parquet", H, {"id": pa.array(ids)}, {})
    q = [0.0, 0.0, *(0.1 * k for k in range(2, 12))]  # the first two have no active feature
    active = [[], [], *([k % 2, 5] for k in range(2, 12))]  # 5 is active and not in D
    rows = {
        "id": ids,
        "q_score": pa.array(q, pa.float32()),
        "active": pa.array(active, pa.list_(pa.int32())),
        "deviation": pa.array([[q[k], 9.0][: len(active[k])] for k in range(12)], pa.list_(pa.float32())),
        "valid": [True] * 12,
        "label": ["red", "green"] * 6,
        "correct": [k != 11 for k in range(12)],
        "predicted": ["red" if k == 11 else "x" for k in range(12)],
    }
    features = pa.table(
        {
            "feature": pa.array(range(R), pa.int32()),
            "count": [5, 5, 0, 0, 0, 10],
            "activation_rate": [0.4, 0.4, 0.0, 0.0, 0.0, 0.8],
            "rank": [3, 4, 0, 1, 2, 5],
            "discriminative": [True, True, False, False, False, False],
        }
    )
    return images, encoder, pa.table(rows), features, tmp_path, squares


def draw(planted, method="activation", **changes):
    images, encoder, rows, features, folder, _ = planted
    options = {"embeddings": folder / "e.parquet", "layer": None, "batch_size": 5, "seed": 0} | changes
    rows, features = options.pop("rows", rows), options.pop("features", features)
    return draw_pictures(images, encoder, rows, features, folder / "out", method=method, **options)


def places(sheet, picture):
    pixels, (h, w, _) = np.asarray(sheet.convert("RGB")), picture.shape
    starts = np.argwhere((pixels[: len(pixels) - h + 1, : pixels.shape[1] - w + 1] == picture[0, 0]).all(-1))
    return [(int(x), int(y)) for y, x in starts if (pixels[y : y + h, x : x + w] == picture).all()]


def hottest(sheet, x, y):
    """Rows and columns, in pixels of the image, at which an overlay has the top colour."""
    cell = np.asarray(sheet.convert("RGB"))[y : y + SIDE, x : x + SIDE]
    return np.argwhere((cell == TOP).all(-1)) // (SIDE // 32)


def check_overlay(sheet, corner, square):
    """The overlay is hottest inside the square, and nowhere else; far from it the image is left as it is."""
    x, y = corner
    pixels, top, left = square
    found = hottest(sheet, x, y)
    assert len(found) > 50
    rows, columns = found.T
    assert (rows >= top).all() and (rows < top + 8).all() and (columns >= left).all() and (columns < left + 8).all()
    plain, cell = enlarge_image(pixels, SIDE), np.asarray(sheet.convert("RGB"))[y : y + SIDE, x : x + SIDE]
    far = np.ones((32, 32), dtype=bool)
    far[max(0, top - 1) : top + 9, max(0, left - 1) : left + 9] = False
    far = far.repeat(4, 0).repeat(4, 1)
    assert (cell[far] == plain[far]).all()


def test_the_grids_show_the_extremes_and_where_their_features_look(planted):
    found = draw(planted)
    assert found["samples"]["highest"]["ids"] == [f"{k:02d}.png" for k in (11, 10, 9, 8, 7, 6, 5, 4)]
    lowest = found["samples"]["lowest"]["ids"]
    assert set(lowest[:2]) == {"00.png", "01.png"} and lowest[2:] == [f"{k:02d}.png" for k in range(2, 8)]
    squares, folder = planted[5], planted[4] / "out"
    for name in ("lowest", "highest"):
        with Image.open(folder / f"{name}.png") as sheet:
            for k in (int(id[:2]) for id in found["samples"][name]["ids"]):
                [(x, y)] = places(sheet, enlarge_image(squares[k][0], SIDE))
                beside = np.asarray(sheet.convert("RGB"))[y : y + SIDE, x + SIDE + 8 : x + 2 * SIDE + 8]
                if k < 2:
                    assert not (beside == TOP).all(-1).any()
                else:
                    check_overlay(sheet, (x + SIDE + 8, y), squares[k])


def test_a_features_sheet_shows_its_top_images(planted):
    found = draw(planted)
    assert [one["feature"] for one in found["features"]] == [1, 0]  # green squares have the larger deviations
    assert found["cards"] == {"file": "cards.parquet", "n": 2, "shown": 2}
    squares, folder = planted[5], planted[4] / "out"
    for one in found["features"]:
        assert one["file"] == f"features/feature-{one['feature']:04d}.png"
        tops = [k for k in range(11, 1, -1) if k % 2 == one["feature"]]
        with Image.open(folder / one["file"]) as sheet:
            strip = sheet.crop(one["strip"])
        assert strip.height == 2 * SIDE + 4 + 3
        corners = [places(strip, enlarge_image(squares[k][0], SIDE))[0] for k in tops]
        assert corners == [(3 + n * (SIDE + 8), 3) for n in range(5)]
        for k, (x, y) in zip(tops, corners, strict=True):
            check_overlay(strip, (x, y + SIDE + 4), squares[k])


@pytest.mark.parametrize("method", ["gradcam", "gradient", "integrated_gradients"])
def test_any_method_draws(planted, method):
    found = draw(planted, method, embeddings=None)
    assert len(found["features"]) == 2
    with Image.open(planted[4] / "out" / "highest.png") as sheet:
        [(x, y)] = places(sheet, enlarge_image(planted[5][11][0], SIDE))
        assert len(hottest(sheet, x + SIDE + 8, y)) > 50


def test_batches_change_nothing(planted):
    names = ("lowest.png", "highest.png", "features/feature-0000.png")
    draw(planted, batch_size=1)
    one = [(planted[4] / "out" / name).read_bytes() for name in names]
    draw(planted, batch_size=64)
    assert [(planted[4] / "out" / name).read_bytes() for name in names] == one


def test_tables_and_the_average_are_written(planted):
    found = draw(planted)
    out = planted[4] / "out"
    cards = pq.read_table(out / "cards.parquet")
    assert json.loads(cards.schema.metadata[b"qscore"]) == {"kind": "cards", "version": 1}
    assert cards["feature"].to_pylist() == [1, 0] and cards["correlated"].to_pylist()[0]
    assert cards["classes"].to_pylist() == [["green"], ["red"]] and cards["lift"].to_pylist() == [2.0, 2.0]
    average = pq.read_table(out / "average.parquet")
    assert average.num_rows == 2 * 2 * 2
    assert found["average"]["groups"] == "classes" and (out / "average.png").exists()
    assert found["sentences"] == [
        "2 of the 2 discriminative features have pictures: those that give most of Q, together 100 % of it.",
        "Average representations are drawn for 2 classes by 2 discriminative features, correctly classified rows "
        "beside misclassified ones.",
    ]
    json.dumps(found, allow_nan=False)
    assert "green, 2.0 times its share of all rows" in found["features"][0]["alt"]


def test_what_an_earlier_run_drew_is_not_left_behind(planted):
    draw(planted)
    out = planted[4] / "out"
    (out / "mine.txt").write_text("kept")
    found = draw(planted, embeddings=None, n_features=1)
    assert found["average"] is None and found["cards"] == {"file": "cards.parquet", "n": 2, "shown": 1}
    assert found["sentences"][1].endswith("no embedding table.")
    left = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert left == ["cards.parquet", "features/feature-0001.png", "highest.png", "lowest.png", "mine.txt"]


def test_a_run_without_labels_outcomes_and_discriminative_features(planted):
    rows, features = planted[2].drop_columns(["label", "correct", "predicted"]), planted[3]
    found = draw(planted, rows=rows)
    assert found["average"]["groups"] == "clusters"
    none = features.set_column(features.column_names.index("discriminative"), "discriminative", pa.array([False] * R))
    found = draw(planted, rows=rows, features=none)
    assert found["features"] == [] and found["cards"]["n"] == 0 and found["average"] is None
    assert found["sentences"][1] == "Average representations are not drawn: no feature is discriminative."
    assert len(set(found["samples"]["lowest"]["ids"])) == 8


def test_invalid_rows_are_left_out(planted):
    rows = planted[2]
    valid = pa.array([k not in (11, 4) for k in range(12)])
    found = draw(planted, rows=rows.set_column(rows.column_names.index("valid"), "valid", valid))
    assert found["samples"]["highest"]["ids"][0] == "10.png"
    assert "04.png" not in found["samples"]["lowest"]["ids"] + found["samples"]["highest"]["ids"]


def test_attributes_of_drawn_shapes_are_on_the_cards(planted):
    _, encoder, _, features, folder, _ = planted
    images = open_images("shapes:n=200,size=32,spurious=0")
    ids = [images.record(i).id for i in range(200)]
    pick = np.random.default_rng(0).permutation(200)[:160]  # rows need not be in the images' order, nor be all of them
    red = [images.attributes(int(i))["colour"] == "red" for i in pick]
    rows = pa.table(
        {
            "id": [ids[i] for i in pick],
            "q_score": pa.array([1.0] * 160, pa.float32()),
            "active": pa.array([[0] if on else [1] for on in red], pa.list_(pa.int32())),
            "deviation": pa.array([[1.0]] * 160, pa.list_(pa.float32())),
            "valid": [True] * 160,
        }
    )
    out = folder / "shapes"
    draw_pictures(
        *(images, encoder, rows, features, out), embeddings=None, method="activation", layer=None, batch_size=8, seed=0
    )
    cards = {card["feature"]: card for card in pq.read_table(out / "cards.parquet").to_pylist()}
    assert 10 <= sum(red) <= 150
    assert (cards[0]["attribute"], cards[0]["attribute_value"]) == ("colour", "red")


def test_what_does_not_belong_together_is_refused(planted):
    _, _, rows, features, *_ = planted
    other = rows.set_column(0, "id", pa.array(["gone", *rows["id"].to_pylist()[1:]]))
    with pytest.raises(
        QScoreError, match=r"1 of 12 scored rows have no image here, the first is 'gone'; name the imag"
    ):
        draw(planted, rows=other)
    with pytest.raises(
        QScoreError, match=r"expected one with the 4 features of the feature table, got 6; name the enc"
    ):
        draw(planted, features=features.slice(0, 4))
    nothing = rows.set_column(rows.column_names.index("valid"), "valid", pa.array([False] * 12))
    with pytest.raises(QScoreError, match="expected valid rows of a score table, got none"):
        draw(planted, rows=nothing)
