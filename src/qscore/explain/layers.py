"""Where in a network positions in the image survive: maps and tokens, found by what a forward pass gives."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qscore._validate import QScoreError, nearest
from qscore.encoders import Encoder
from qscore.encoders.readout import Readout, count_prefix_tokens

__all__ = [
    "Layer",
    "averaged",
    "averaged_layer",
    "capture",
    "evaluating",
    "explaining_layer",
    "named_layer",
    "network_of",
]

SAME = 1e-4  # of the largest feature: what a sum in another order may differ by
NAMED = 8  # layers in a message


@dataclass(frozen=True)
class Layer:
    """A module whose output has positions."""

    path: str
    """Its name in ``network_of(encoder).named_modules()``."""
    layout: Literal["map", "map, channels last", "tokens"]
    """Outputs (b, c, h, w), (b, h, w, c), or (b, n, c)."""
    height: int
    """Rows of positions."""
    width: int
    """Columns of positions."""
    prefix: int = 0
    """Tokens before those of patches: the class token, registers."""

    def to_maps(self, out: Float[Tensor, "b ..."]) -> Float[Tensor, "b c h w"]:
        """Return the module's output, or a gradient of its shape, with channels first and patches in their places."""
        if self.layout == "map":
            return out
        if self.layout == "map, channels last":
            return out.permute(0, 3, 1, 2)
        patches = out[:, self.prefix :].transpose(1, 2)  # (b, c, n)
        return patches.reshape(*patches.shape[:2], self.height, self.width)


def network_of(encoder: Encoder) -> nn.Module:
    """Return the network whose modules are named, as ``load_encoder`` names layers."""
    backbone = encoder.backbone
    return backbone.network if isinstance(backbone, Readout) else backbone


@contextmanager
def evaluating(encoder: Encoder) -> Iterator[None]:
    """Put an encoder into evaluation mode, and back: statistics of a batch would mix its images."""
    training = [module for module in encoder.modules() if module.training]
    encoder.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def capture(encoder: Encoder, path: str, x: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b r"], Tensor]:
    """Return the representations of a batch, and what a module gave on the way; gradients flow where allowed.

    Of a module that is used several times the last call counts, as in `load_encoder`.

    Raises
    ------
    QScoreError
        If the module takes no part, or gives no tensor.
    """
    h, outputs = _run(encoder, x, [path])
    if path not in outputs:
        raise QScoreError(f"layer {path!r} takes no part in the forward pass, or gives no tensor; name another")
    return h, outputs[path]


def _run(
    encoder: Encoder, x: Float[Tensor, "b 3 h w"], paths: Iterable[str]
) -> tuple[Float[Tensor, "b r"], dict[str, Tensor]]:
    """Return representations and the outputs of modules, in the order of their last calls."""
    outputs: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            tensor = _tensor(output)
            if tensor is None:
                return None
            outputs.pop(path, None)
            outputs[path] = tensor
            # The network goes on with a copy: modules that work in place would overwrite what is kept.
            return _with_tensor(output, tensor.clone())

        return hook

    network = network_of(encoder)
    with ExitStack() as stack:
        for path in paths:
            stack.callback(network.get_submodule(path).register_forward_hook(keep(path)).remove)
        return encoder(x), outputs


def named_layer(encoder: Encoder, path: str, x: Float[Tensor, "b 3 h w"]) -> Layer:
    """Return a layer by its name.

    Raises
    ------
    QScoreError
        If there is none, or its output has no positions; names those that have.
    """
    _, outputs = _run_once(encoder, x)
    found = {layer.path: layer for layer, _ in _with_positions(encoder, outputs, x)}
    if path in found:
        return found[path]
    names = _names(found)
    if path not in dict(network_of(encoder).named_modules()):
        raise QScoreError(f"layer {path!r}: the network has no such layer; {names}{nearest(path, found)}")
    came = f"(b, {', '.join(map(str, outputs[path].shape[1:]))})" if path in outputs else "none"
    raise QScoreError(
        f"layer {path!r}: expected an output with several positions, (b, c, h, w) or (b, n, c), got {came}; {names}"
    )


def averaged_layer(encoder: Encoder, x: Float[Tensor, "b 3 h w"]) -> Layer:
    """Find the last layer whose average over positions is the representation.

    Raises
    ------
    QScoreError
        If there is none.
    """
    h, outputs = _run_once(encoder, x)
    spatial = _stream(_with_positions(encoder, outputs, x))
    found = [layer for layer, out in spatial if averaged(layer.to_maps(out), h) is not None]
    if not spatial:
        raise _no_positions(encoder, x)
    if not found:
        raise QScoreError(
            f"activation: the representation of {encoder.source.architecture} is the average over positions of none of "
            f"its layers, for images of {x.shape[3]} x {x.shape[2]} pixels; use method='gradcam', for which "
            f"{_names(layer.path for layer, _ in spatial)}"
        )
    return found[-1]


def averaged(maps: Float[Tensor, "b c h w"], h: Float[Tensor, "b r"]) -> Float[Tensor, "b r h w"] | None:
    """Return the maps whose average over positions is the representation: these, or cut at 0 as DenseNets do."""
    if maps.shape[:2] != h.shape:
        return None
    for candidate in (maps, maps.relu()):
        if bool((candidate.mean((2, 3)) - h).abs().max() <= SAME * h.abs().max()):
            return candidate
    return None


def explaining_layer(encoder: Encoder, x: Float[Tensor, "b 3 h w"]) -> Layer:
    """Find the last layer at which several positions still have a say in the representation.

    Of a ConvNet that is its last stage; of a vision transformer read at its class token, what enters the last
    attention: after that its other tokens go nowhere.

    Raises
    ------
    QScoreError
        If there is none.
    """
    with torch.enable_grad():
        h, outputs = _run_once(encoder, x.detach().clone().requires_grad_())
        spatial = _stream(_with_positions(encoder, outputs, x))
        if isinstance(encoder.backbone, Readout) and encoder.backbone.tokens == "both":
            h = h[:, : h.shape[1] // 2]  # the class token, which has its say in fewer layers than the patches
        # No plain sum of features: after a layer norm it is constant.
        probe = (h * torch.arange(h.shape[1], device=h.device).cos()).sum()
        grads = torch.autograd.grad(probe, [out for _, out in spatial], allow_unused=True) if spatial else ()
    for (layer, _), grad in reversed(list(zip(spatial, grads, strict=True))):
        if grad is not None and int(layer.to_maps(grad)[0].abs().amax(0).count_nonzero()) > 1:
            return layer
    raise _no_positions(encoder, x)


def _no_positions(encoder: Encoder, x: Float[Tensor, "b 3 h w"]) -> QScoreError:
    children = ", ".join(name for name, _ in network_of(encoder).named_children()) or "none"
    return QScoreError(
        f"the encoder {encoder.source.architecture} has no layer with several positions for images of {x.shape[3]} x "
        f"{x.shape[2]} pixels; its layers are {children}; use larger images, or method='gradient'"
    )


def _run_once(encoder: Encoder, x: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the representation of the first image, and all modules' outputs on the way."""
    return _run(encoder, x[:1], [path for path, _ in network_of(encoder).named_modules() if path])


def _with_positions(
    encoder: Encoder, outputs: Mapping[str, Tensor], x: Float[Tensor, "b 3 h w"]
) -> list[tuple[Layer, Tensor]]:
    """Return the layers whose outputs have positions, in the order of their calls."""
    prefix, _ = count_prefix_tokens(network_of(encoder))
    last = getattr(network_of(encoder), "output_fmt", "NCHW") == "NHWC"
    height, width = int(x.shape[2]), int(x.shape[3])
    return [
        (layer, out)
        for path, out in outputs.items()
        if len(out) == 1 and (layer := _describe(path, out, height, width, prefix, last)) is not None
    ]


def _stream(spatial: Sequence[tuple[Layer, Tensor]]) -> list[tuple[Layer, Tensor]]:
    """Leave out what holds a part of the features only: insides of attention, and tokens of other widths."""
    spatial = [(layer, out) for layer, out in spatial if "att" not in layer.path.lower()]
    widths = Counter(out.shape[2] for layer, out in spatial if layer.layout == "tokens")
    (width, _), *_ = widths.most_common(1) or [(0, 0)]
    return [(layer, out) for layer, out in spatial if layer.layout != "tokens" or out.shape[2] == width]


def _describe(path: str, out: Tensor, height: int, width: int, prefix: int, last: bool) -> Layer | None:
    def fits(rows: int, columns: int) -> bool:
        """Tell whether a grid has several cells, all about as high as wide."""
        inside = 0 < rows <= height and 0 < columns <= width and rows * columns > 1
        return inside and abs(rows * width - columns * height) < max(height, width)

    if out.ndim == 4:
        shapes = {"map": tuple(out.shape[2:]), "map, channels last": tuple(out.shape[1:3])}
        for layout in sorted(shapes, reverse=last):
            if fits(*shapes[layout]):
                return Layer(path, layout, *shapes[layout])  # type: ignore[arg-type]
    if out.ndim == 3:
        for before in dict.fromkeys((prefix, 0)):
            patches = int(out.shape[1]) - before
            rows = isqrt(max(0, patches * height // width))
            for r in (rows, rows + 1):
                if r > 0 and patches % r == 0 and fits(r, patches // r):
                    return Layer(path, "tokens", r, patches // r, before)
    return None


def _tensor(output: Any) -> Tensor | None:
    """Return the floating-point tensor that a module gave, or the first of several."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    first = getattr(first, "last_hidden_state", first)
    return first if isinstance(first, Tensor) and first.is_floating_point() and first.ndim > 1 else None


def _with_tensor(output: Any, tensor: Tensor) -> Any:
    if isinstance(output, tuple | list):
        return type(output)([tensor, *output[1:]]) if type(output) in (tuple, list) else None
    return tensor if isinstance(output, Tensor) else None


def _names(found: Iterable[str]) -> str:
    """Name the layers that are least nested, of these the last."""
    paths = list(found)
    kept = sorted(reversed(paths), key=lambda path: path.count("."))[:NAMED]
    if not paths:
        return "none of its layers has several positions"
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"layers with positions are {', '.join(path for path in paths if path in kept)}{more}"
