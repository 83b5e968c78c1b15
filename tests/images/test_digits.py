import pickle

import numpy as np
from sklearn.datasets import load_digits

from qscore.images import open_image, open_images


def test_pixels_labels_and_ids():
    source = open_images("digits")
    bunch = load_digits()
    assert len(source) == 1797
    assert source.labels == bunch.target.tolist() and source.class_names is None
    for i in (0, 17, 1796):
        expected = np.array([[[round(v * 255 / 16)] * 3 for v in row] for row in bunch.images[i].tolist()])
        np.testing.assert_array_equal(np.asarray(source.image(i)), expected)
        assert source.record(i).id == f"digits-{i:04d}"
        np.testing.assert_array_equal(np.asarray(open_image(source.record(i).path)), expected)


def test_it_uses_the_whole_range():
    values = {value for i in range(50) for _, value in open_images("digits").image(i).convert("L").getcolors()}
    assert min(values) == 0 and max(values) == 255


def test_copies_agree():
    source = open_images("digits")
    assert pickle.loads(pickle.dumps(source)).fingerprint == source.fingerprint
