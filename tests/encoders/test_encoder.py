import json

import pytest
import torch
from torch import nn

from qscore._validate import QScoreError
from qscore.encoders import Encoder, Preprocessing, Source, build_backbone, measure_output

SOURCE = Source("test", "small:convnet-4", Preprocessing(crop=8), "simclr", "0" * 64, ("fc",))


def flat(*last):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), *last)


def test_what_it_knows_of_itself():
    encoder = Encoder(build_backbone("small:convnet-4").train(), SOURCE)
    assert not any(module.training for module in encoder.modules())
    assert (encoder.dim, encoder.nonnegative) == (32, True)
    assert encoder.preprocess is SOURCE.preprocessing and encoder.source is SOURCE


def test_forward_is_the_backbone_with_gradients():
    backbone = flat()
    encoder = Encoder(backbone, SOURCE)
    x = torch.randn(5, 3, 8, 8)
    h = encoder(x)
    assert torch.equal(h, backbone(x)) and h.requires_grad


@pytest.mark.parametrize(
    ("last", "nonnegative"),
    [([], False), ([nn.ReLU()], True), ([nn.GELU()], False), ([nn.Hardswish()], False), ([nn.Sigmoid()], True)],
)
def test_sign_is_measured(last, nonnegative):
    assert measure_output(flat(*last), 8) == (16, nonnegative)


def test_measuring_leaves_no_trace():
    backbone = build_backbone("small:convnet-4").train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    assert measure_output(backbone, 8) == measure_output(backbone, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone.training
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_images_of_another_size_are_refused():
    backbone = flat().train()
    with pytest.raises(QScoreError, match="does not accept images of 9 x 9 pixels"):
        measure_output(backbone, 9)
    assert backbone.training


@pytest.mark.parametrize(
    ("backbone", "got"),
    [
        (nn.Conv2d(3, 4, 3), r"\(2, 4, 6, 6\)"),
        (nn.Flatten(0), r"\(384,\)"),
        (nn.Flatten(0, 2), r"\(48, 8\)"),
        (nn.LSTM(8, 8), "does not accept"),
    ],
)
def test_outputs_of_another_shape_are_refused(backbone, got):
    with pytest.raises(QScoreError, match=got):
        Encoder(backbone, SOURCE)


def test_source_goes_through_json():
    record = json.loads(json.dumps(SOURCE.to_json()))
    assert record.pop("preprocessing") == SOURCE.preprocessing.to_json()
    assert record == {
        "format": "test",
        "architecture": "small:convnet-4",
        "method": "simclr",
        "sha256": "0" * 64,
        "dropped": ["fc"],
    }
