"""Where in an image a feature looks: one map for each image and feature."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from qscore._validate import QScoreError, check_features, nearest, require
from qscore.encoders import Encoder
from qscore.explain.geometry import upsample
from qscore.explain.layers import (
    Layer,
    averaged,
    averaged_layer,
    capture,
    evaluating,
    explaining_layer,
    named_layer,
    network_of,
)

__all__ = ["METHODS", "feature_heatmaps", "feature_maps"]

STEPS = 32  # of the integral, from the baseline to the image


def feature_heatmaps(
    encoder: Encoder,
    images: Float[Tensor, "b 3 h w"],
    features: Int[Tensor, " k"] | Int[np.ndarray, " k"] | Sequence[int],
    method: str = "activation",
    layer: str | None = None,
) -> Float[Tensor, "b k h w"]:
    """Show where in each image each feature looks.

    Maps of a layer are cut at 0 and enlarged to the image's size, bilinearly with ``align_corners=False``, and not
    normalised. The result takes ``b * k * h * w`` floats: pass as many images at once as fit.

    Parameters
    ----------
    encoder : Encoder
        With r features.
    images : Tensor of shape (b, 3, h, w)
        Preprocessed by ``encoder.preprocess``.
    features : sequence of int, shape (k,)
        Which of the r features.
    method : {"activation", "gradcam", "gradient", "integrated_gradients"}
        ``activation``: the share of each position in the feature, where the representation is an average over
        positions, of a ConvNet's last maps or of a transformer's patch tokens: then it is Grad-CAM in closed form, and
        one forward pass gives all features.
        ``gradcam``: the layer's maps or tokens, weighted by the feature's gradient averaged over positions.
        ``gradient``: the gradient's magnitude, the largest over channels.
        ``integrated_gradients``: the gradient integrated along the way from zero (the mean colour) to the image, or
        from what the layer gives for the one to what it gives for the other, summed over channels; 32 steps.
    layer : str, optional
        Path of a module with positions, as ``load_encoder`` names layers. By default
        ``activation`` takes the layer whose average is the representation, ``gradcam`` the last one at which several
        positions have a say (of a transformer read at its class token: what enters the last attention), and the other
        two the image itself.

    Returns
    -------
    Tensor of shape (b, k, h, w)
        Heatmaps >= 0, on the encoder's device; all 0 where nothing in the image raises the feature.

    Raises
    ------
    QScoreError
        If features are out of range, the method is unknown, the layer has no positions, or the representation is no
        average and ``activation`` is asked for; names the layers that have positions.

    Notes
    -----
    Signed features: negative evidence is cut off like everything below 0.

    References
    ----------
    Selvaraju et al., "Grad-CAM", ICCV 2017. Zhou et al., "Learning deep features for discriminative localization",
    CVPR 2016. Simonyan et al., "Deep inside convolutional networks", 2014. Sundararajan et al., "Axiomatic attribution
    for deep networks", ICML 2017.

    Examples
    --------
    >>> import torch
    >>> from qscore.encoders import Encoder, Preprocessing, Source, build_backbone
    >>> backbone, preprocessing = build_backbone("small:convnet-4"), Preprocessing(crop=32)
    >>> encoder = Encoder(backbone, Source("new", "small:convnet-4", preprocessing))
    >>> feature_heatmaps(encoder, torch.rand(2, 3, 32, 32), [3, 5]).shape
    torch.Size([2, 2, 32, 32])
    """
    return upsample(feature_maps(encoder, images, features, method, layer), (images.shape[2], images.shape[3]))


def feature_maps(
    encoder: Encoder,
    images: Float[Tensor, "b 3 h w"],
    features: Int[Tensor, " k"] | Int[np.ndarray, " k"] | Sequence[int],
    method: str = "activation",
    layer: str | None = None,
) -> Float[Tensor, "b k rows columns"]:
    """Return what `feature_heatmaps` enlarges: maps at the layer's own size, with their negative values.

    Of ``activation``, a map's sum over positions is the feature itself.
    """
    if method not in METHODS:
        raise QScoreError(f"method: expected one of {', '.join(METHODS)}, got {method!r}{nearest(method, METHODS)}")
    fits = isinstance(images, Tensor) and images.ndim == 4 and images.shape[1] == 3 and images.is_floating_point()
    if not fits or len(images) == 0:
        came = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise QScoreError(f"images: expected a float tensor (b, 3, h, w) of preprocessed images, b >= 1, got {came}")
    chosen = _check(features, encoder.dim)
    device = next((p.device for p in encoder.parameters()), images.device)
    with evaluating(encoder):
        return METHODS[method](encoder, images.detach().to(device), chosen, layer).detach()


def _check(features: Any, dim: int) -> list[int]:
    if isinstance(features, Tensor):
        features = features.detach().cpu().numpy()
    array = np.asarray(features)
    chosen: list[int] = check_features(array if array.size else array.astype(np.int64), dim).tolist()
    return chosen


def _activation(encoder: Encoder, x: Tensor, features: list[int], layer: str | None) -> Tensor:
    with torch.no_grad():
        found = named_layer(encoder, layer, x) if layer else averaged_layer(encoder, x)
        h, out = capture(encoder, found.path, x.contiguous(memory_format=torch.channels_last))
        maps = averaged(found.to_maps(out), h)  # (b, r, rows, columns)
        if maps is None:
            raise QScoreError(
                f"activation: the representation is not the average over positions of layer {found.path!r}; leave the "
                "layer out, or use method='gradcam', which works at any layer"
            )
        return maps[:, features] / (found.height * found.width)


def _gradcam(encoder: Encoder, x: Tensor, features: list[int], layer: str | None) -> Tensor:
    found = named_layer(encoder, layer, x) if layer else explaining_layer(encoder, x)
    return _at_layer(encoder, x, features, found, lambda maps, grad: (maps * grad.mean((2, 3), keepdim=True)).sum(1))


def _gradient(encoder: Encoder, x: Tensor, features: list[int], layer: str | None) -> Tensor:
    found = named_layer(encoder, layer, x) if layer else None
    return _at_layer(encoder, x, features, found, lambda _, grad: grad.abs().amax(1))


def _at_layer(
    encoder: Encoder,
    x: Tensor,
    features: list[int],
    layer: Layer | None,
    reduce: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Make a map of each feature out of a layer's maps, or the image, and the feature's gradient there.

    One forward pass serves all features, and gradients stop at the layer: captum, which this agrees with, runs the
    network anew for each feature, and takes a transformer's tokens for channels.
    """
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        h, out = capture(encoder, layer.path, x) if layer else (encoder(x), x)
        to_maps = layer.to_maps if layer else nn.Identity()
        maps = to_maps(out)
        heat = [reduce(maps.detach(), to_maps(_gradient_at(h[:, j], out))) for j in features]
    return torch.stack(heat, 1) if heat else maps.detach()[:, :0]


def _gradient_at(h: Float[Tensor, " b"], out: Tensor) -> Tensor:
    (grad,) = torch.autograd.grad(h.sum(), out, retain_graph=True, allow_unused=True)
    return torch.zeros_like(out) if grad is None else grad


def _integrated_gradients(encoder: Encoder, x: Tensor, features: list[int], layer: str | None) -> Tensor:
    attr = require("captum.attr", "vision")
    if layer is None:
        found, method = None, attr.IntegratedGradients(encoder)
    else:
        found = named_layer(encoder, layer, x)
        method = attr.LayerIntegratedGradients(encoder, network_of(encoder).get_submodule(found.path))
    heat = []
    for j in features:
        # As many images at once as the caller has chosen, whatever the number of steps.
        given = method.attribute(x, target=j, n_steps=STEPS, internal_batch_size=len(x))
        heat.append((found.to_maps(given) if found else given).sum(1))
    rows, columns = (found.height, found.width) if found else x.shape[2:]
    return torch.stack(heat, 1) if heat else x.new_empty(len(x), 0, rows, columns)


METHODS: dict[str, Callable[[Encoder, Tensor, list[int], str | None], Tensor]] = {
    "activation": _activation,
    "gradcam": _gradcam,
    "gradient": _gradient,
    "integrated_gradients": _integrated_gradients,
}
