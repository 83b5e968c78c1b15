"""Every row of the table of formats, as its publisher writes it."""

from functools import cache

import pytest
import torch
from PIL import Image
from reference.checkpoints import LAYOUTS, PadSame
from torchvision import transforms

from qscore._validate import QScoreError
from qscore.encoders import load_encoder
from qscore.encoders.formats import FORMATS


@cache
def network_of(make):
    """The source network, with batch-norm statistics and parameters that are not their initial ones."""
    torch.manual_seed(0)
    network = make().train()
    with torch.no_grad():
        network(torch.randn(4, 3, 32, 32))
        for name, parameter in network.named_parameters():
            if name.endswith(("gamma", "token", "pos_embed", "bias")):
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return network.eval()


def weights_of(layout):
    """Its weights by their plain names."""
    network = network_of(layout.network)
    wrapped = {f"{path}.layer." for path, module in network.named_modules() if isinstance(module, PadSame)}
    weights = {}
    for key, value in network.state_dict().items():
        for path in wrapped:
            if key.startswith(path):
                key = key.replace(".layer.", ".")
        weights[key] = value.clone()
    return weights


@pytest.fixture(scope="module", params=list(LAYOUTS))
def case(request, tmp_path_factory):
    layout = LAYOUTS[request.param]
    file = tmp_path_factory.mktemp("files") / "checkpoint.pth.tar"
    content = layout.write(weights_of(layout))
    torch.save(content, file)
    yield layout, file, content
    file.unlink()


@pytest.fixture(scope="module")
def photo():
    values = torch.randint(0, 256, (250, 300, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(values.numpy())


def test_representations_are_those_of_the_source(case, photo):
    layout, file, _ = case
    encoder = load_encoder(file, method=layout.ask)
    prepare = transforms.Compose(
        [
            transforms.Resize(layout.resize, transforms.InterpolationMode(layout.interpolation)),
            transforms.CenterCrop(layout.crop),
            transforms.ToTensor(),
            transforms.Normalize(*layout.mean_std),
        ]
    )
    x = prepare(photo)[None]
    assert torch.equal(encoder.preprocess(photo)[None], x)
    with torch.no_grad():
        expected = network_of(layout.network)(x)
        assert torch.equal(encoder(x), expected)
    assert (encoder.source.format, encoder.source.method) == (layout.format, layout.method)
    assert encoder.nonnegative == ("blocks" not in layout.key)


def rewrite(node, change):
    """Apply a change to every mapping of weights in a checkpoint."""
    if not isinstance(node, dict):
        return node
    if any(isinstance(value, torch.Tensor) for value in node.values()):
        return change(dict(node))
    return {key: rewrite(value, change) for key, value in node.items()}


CHANGES = {
    "missing": (lambda state, key: {k: v for k, v in state.items() if not is_key(k, key)}, "is missing"),
    "renamed": (lambda state, key: {k + "_" * is_key(k, key): v for k, v in state.items()}, "is missing"),
    "shape": (lambda state, key: {k: v[:-1] if is_key(k, key) else v for k, v in state.items()}, "has real values of"),
}


def is_key(name, key):
    return name == key or name.endswith("." + key)


@pytest.mark.parametrize("change", CHANGES)
def test_a_key_that_does_not_fit_is_named(case, change, tmp_path):
    layout, _, content = case
    apply, says = CHANGES[change]
    names = []

    def damage(state):
        names.extend(name for name in state if is_key(name, layout.key))
        return apply(state, layout.key)

    torch.save(rewrite(content, damage), tmp_path / "damaged.pth")
    with pytest.raises(QScoreError) as refused:
        load_encoder(tmp_path / "damaged.pth", method=layout.ask)
    assert names and any(f"'{name}' {says}" in str(refused.value) for name in names), str(refused.value)
    assert change != "renamed" or any(f"'{name}_' is not part of it" in str(refused.value) for name in names)
    assert "\n" not in str(refused.value)


def test_every_row_of_the_table_has_a_layout(request):
    covered = {name.strip() for layout in LAYOUTS.values() for name in layout.format.split(" or ")}
    elsewhere = {"solo-learn", "Lightning module, teacher", "a bare ViT"}
    assert {row.name for row in FORMATS} - covered - elsewhere == {
        "supervised ViT",
        "supervised ViT in [-1, 1]",
        "supervised ConvNeXt",
        "torchvision ConvNeXt",
        "a bare ConvNeXt",
    }  # these have tests of their own
