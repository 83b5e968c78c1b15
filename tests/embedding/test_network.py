import numpy as np
import pytest
import torch
from reference.tables import damage, make_encoder, table_bytes
from torch import nn

from qscore import QScoreError, embed
from qscore.embedding import read_skipped, views_path
from qscore.encoders import Encoder
from qscore.tables import open_embeddings

OUT_OF_MEMORY = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    "driver": RuntimeError("CUDA error: out of memory"),
    "cudnn": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cublas": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cpu": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 3200000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
}


def limit_memory(monkeypatch, encoder, images, kind="cuda"):
    """Let the encoder fail above a number of images; returns the list of the sizes it was called with."""
    forward, sizes = encoder.backbone.forward, []

    def limited(x):
        sizes.append(len(x))
        if len(x) > images:
            raise OUT_OF_MEMORY[kind]
        return forward(x)

    monkeypatch.setattr(encoder.backbone, "forward", limited)
    return sizes


@pytest.mark.parametrize(("images", "fits"), [(32, 32), (31, 16), (5, 4), (1, 1)])
def test_out_of_memory_gives_the_table_of_the_smaller_batch(
    tmp_path, encoder, digits, monkeypatch, caplog, images, fits
):
    expected = open_embeddings(embed(digits, encoder, tmp_path / "small", batch_size=fits)).read()
    sizes = limit_memory(monkeypatch, encoder, images)
    found = open_embeddings(embed(digits, encoder, tmp_path / "e", batch_size=64)).read()
    np.testing.assert_array_equal(found.embedding, expected.embedding)
    assert found.columns == expected.columns
    assert [r.getMessage() for r in caplog.records] == [
        f"cpu has not the memory for batches of 64 images: going on with {fits}"
    ]
    assert [size for size in sizes if size > images] == [64 >> i for i in range((64 // fits).bit_length() - 1)]


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_memory_runs_out_in_many_words(tmp_path, encoder, digits, monkeypatch, kind):
    sizes = limit_memory(monkeypatch, encoder, 32, kind)
    embed(digits, encoder, tmp_path / "e", batch_size=64)
    assert sizes == [64, 32, 32, 32, 4]


def test_out_of_memory_among_unreadable_images_and_views(tmp_path, encoder, photos, monkeypatch):
    damage(photos, 0, 4, 5, 6, 7)
    embed(photos, encoder, tmp_path / "small", batch_size=4, views=2)
    limit_memory(monkeypatch, encoder, 4)
    embed(photos, encoder, tmp_path / "e", batch_size=8, views=2)
    for place in (lambda out: out, views_path):
        found, expected = (
            open_embeddings(place(tmp_path / "e")).read(),
            open_embeddings(place(tmp_path / "small")).read(),
        )
        np.testing.assert_array_equal(found.embedding, expected.embedding)
        assert found.columns == expected.columns
        assert read_skipped(place(tmp_path / "e")) == read_skipped(place(tmp_path / "small"))


def test_a_single_image_that_does_not_fit(tmp_path, encoder, digits, monkeypatch):
    sizes = limit_memory(monkeypatch, encoder, 0)
    with pytest.raises(QScoreError, match="cpu has not the memory for a single image"):
        embed(digits, encoder, tmp_path / "e", batch_size=4)
    assert sizes == [4, 2, 1]


def test_convolutions_run_with_channels_last_and_the_encoder_comes_back_as_it_was(
    tmp_path, encoder, digits, monkeypatch
):
    before = {name: (tensor.clone(), tensor.stride()) for name, tensor in encoder.state_dict().items()}
    forward, formats = encoder.backbone.forward, set()

    def looks(x):
        formats.add(x.is_contiguous(memory_format=torch.channels_last))
        return forward(x)

    monkeypatch.setattr(encoder.backbone, "forward", looks)
    embed(digits, encoder, tmp_path / "e")
    assert formats == {True}
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name][0]) and tensor.stride() == before[name][1]


class Viewing(nn.Module):
    """A network that takes for granted that its channels come first in memory."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3))

    def forward(self, x):
        x = self.convolutions(x)
        return x.view(len(x), -1)


def test_a_network_that_cannot_run_with_channels_last_runs_without(tmp_path, digits):
    torch.manual_seed(0)
    encoder = Encoder(Viewing(), make_encoder().source)
    found = open_embeddings(embed(digits, encoder, tmp_path / "e")).read()
    with torch.no_grad():
        expected = encoder(torch.stack([encoder.preprocess(digits.image(i)) for i in range(100)]))
    np.testing.assert_allclose(found.embedding, expected, atol=2e-6)


def test_other_errors_are_not_hidden(tmp_path, encoder, digits, monkeypatch):
    def fails(x):
        raise RuntimeError("a defect")

    monkeypatch.setattr(encoder.backbone, "forward", fails)
    with pytest.raises(RuntimeError, match="a defect"):
        embed(digits, encoder, tmp_path / "e")


def test_an_error_on_the_way_changes_no_arithmetic(tmp_path, encoder, digits, monkeypatch):
    forward, formats = encoder.backbone.forward, []

    def fails_once(x):
        formats.append(x.is_contiguous(memory_format=torch.channels_last))
        if len(formats) == 2:
            raise RuntimeError("a passing defect")
        return forward(x)

    monkeypatch.setattr(encoder.backbone, "forward", fails_once)
    with pytest.raises(RuntimeError, match="a passing defect"):
        embed(digits, encoder, tmp_path / "e", batch_size=50)
    assert formats == [True, True]


def test_an_encoder_in_training_goes_on_with_it(tmp_path, encoder, digits):
    embed(digits, encoder, tmp_path / "a")
    encoder.train()
    encoder.backbone.get_submodule(next(name for name, _ in encoder.backbone.named_children())).eval()
    before = {name: module.training for name, module in encoder.named_modules()}
    embed(digits, encoder, tmp_path / "b")
    assert {name: module.training for name, module in encoder.named_modules()} == before
    assert set(before.values()) == {True, False}
    assert table_bytes(tmp_path / "a") == table_bytes(tmp_path / "b")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_weights_of_another_kind_are_named(tmp_path, digits, kind):
    encoder = make_encoder().to(getattr(torch, kind))
    with pytest.raises(QScoreError, match=rf"expected weights in float32, got {kind} \(.*\); call encoder.float\(\)"):
        embed(digits, encoder, tmp_path / "e")


def test_half_precision_is_near_and_stored_as_float32(tmp_path, encoder, digits):
    exact = open_embeddings(embed(digits, encoder, tmp_path / "a")).read().embedding
    half = open_embeddings(embed(digits, encoder, tmp_path / "b", precision="bf16-mixed")).read().embedding
    assert half.dtype == np.float32 and not np.array_equal(half, exact)
    np.testing.assert_allclose(half, exact, atol=0.02 * np.abs(exact).max())
