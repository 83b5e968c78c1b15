import io

import numpy as np
import pytest
import torch
from PIL import Image

from qscore import QScoreError
from qscore.encoders import Preprocessing
from qscore.explain import Masks, open_masks
from qscore.images import open_images, subset

CROP = Preprocessing(crop=16, resize=16)


def disc(width=24, height=20, value=255):
    y, x = np.mgrid[:height, :width]
    return np.where((y - 10) ** 2 + (x - 12) ** 2 < 50, value, 0).astype(np.uint8)


def png(array, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(array).convert(mode or "L").save(buffer, "PNG")
    return buffer.getvalue()


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).convert(mode or "L").save(path)


@pytest.fixture
def folders(tmp_path):
    """Three images in two classes, and a mask of each."""
    for id in ("cat/a.jpg", "cat/b.png", "dog/c.jpg"):
        save(tmp_path / "images" / id, np.full((20, 24), 128, np.uint8), "RGB")
        save(tmp_path / "masks" / f"{id[:-4]}.png", disc())
    return tmp_path


def opened(folders, masks="masks"):
    return open_masks(folders / masks, open_images(folders / "images"))


def refusal(folders, position=0):
    with pytest.raises(QScoreError) as caught:
        opened(folders).prepare(position, CROP)
    return str(caught.value).replace(str(folders), "...")


def mismatch(folders):
    with pytest.raises(QScoreError) as caught:
        opened(folders)
    return str(caught.value).replace(str(folders), "...")


def test_a_folder_laid_out_as_the_images(folders):
    masks = opened(folders)
    assert isinstance(masks, Masks) and masks.kinds == ("object", "background") and masks.positions == [0, 1, 2]
    x, found = masks.prepare(1, Preprocessing(crop=20))
    assert x.shape == (3, 20, 20) and list(found) == ["object", "background"]
    np.testing.assert_array_equal(found["object"], disc()[:, 2:22] / 255)
    np.testing.assert_array_equal(found["background"], 1 - disc()[:, 2:22] / 255)


def test_a_flat_folder_is_matched_by_name(folders):
    for path in (folders / "masks").rglob("*.png"):
        path.rename(folders / "masks" / path.name)
    assert opened(folders).positions == [0, 1, 2]


def test_the_same_name_twice(folders):
    (folders / "masks/cat/a.png").unlink()
    save(folders / "masks/dog/a.png", disc())
    save(folders / "masks/emu/a.png", disc())
    assert mismatch(folders) == (
        ".../masks: expected one mask for the image 'cat/a.jpg', got 'dog/a' and 'emu/a'; lay the folder out as the "
        "images "
        "are"
    )


def test_two_masks_of_one_name(folders):
    save(folders / "masks/cat/a.bmp", disc())
    assert mismatch(folders) == (
        ".../masks: expected one mask named 'cat/a', got '.../masks/cat/a.bmp' and '.../masks/cat/a.png'"
    )


def test_two_images_of_one_mask(folders):
    """One of them has no mask, or the flat folder cannot tell them apart: neither is measured against the other's."""
    for path in (folders / "masks").rglob("*.png"):
        path.rename(folders / "masks" / path.name)
    save(folders / "images/emu/a.png", disc())
    assert mismatch(folders) == (
        ".../masks: expected one image for each mask, got 'cat/a.jpg' and 'emu/a.png' for '.../masks/a.png'; add the "
        "mask that is missing, or lay the folder out as the images are"
    )


def test_an_image_with_no_mask(folders):
    (folders / "masks/cat/b.png").unlink()
    assert mismatch(folders) == (
        ".../images: 1 of 3 images have no mask in .../masks, the first is 'cat/b.png'; add it, or leave these images "
        "out"
    )


def test_a_mask_with_no_image(folders):
    (folders / "images/dog/c.jpg").unlink()
    rest = "no image in .../images, the first is '.../masks/dog/c.png'; add it, or leave the mask out"
    assert mismatch(folders) == f".../masks: 1 mask has {rest}"
    save(folders / "masks/dog/d.png", disc())
    assert mismatch(folders) == f".../masks: 2 masks have {rest}"


def test_masks_of_other_images(folders):
    (folders / "masks").rename(folders / "old")
    save(folders / "masks/x.png", disc())
    assert mismatch(folders) == (
        ".../masks: none of the 3 images in .../images has a mask here; the first image is 'cat/a.jpg'"
    )


def test_a_part_of_the_images_may_not_have_less_than_all_masks(folders):
    part = subset(open_images(folders / "images"), [0, 2])
    with pytest.raises(QScoreError, match=r"1 mask has no image in .*images, the first is '.*masks/cat/b.png'"):
        open_masks(folders / "masks", part)


GREY = disc()
COLOURS = np.stack([GREY, GREY, 255 - GREY], 2)
OPAQUE = np.stack([GREY, GREY, GREY, np.full_like(GREY, 255)], 2)
CUT_OUT = np.stack([GREY, GREY, GREY, GREY], 2)


@pytest.mark.parametrize(
    ("array", "mode"),
    [(GREY, "1"), (GREY, "RGB"), (GREY, "LA"), (OPAQUE, "RGBA"), (GREY, "P"), (GREY.astype(np.int32) * 257, "I;16")],
    ids=["one bit", "RGB", "LA", "RGBA", "palette", "16 bits"],
)
def test_grey_in_other_clothes(folders, array, mode):
    save(folders / "masks/cat/a.png", array, mode)
    _, found = opened(folders).prepare(0, Preprocessing(crop=20))
    np.testing.assert_array_equal(found["object"], GREY[:, 2:22] / 255)


@pytest.mark.parametrize(
    ("array", "mode", "message"),
    [
        (COLOURS, "RGB", "expected a mask in grey, got one in colours (mode RGB); save what is marked in white on "
         "black"),
        (COLOURS, "P", "expected a mask in grey, got one in colours (mode P); save what is marked in white on black"),
        (CUT_OUT, "RGBA",
         "expected a mask in grey, got one with transparent pixels (mode RGBA); save what is marked in white on black, "
         "without transparency"),
        (CUT_OUT, "LA",
         "expected a mask in grey, got one with transparent pixels (mode LA); save what is marked in white on black, "
         "without transparency"),
        (GREY * 0, "L", "expected a mask that marks something, got an empty one; leave it out"),
        (disc(value=1), "L",
         "expected a mask that marks something, got an empty one: its largest value is 1 of 255; multiply it by 255"),
        (GREY * 0 + 255, "L", "expected a mask that leaves something out, got one that marks every pixel"),
    ],
    ids=["RGB", "palette", "RGBA", "LA", "empty", "0 and 1", "ones"],
)  # fmt: skip
def test_masks_that_are_none(folders, array, mode, message):
    save(folders / "masks/cat/a.png", array, mode)
    assert refusal(folders) == f".../masks/cat/a.png: {message}"


def test_sizes_that_differ(folders):
    save(folders / "masks/cat/a.png", disc(48, 40))
    assert refusal(folders) == (
        "cat/a.jpg, object: expected a mask of the image's size, 24 x 20 pixels, got 48 x 40; resize neither: a mask "
        "goes "
        "through the encoder's geometry with its image"
    )


def test_damaged_masks_and_images(folders):
    (folders / "masks/cat/a.png").write_bytes(png(GREY)[:50])
    assert refusal(folders).startswith(".../masks/cat/a.png: the image is damaged (")
    (folders / "images/dog/c.jpg").write_bytes(b"no image")
    assert (
        refusal(folders, 2)
        == ".../images/dog/c.jpg: expected an image, got a file of no known image format; leave it out"
    )


def archive(path, masks, ids, **more):
    data = np.frombuffer(b"".join(masks), np.uint8)
    np.savez(path, mask_data=data, mask_offsets=np.cumsum([0, *map(len, masks)]), ids=np.array(ids), **more)


def test_an_archive_of_images_and_masks(tmp_path):
    image = png(np.full((20, 24), 100, np.uint8), "RGB")
    images = {"image_data": np.frombuffer(image * 2, np.uint8), "image_offsets": np.arange(3) * len(image)}
    archive(tmp_path / "a.npz", [png(GREY), png(255 - GREY)], ["x", "y"], **images)
    masks = open_masks(tmp_path / "a.npz", open_images(tmp_path / "a.npz"))
    assert masks.kinds == ("object", "background") and masks.positions == [0, 1]
    found = [masks.prepare(i, CROP)[1] for i in (0, 1)]
    assert torch.allclose(found[0]["object"], found[1]["background"], atol=1 / 255)


def test_an_archive_of_masks_alone(folders):
    archive(folders / "m.npz", [png(GREY)] * 3, ["cat/a.jpg", "dog/c.jpg", "cat/b.png"])
    assert opened(folders, "m.npz").positions == [0, 1, 2]
    archive(folders / "m.npz", [png(GREY)] * 3, ["cat/a.jpg", "dog/c.jpg", "cat/e.png"])
    with pytest.raises(QScoreError, match=r"images: 1 of 3 images have no mask in .*m.npz, the first is 'cat/b.png'"):
        opened(folders, "m.npz")
    archive(folders / "m.npz", [png(GREY)] * 4, ["cat/a.jpg", "dog/c.jpg", "cat/b.png", "z"])
    with pytest.raises(QScoreError, match=r"m.npz: 1 mask has no image in .*images, the first is 'z'"):
        opened(folders, "m.npz")
    archive(folders / "m.npz", [png(GREY * 0)] * 3, ["cat/a.jpg", "dog/c.jpg", "cat/b.png"])
    with pytest.raises(QScoreError, match=r"m.npz, mask of 'cat/a.jpg': expected a mask that marks something"):
        opened(folders, "m.npz").prepare(0, CROP)


def test_an_archive_without_masks(folders):
    np.savez(folders / "m.npz", data=np.zeros(1, np.uint8), offsets=np.array([0, 1]))
    with pytest.raises(
        QScoreError, match=r"m.npz: expected the arrays 'mask_data' and 'mask_offsets', got 'ids'|got none"
    ):
        opened(folders, "m.npz")


def test_the_masks_of_drawn_shapes():
    images = open_images("shapes:n=12,size=32,spurious=1")
    masks = open_masks("shapes", subset(images, [7, 2]))
    assert masks.kinds == ("core", "spurious") and masks.positions == [0, 1]
    x, found = masks.prepare(0, Preprocessing(crop=32))
    np.testing.assert_array_equal(found["core"] == 1, images.masks(7)["core"])
    np.testing.assert_array_equal(found["spurious"] == 1, images.masks(7)["spurious"])
    assert torch.equal(x, Preprocessing(crop=32)(images.image(7)))


def test_shapes_of_other_images():
    with pytest.raises(QScoreError, match="shapes: none of the 1,797 images in digits has a mask here"):
        open_masks("shapes", open_images("digits"))


@pytest.mark.parametrize(("name", "found"), [("nowhere", "no such file or folder"), ("a.txt", "a file")])
def test_sources_that_are_none(tmp_path, name, found):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(QScoreError) as caught:
        open_masks(tmp_path / name, open_images("digits"))
    assert str(caught.value) == (
        f"masks '{tmp_path / name}': expected a folder of masks, an .npz archive, the folder of Salient ImageNet, or "
        f"'shapes'; got {found}"
    )


def test_photographs_of_animals(data_folder):
    """243 photographs with masks of their own size."""
    path = data_folder / "animal_masks" / "animal4_caltech_masks.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    images = open_images(path)
    masks = open_masks(path, images)
    assert masks.positions == list(range(243)) and masks.kinds == ("object", "background")
    areas = []
    for i in range(0, 243, 9):
        _, found = masks.prepare(i, Preprocessing(crop=64, resize=64))
        assert torch.allclose(found["object"] + found["background"], torch.ones(64, 64), atol=2 / 255)
        areas.append((found["object"] >= 0.5).double().mean().item())
    assert 0.05 < min(areas) < max(areas) < 0.95
