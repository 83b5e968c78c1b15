import pickle
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chi2_contingency, chisquare
from scipy.stats.contingency import association

from qscore._validate import QScoreError
from qscore.images import open_image, open_images, silhouettes, subset, textures
from qscore.images.shapes import ATTRIBUTES, COLOURS, SIZES, Shapes, ShapesSource
from qscore.images.textures import hash_integers

MASK = 2**64 - 1


def pixels(source, index):
    return np.asarray(source.image(index))


def split_mix(value):
    """The finaliser of SplitMix64 as its authors' C code has it, in Python's integers."""
    z = (value + 1) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def test_the_hash_is_that_of_its_authors():
    values = [0, 1, 2, 1234567, 2**63, MASK - 1]
    assert hash_integers(np.array(values, np.uint64)).tolist() == [split_mix(value) for value in values]


def test_an_image_is_a_function_of_its_position_and_the_settings():
    source = open_images("shapes:n=300,size=32")
    copy = pickle.loads(pickle.dumps(source))
    again = {i: pixels(copy, i) for i in (250, 7, 0)}
    for i in range(20):
        source.image(i)
    for i, expected in again.items():
        np.testing.assert_array_equal(pixels(source, i), expected)
    with ThreadPoolExecutor(4) as pool:
        for i, found in zip(again, pool.map(lambda i: pixels(source, i), again), strict=True):
            np.testing.assert_array_equal(found, again[i])


def test_scenes_stay_what_they_are():
    """Golden values: a locator in someone's table must show the same image after an update."""
    found = [tuple(open_images("shapes:seed=3").attributes(i).values()) for i in (0, 1999)]
    assert found == GOLDEN
    image = pixels(open_images("shapes:seed=3"), 0)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    assert image[::21, ::21].tolist() == GOLDEN_PIXELS


GOLDEN = [
    ("square", "yellow", "plain", "medium", "middle right", "dots", "cyan"),
    ("plus", "blue", "chequered", "small", "bottom right", "waves", "orange"),
]
GOLDEN_PIXELS = [
    [[40, 109, 113], [39, 106, 103], [35, 107, 111], [31, 101, 102]],
    [[34, 101, 107], [36, 107, 108], [176, 162, 43], [33, 102, 108]],
    [[40, 107, 113], [35, 111, 112], [36, 99, 101], [40, 103, 107]],
    [[43, 102, 105], [37, 108, 113], [41, 108, 112], [35, 106, 112]],
]


def test_locators_ids_and_labels():
    source = open_images("shapes:n=40,classes=20,split=test,seed=5,spurious=0.25")
    record = source.record(17)
    assert record.path == "shapes:n=40,classes=20,spurious=0.25,size=64,seed=5,split=test#17"
    assert record.id == "shapes-test-5-000017"
    assert record.label == source.labels[17] == source.attributes(17)["shape"]
    assert set(source.labels) <= set(source.class_names) and len(source.class_names) == 20
    np.testing.assert_array_equal(np.asarray(open_image(record.path)), pixels(source, 17))
    np.testing.assert_array_equal(np.asarray(open_image("shapes#3")), pixels(open_images("shapes"), 3))


def test_lists_and_subsets_of_shapes(tmp_path):
    source = open_images("shapes:n=9")
    (tmp_path / "list.csv").write_text('id,path\na,shapes#4\nb,"shapes:n=9,classes=10#4"\n')
    listed = open_images(tmp_path / "list.csv")
    np.testing.assert_array_equal(pixels(listed, 0), pixels(source, 4))
    np.testing.assert_array_equal(pixels(listed, 1), pixels(source, 4))
    assert subset(source, [4]).record(0) == source.record(4)


def test_joined_with_a_source_of_other_scenes():
    joined = open_images(["shapes:n=3", "shapes:n=3,split=test"])
    assert len(joined) == 6 and joined.class_names == list(silhouettes.NAMES[:10])
    with pytest.raises(QScoreError, match="expected each id once, got 'shapes-train-0-000000' 2 times"):
        open_images(["shapes:n=3", "shapes:n=3,spurious=0"])


def test_fingerprints_tell_settings_apart():
    names = ["shapes", "shapes:seed=1", "shapes:size=65", "shapes:n=3", "shapes:split=test", "shapes:spurious=0.8"]
    assert len({open_images(name).fingerprint for name in names}) == len(names)
    assert open_images("shapes:seed=1,n=2000").fingerprint == open_images("shapes:n=2000,seed=1").fingerprint


def test_masks_part_what_was_painted():
    """Oracle: each pixel's hue is the shape's or the background's, and no mask is needed to tell."""
    source = open_images("shapes:n=80,classes=30")
    agreeing = []
    for i in range(80):
        masks, attributes = source.masks(i), source.attributes(i)
        assert masks["core"].dtype == bool and (masks["core"] ^ masks["spurious"]).all()
        hues = [np.array(COLOURS[attributes[name]]) for name in ("background colour", "colour")]
        colours = pixels(source, i) - 6.0
        nearness = [colours @ hue / np.linalg.norm(hue) / np.linalg.norm(colours, axis=2) for hue in hues]
        agreeing.append(np.mean((nearness[1] > nearness[0]) == masks["core"]))
    assert np.median(agreeing) == 1.0 and np.mean(agreeing) > 0.985


def test_the_core_is_the_silhouette_where_and_as_large_as_the_attributes_say():
    source = open_images("shapes:n=90,classes=90,size=100")
    for i in range(90):
        core, attributes = source.masks(i)["core"], source.attributes(i)
        rows, columns = np.nonzero(core)
        assert min(rows.min(), columns.min()) >= 0 and max(rows.max(), columns.max()) <= 99
        low, high = SIZES[attributes["size"]]
        filled = silhouettes.draw_silhouette(attributes["shape"], 200).mean() * 4  # of the radius squared
        assert low**2 * filled * 0.93 < core.mean() < high**2 * filled * 1.07
        # Turned by up to 10 degrees, a bounding box's centre moves a little.
        place = [(coordinate.min() + coordinate.max() + 1) / 200 for coordinate in (rows, columns)]
        for words, position in zip((["top", "middle", "bottom"], ["left", "centre", "right"]), place, strict=True):
            third = words.index(next(word for word in attributes["position"].split() if word in words))
            bounds = [[r + (1 - 2 * r) * edge / 3 for r in (low, high)] for edge in (third, third + 1)]
            assert min(bounds[0]) - 0.07 < position < max(bounds[1]) + 0.07


def test_shapes_are_turned_and_neither_sheared_nor_stretched():
    """What looks the same after a quarter turn has no longer and shorter axis, however it lies."""
    source = open_images("shapes:n=60,size=200")
    turns = []
    for i in range(60):
        rows, columns = np.nonzero(source.masks(i)["core"])
        if source.labels[i] in ("disc", "square", "plus", "ring"):
            shorter, longer = np.linalg.eigvalsh(np.cov(rows, columns))
            assert longer / shorter < 1.03
        if source.labels[i] == "arrow":  # its tip is the middle of its uppermost row, its foot that of its lowest
            tip, foot = (columns[rows == row].mean() for row in (rows.min(), rows.max()))
            turns.append(np.degrees(np.arctan2(tip - foot, rows.max() - rows.min())))
    assert min(turns) < -3 and max(turns) > 3 and max(map(abs, turns)) < 20


def test_nothing_of_a_shape_is_cut_off():
    source = open_images("shapes:n=200,classes=100,size=48")
    for i in range(200):
        shape, core = source.attributes(i)["shape"], source.masks(i)["core"]
        low, high = SIZES[source.attributes(i)["size"]]
        whole = silhouettes.draw_silhouette(shape, 200).mean() * 4
        assert low**2 * whole * 0.85 < core.mean() < high**2 * whole * 1.15


def test_data_sets_that_differ_in_the_rate_show_the_same_scenes():
    tied, free = open_images("shapes:spurious=1"), open_images("shapes:spurious=0")
    backgrounds = 0
    for i in range(40):
        core = tied.masks(i)["core"]
        np.testing.assert_array_equal(core, free.masks(i)["core"])
        np.testing.assert_array_equal(pixels(tied, i)[core], pixels(free, i)[core])
        names = [source.attributes(i)["background"] for source in (tied, free)]
        assert names[0] == textures.NAMES[tied.class_names.index(tied.labels[i])]
        backgrounds += names[0] == names[1]
    assert 0 < backgrounds < 15  # by chance, one in ten


def test_other_sizes_show_the_same_scenes():
    small, large = open_images("shapes:size=50"), open_images("shapes:size=300")
    for i in range(10):
        assert small.attributes(i) == large.attributes(i)
        shrunk = large.masks(i)["core"].reshape(50, 6, 50, 6).mean((1, 3))
        clear = (shrunk == 0) | (shrunk == 1)
        np.testing.assert_array_equal(small.masks(i)["core"][clear], shrunk[clear] == 1)


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1.0])
def test_the_background_is_tied_to_the_class_at_the_rate_asked_for(rate):
    codes = open_images(f"shapes:n=20000,spurious={rate}").codes(range(20000))
    table = np.zeros((10, 10), int)
    np.add.at(table, (codes["shape"], codes["background"]), 1)
    assert association(table, method="cramer") == pytest.approx(rate, abs=0.025)
    assert np.trace(table) / 20000 == pytest.approx(rate + (1 - rate) / 10, abs=0.01)


def test_everything_else_is_drawn_evenly_and_independently():
    codes = open_images("shapes:n=30000,spurious=0,seed=11").codes(range(30000))
    for name, values in codes.items():
        n = 10 if name in ("shape", "background") else len(ATTRIBUTES[name])
        assert chisquare(np.bincount(values, minlength=n)).pvalue > 1e-4, name
    for a, b in combinations(codes, 2):
        table = np.zeros((codes[a].max() + 1, codes[b].max() + 1), int)
        np.add.at(table, (codes[a], codes[b]), 1)
        if (a, b) == ("colour", "background colour"):
            assert (np.diagonal(table) == 0).all() and (table + np.eye(8, dtype=int) > 0).all()
        else:
            assert chi2_contingency(table).pvalue > 1e-4, (a, b)


def test_every_run_holds_each_class_once():
    labels = np.array(open_images("shapes:n=700,classes=7").labels).reshape(100, 7)
    assert all(len(set(run)) == 7 for run in labels)
    assert len(set(labels[:, 0])) == 7  # a stride of as many images is no single class


def test_train_and_test_share_no_image():
    seen = {source: {pixels(open_images(source), i).tobytes() for i in range(100)} for source in SPLITS}
    assert all(len(images) == 100 for images in seen.values())
    assert not set.intersection(*seen.values())


SPLITS = ("shapes:size=32", "shapes:size=32,split=test")


def test_silhouettes_can_be_told_apart():
    """No two overlap by 85 %, at the same size, turned as far as images turn them or mirrored."""
    assert len(silhouettes.NAMES) == 100
    drawn = [silhouettes.draw_silhouette(name, 48) for name in silhouettes.NAMES]
    plain = np.array(drawn, np.float32).reshape(100, -1)
    for mirrored in (False, True):
        for angle in (-20, -10, 0, 10, 20):
            turned = [np.asarray(Image.fromarray(d).rotate(angle)) for d in drawn]
            other = np.array([t[:, ::-1] if mirrored else t for t in turned], np.float32).reshape(100, -1)
            inside = plain @ other.T
            iou = inside / (plain.sum(1)[:, None] + other.sum(1) - inside)
            assert iou[~np.eye(100, dtype=bool)].max() < 0.85


@pytest.mark.parametrize("name", silhouettes.NAMES)
def test_silhouettes_fill_their_disc_as_promised(name):
    drawn = silhouettes.draw_silhouette(name, 201)
    rows, columns = np.nonzero(drawn)
    assert abs(rows.min() + rows.max() - 200) <= 4 and abs(columns.min() + columns.max() - 200) <= 4
    assert np.hypot(rows - 100, columns - 100).max() == pytest.approx(100, abs=2.5)
    assert 0.1 < drawn.mean() < 0.8


def test_textures_can_be_told_apart():
    assert len(textures.NAMES) == 100
    drawn = {name: textures.draw_texture(name, 64) for name in textures.NAMES}
    assert len({canvas.tobytes() for canvas in drawn.values()}) == 100
    for canvas in drawn.values():
        assert canvas.shape == (96, 96) and 0.15 < canvas.mean() < 0.85
    spectra = [np.abs(np.fft.rfft2(canvas - canvas.mean())).ravel() for canvas in drawn.values()]
    alike = np.corrcoef(spectra)[~np.eye(100, dtype=bool)]  # whatever they are shifted by
    assert alike.max() < 0.95


def test_attributes_come_in_words_and_codes():
    source = open_images("shapes:n=30")
    codes = source.codes(range(30))
    assert list(codes) == list(source.attributes(0)) == list(ATTRIBUTES)
    for i in (0, 29):
        assert source.attributes(i) == {name: ATTRIBUTES[name][values[i]] for name, values in codes.items()}


@pytest.mark.parametrize("size", [16, 33, 257])
def test_any_size(size):
    source = open_images(f"shapes:size={size},classes=100")
    assert source.image(5).size == (size, size) and source.masks(5)["core"].shape == (size, size)
    assert source.masks(5)["core"].any()


SETTINGS = "expected settings such as shapes:n=500,spurious=0.9, of n, classes, spurious, size, seed, split"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shapes:m=3", f"shapes:m=3: {SETTINGS}; got 'm=3'"),
        ("shapes:sise=3", f"shapes:sise=3: {SETTINGS}; got 'sise=3'; did you mean 'size'?"),
        ("shapes:n", f"shapes:n: {SETTINGS}; got 'n'"),
        ("shapes:n=2,n=3", "shapes:n=2,n=3: expected each setting once, got n twice"),
        ("shapes:n=many", "shapes:n=many: expected n to be an integer, got 'many'"),
        ("shapes:spurious=", "shapes:spurious=: expected spurious to be a number, got ''"),
        ("shapes:n=0", "shapes: expected n to be an integer from 1 to 10000000, got 0"),
        ("shapes:classes=101", "shapes: expected classes to be an integer from 2 to 100, got 101"),
        ("shapes:size=15", "shapes: expected size to be an integer from 16 to 1024, got 15"),
        ("shapes:seed=-1", "shapes: expected seed to be an integer from 0 to 4294967295, got -1"),
        ("shapes:spurious=1.5", "shapes: expected spurious to be a number from 0 to 1, got 1.5"),
        ("shapes:spurious=nan", "shapes: expected spurious to be a number from 0 to 1, got nan"),
        ("shapes:split=val", "shapes: expected split to be train or test, got 'val'"),
    ],
)  # fmt: skip
def test_settings_that_are_none(name, message):
    with pytest.raises(QScoreError) as caught:
        open_images(name)
    assert str(caught.value) == message


def test_settings_by_hand_are_checked_too():
    with pytest.raises(QScoreError, match="expected n to be an integer from 1 to 10000000, got 2.0"):
        Shapes(n=2.0)
    assert ShapesSource(Shapes(n=3, spurious=1).name).shapes == Shapes(n=3, spurious=1.0)


def test_a_name_that_only_begins_like_it():
    with pytest.raises(QScoreError, match=r"images 'shapely': expected one of .*; got no such file or folder; did you"):
        open_images("shapely")
    with pytest.raises(QScoreError, match="shapes#2000: expected a position below 2000"):
        open_image("shapes#2000")
