"""Salient ImageNet's layout with images and masks of our own: nothing of it may be redistributed."""

import numpy as np
import pytest
import torch
from PIL import Image

from qscore import QScoreError
from qscore.encoders import Preprocessing
from qscore.explain import open_masks
from qscore.explain.salient import FRAME, read_answers, read_classes
from qscore.images import open_images

CLASSES = {0: "n01440764", 309: "n02206856", 325: "n02281787"}
# Answers that are not the object's, of each class and feature.
VOTES = {("n01440764", 59): 0, ("n01440764", 686): 2, ("n01440764", 701): 3, ("n01440764", 2030): 5}
VOTES |= {("n02206856", 1941): 0, ("n02281787", 595): 4}
HEADER = (
    "WorkerId,Input.wordnet_id,Input.class_index,Input.feature_index,Input.feature_rank,Answer.main,Answer.confidence,"
    "Answer.reasons"
)


def answers(votes=VOTES, header=HEADER):
    indices = {wnid: index for index, wnid in CLASSES.items()}
    lines = [header]
    for (wnid, feature), strange in votes.items():
        for worker in range(5):
            answer = ("background", "separate_object")[worker % 2] if worker < strange else "main_object"
            lines.append(f'{worker},{wnid},{indices[wnid]},{feature},1,{answer},4.0,"it is, they say, so"')
    return "\n".join(lines) + "\n"


def blob(x, y, size=(80, 60), r=12):
    rows, columns = np.mgrid[: size[1], : size[0]]
    distance = np.hypot(rows - y, columns - x) / r
    return np.clip(255 * (1.5 - distance), 0, 255).astype(np.uint8)


def save(path, array, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).convert(mode).save(path, quality=95, format="JPEG")


PLACES = {59: (20, 20), 686: (60, 40), 701: (40, 30), 2030: (10, 50)}


@pytest.fixture
def salient(tmp_path):
    """Four features of one class, each of other images; two images of ImageNet that are in no list."""
    root, wnid = tmp_path / "salient", CLASSES[0]
    (root / wnid).mkdir(parents=True)
    (root / "wordnet_dict.py").write_text(repr(CLASSES))
    (root / "discover_spurious_features.csv").write_text(answers())
    (root / wnid / "image_names_map.csv").write_text(
        f"59,686,701,2030\n{wnid}_1,{wnid}_1,{wnid}_1,{wnid}_2\n{wnid}_3,{wnid}_2,{wnid}_4,{wnid}_1\n"
    )
    for feature, stems in {59: (1, 3), 686: (1, 2), 701: (1, 4), 2030: (2, 1)}.items():
        for stem in stems:
            save(root / wnid / f"feature_{feature}" / f"{wnid}_{stem}.JPEG", blob(*PLACES[feature]))
    for stem in range(1, 6):
        save(tmp_path / "train" / wnid / f"{wnid}_{stem}.JPEG", np.full((60, 80), 99, np.uint8), "RGB")
    save(tmp_path / "train" / CLASSES[325] / f"{CLASSES[325]}_1.JPEG", np.full((60, 80), 99, np.uint8), "RGB")
    return tmp_path


def opened(folder):
    return open_masks(folder / "salient", open_images(folder / "train"))


def refusal(folder, position=None):
    with pytest.raises(QScoreError) as caught:
        masks = opened(folder)
        masks.prepare(masks.positions[position or 0], PLAIN)
    return str(caught.value).replace(str(folder), "...")


PLAIN = Preprocessing(crop=60)


def close(found, *places):
    """Tell whether a mask is the largest of some blobs, but for what JPEG does to it."""
    expected = np.max([blob(*place) for place in places], axis=0)[:, 10:70] / 255
    return bool(np.abs(found.numpy() - expected).max() < 0.1)


def test_features_are_core_or_spurious_by_the_workers_and_combined(salient):
    masks = opened(salient)
    ids = [masks.images.record(i).id for i in masks.positions]
    assert ids == [f"n01440764/n01440764_{i}.JPEG" for i in (1, 2, 3, 4)] and masks.kinds == ("core", "spurious")
    found = [masks.prepare(i, PLAIN)[1] for i in masks.positions]
    assert [sorted(masks) for masks in found] == [["core", "spurious"], ["core", "spurious"], ["core"], ["spurious"]]
    assert close(found[0]["core"], PLACES[59], PLACES[686])
    assert close(found[0]["spurious"], PLACES[701], PLACES[2030])
    assert close(found[1]["core"], PLACES[686]) and close(found[1]["spurious"], PLACES[2030])
    assert close(found[2]["core"], PLACES[59]) and close(found[3]["spurious"], PLACES[701])


@pytest.mark.parametrize("strange", range(6))
def test_three_of_five_make_a_feature_spurious(tmp_path, strange):
    path = tmp_path / "answers.csv"
    path.write_text(answers({("n02281787", 595): strange}))
    assert read_answers(path, CLASSES) == {("n02281787", 595): strange >= 3}


def test_the_older_release(salient):
    root = salient / "salient" / CLASSES[0]
    (root / "image_names_map.csv").rename(root / "image_fnames.csv")
    for path in list(root.rglob("*.JPEG")):
        save(path.parent / "images" / f"{path.stem}.jpeg", np.full((60, 80), 99, np.uint8), "RGB")
        (path.parent / "cams").mkdir(exist_ok=True)
        path.rename(path.parent / "cams" / f"{path.stem}.jpeg")
    masks = opened(salient)
    assert len(masks.positions) == 4 and close(masks.prepare(0, PLAIN)[1]["spurious"], PLACES[701], PLACES[2030])
    own = open_masks(salient / "salient", open_images(root / "feature_701" / "images"))
    assert len(own.positions) == 2 and close(own.prepare(1, PLAIN)[1]["spurious"], PLACES[701])


def test_masks_of_the_crop_that_the_network_saw(salient):
    """Brought to the encoder's crop once: where the encoder's is the same they are used as they are."""
    wnid = CLASSES[0]
    full = blob(50, 30)
    image = Image.fromarray(full).convert("RGB")
    seen = (Preprocessing(crop=224, resize=256, mean=(0, 0, 0), std=(1, 1, 1))(image)[0] * 255).byte().numpy()
    for path in (salient / "salient").rglob("*.JPEG"):
        save(path, seen)
    image.save(salient / "train" / wnid / f"{wnid}_1.JPEG", quality=95)
    masks = opened(salient)
    _, same = masks.prepare(0, FRAME)
    assert np.abs(same["core"].numpy() * 255 - seen).max() < 12  # JPEG
    for preprocess in (FRAME, Preprocessing(crop=96, resize=96), Preprocessing(crop=224, resize=232), PLAIN):
        x, found = masks.prepare(0, preprocess)
        bright = x[0] - x[0].min() >= 0.5 * (x[0].max() - x[0].min())
        marked = found["core"] >= 0.5
        assert (bright & marked).sum() / (bright | marked).sum() > 0.9


def test_images_are_found_by_label_folder_or_name(salient):
    rows = ["id,path,label"]
    for i in (1, 2):
        rows.append(f"n01440764_{i},train/n01440764/n01440764_{i}.JPEG,fish")
    rows.append(f"x/n01440764_3,{salient}/train/n01440764/n01440764_3.JPEG,n01440764")
    (salient / "list.csv").write_text("\n".join(rows) + "\n")
    assert open_masks(salient / "salient", open_images(salient / "list.csv")).positions == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{0: __import__('os').system('true')}", "malformed node or string on line 1"),
        ("wordnet = {0: 'n01440764'}", "invalid syntax"),
        ("{0: 'n01440764'", "'{' was never closed"),
        ("(" * 5000, "too many nested parentheses"),
        ("-" * 100000 + "1", None),
        ("\0", "source code string cannot contain null bytes"),
    ],
    ids=["call", "assignment", "open", "nested", "deep", "null"],
)
def test_classes_are_a_literal_and_never_run(salient, text, reason):
    path = salient / "salient" / "wordnet_dict.py"
    path.write_text(text)
    message = refusal(salient)
    assert message.startswith(
        ".../salient/wordnet_dict.py: expected the literal of a dict, class index to WordNet id, and nothing else ("
    )
    assert message.endswith("); nothing in it was run") and "\n" not in message
    assert reason is None or reason in message


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("[1, 2]", "expected the literal of a dict, class index to WordNet id, got list"),
        ("{}", "expected the literal of a dict, class index to WordNet id, got dict"),
        ("{'0': 'n01440764'}", "expected class indices and WordNet ids such as 0: 'n01440764', got '0': 'n01440764'"),
        ("{0: 'fish'}", "expected class indices and WordNet ids such as 0: 'n01440764', got 0: 'fish'"),
        ("{0: 7}", "expected class indices and WordNet ids such as 0: 'n01440764', got 0: 7"),
    ],
)
def test_classes_that_are_none(salient, text, rest):
    (salient / "salient" / "wordnet_dict.py").write_text(text)
    assert refusal(salient) == f".../salient/wordnet_dict.py: {rest}"


def test_classes_too_many_to_be_true(tmp_path):
    (tmp_path / "wordnet_dict.py").write_text(" " * 2**20 + "{0: 'n01440764'}")
    with pytest.raises(QScoreError, match=r"nothing else \(it has 1,048,592 bytes\); nothing in it was run"):
        read_classes(tmp_path / "wordnet_dict.py")
    with pytest.raises(QScoreError, match="cannot read the classes: No such file or directory"):
        read_classes(tmp_path / "nowhere.py")


LINE = "1,n01440764,0,59,1,main_object,4.0,so"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("", ": expected the columns Input.wordnet_id, Input.class_index, Input.feature_index, Answer.main, got "
         "nothing"),
        ("a,b\n1,2\n",
         ": expected the columns Input.wordnet_id, Input.class_index, Input.feature_index, Answer.main, got a, b"),
        (f"{HEADER}\n{LINE.replace('59', 'x')}\n", ", line 2: expected whole numbers as class and feature, got '0' "
         "and 'x'"),
        (f"{HEADER}\n1,n01440764\n", ", line 2: expected whole numbers as class and feature, got None and None"),
        (f"{HEADER}\n{LINE.replace('main_object', 'mainobject')}\n",
         ", line 2: expected one of main_object, separate_object, background, got 'mainobject'; did you mean "
         "'main_object'?"),
        (f"{HEADER}\n{LINE.replace('n01440764', 'n99999999')}\n",
         ", line 2: expected class 0 to be 'n01440764' as in wordnet_dict.py, got 'n99999999'"),
        (f"{HEADER}\n{LINE.replace(',0,', ',7,')}\n",
         ", line 2: expected class 7 to be None as in wordnet_dict.py, got 'n01440764'"),
        (f"{HEADER}\n" + f"{LINE}\n" * 4,
         ": expected 5 answers for each class and feature, got 4 for n01440764, feature 59"),
        (f"{HEADER}\n" + f"{LINE}\n" * 6,
         ": expected 5 answers for each class and feature, got 6 for n01440764, feature 59"),
        (answers({key: n for key, n in VOTES.items() if key[1] != 59}),
         ": expected answers for n01440764, feature 59, got none"),
    ],
)  # fmt: skip
def test_malformed_answers(salient, text, rest):
    (salient / "salient" / "discover_spurious_features.csv").write_text(text)
    assert refusal(salient) == f".../salient/discover_spurious_features.csv{rest}"


def test_answers_that_are_no_text_or_not_there(salient):
    path = salient / "salient" / "discover_spurious_features.csv"
    path.write_bytes(b"\xff\xfe\x00")
    assert refusal(salient).startswith(".../salient/discover_spurious_features.csv: cannot read the answers: ")
    path.unlink()
    assert refusal(salient) == (
        ".../salient/discover_spurious_features.csv: no such file; it comes with Salient ImageNet's code, in "
        "mturk_results/: put it beside wordnet_dict.py"
    )


def test_an_unknown_class(salient):
    save(salient / "train/n99999999/n99999999_1.JPEG", np.full((60, 80), 99, np.uint8), "RGB")
    assert refusal(salient) == (
        "n99999999/n99999999_1.JPEG: unknown WordNet id 'n99999999': .../salient/wordnet_dict.py has no such class"
    )


def test_an_image_of_no_class(salient):
    save(salient / "train/fish/1.JPEG", np.full((60, 80), 99, np.uint8), "RGB")
    assert refusal(salient) == (
        "fish/1.JPEG: expected a WordNet id such as n01440764 as label, folder or beginning of the name, to find its "
        "class "
        "in .../salient; got none"
    )


def test_no_image_with_a_mask(salient):
    for i in range(1, 5):
        (salient / f"train/n01440764/n01440764_{i}.JPEG").unlink()
    assert refusal(salient) == (
        ".../salient: none of the 2 images in .../train has a mask here; the first image is "
        "'n01440764/n01440764_5.JPEG'"
    )


def test_a_mask_that_the_list_names_and_there_is_none(salient):
    (salient / "salient/n01440764/feature_686/n01440764_1.JPEG").unlink()
    assert refusal(salient) == (
        ".../salient/n01440764/feature_686/n01440764_1.JPEG: the list names this mask, and there is none"
    )


def test_masks_of_two_sizes(salient):
    save(salient / "salient/n01440764/feature_686/n01440764_1.JPEG", blob(10, 10, (40, 40)))
    assert refusal(salient) == (
        ".../salient/n01440764/feature_686/n01440764_1.JPEG: expected all masks of an image to have one size, got 80 "
        "x 60 "
        "and 40 x 40 pixels"
    )


def test_a_combined_mask_that_marks_nothing(salient):
    for path in (salient / "salient").rglob("n01440764_3.JPEG"):
        save(path, blob(10, 10) * 0)
    assert refusal(salient, 2) == (
        ".../salient, core mask of 'n01440764/n01440764_3.JPEG': expected a mask that marks something, got an empty "
        "one; "
        "leave it out"
    )


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        (None, "n01440764: expected image_names_map.csv or image_fnames.csv, found neither"),
        ("a,59\n", "n01440764/image_names_map.csv: expected a column for each feature index, got 'a', '59'"),
        ("", "n01440764/image_names_map.csv: expected a column for each feature index, got nothing"),
    ],
)
def test_malformed_lists(salient, text, rest):
    path = salient / "salient/n01440764/image_names_map.csv"
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert refusal(salient) == f".../salient/{rest}"


def test_lists_with_gaps_an_index_and_endings(salient):
    path = salient / "salient/n01440764/image_names_map.csv"
    path.write_text(",59,686\n0,n01440764_1.JPEG,\n1,n01440764_3\n")
    masks = opened(salient)
    assert masks.positions == [0, 2] and all(sorted(masks.prepare(i, PLAIN)[1]) == ["core"] for i in (0, 2))


def test_soft_values_survive(salient):
    _, found = opened(salient).prepare(2, PLAIN)
    values = found["core"]
    assert torch.logical_and(values > 0.2, values < 0.8).any() and 0 <= values.min() < values.max() <= 1
