"""Which of a network's activations are the representation: its own output, tokens, or a named layer."""

from typing import Any

import torch
from torch import Tensor, nn

from qscore._validate import QScoreError, nearest

__all__ = ["TOKENS", "Readout", "read_out"]

TOKENS = ("class", "patches", "both")


def read_out(network: nn.Module, *, layer: str | None, tokens: str | None) -> nn.Module:
    """Return a network whose output (b, r) is the representation that is asked for.

    Parameters
    ----------
    network : nn.Module
        Maps (b, 3, h, w) to (b, r).
    layer : str or None
        Path of a module as in ``named_modules()``. Its output (b, r, h, w) is averaged over positions, (b, n, r) is
        pooled as ``tokens`` says, (b, r) is taken as it is.
    tokens : {"class", "patches", "both"} or None
        Of a vision transformer's tokens: the class token, the mean of the patch tokens, or the one beside the other;
        None is the network's own choice, and of a layer's tokens the class token where there is one.

    Raises
    ------
    QScoreError
        If there is no such layer, or the network has no tokens or no class token.
    """
    if layer is None and tokens is None:
        return network
    if tokens is not None and tokens not in TOKENS:
        raise QScoreError(f"tokens: expected one of {', '.join(TOKENS)}, got {tokens!r}{nearest(tokens, TOKENS)}")
    paths = [path for path, _ in network.named_modules() if path]
    if layer is not None and layer not in paths:
        children = ", ".join(path for path in paths if "." not in path)
        raise QScoreError(f"layer {layer!r}: the network has {children}, and what is in them{nearest(layer, paths)}")
    if layer is None and not hasattr(network, "forward_features"):
        raise QScoreError(f"tokens={tokens!r}: this network has none; leave it out, or name a layer")
    return Readout(network, layer, tokens)


class Readout(nn.Module):
    """A network read at a layer, or at its tokens; made by `read_out`."""

    def __init__(self, network: nn.Module, layer: str | None, tokens: str | None) -> None:
        super().__init__()
        self.network = network
        self.layer = layer
        self.tokens = tokens

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, r)."""
        if self.layer is None:
            pooled = self._pool_tokens(self.network.forward_features(x))  # type: ignore[operator]
            # Networks that average their tokens normalise after that.
            norm = getattr(self.network, "fc_norm", None)
            return pooled if norm is None or self.tokens == "both" else norm(pooled)
        return self._pool(self._run_to_layer(x))

    def _run_to_layer(self, x: Tensor) -> Tensor:
        outputs: list[Any] = []
        module = self.network.get_submodule(self.layer or "")
        # The last call counts where a module is used several times, as ResNet's ReLUs are.
        handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        try:
            self.network(x)
        finally:
            handle.remove()
        if not outputs:
            raise QScoreError(f"layer {self.layer!r} takes no part in the forward pass; name another")
        out = outputs[-1]
        out = out[0] if isinstance(out, tuple | list) and out else out
        if not isinstance(out, Tensor):
            raise QScoreError(f"layer {self.layer!r}: expected a tensor, got {type(out).__name__}; name another")
        return out

    def _pool(self, out: Tensor) -> Tensor:
        if out.ndim == 4:
            last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
            return out.mean((1, 2) if last else (2, 3))  # (b, r, h, w) -> (b, r)
        return self._pool_tokens(out) if out.ndim == 3 else out.flatten(1)

    def _pool_tokens(self, tokens: Tensor) -> Tensor:
        if tokens.ndim != 3:
            raise QScoreError(
                f"tokens={self.tokens!r}: this network has none, but features of shape {tuple(tokens.shape)}"
            )
        prefix, has_class = count_prefix_tokens(self.network)
        which = self.tokens or ("class" if has_class else "patches")
        if which != "patches" and not has_class:
            raise QScoreError(f"tokens={which!r}: this network has no class token; use 'patches'")
        mean = tokens[:, prefix:].mean(1)  # (b, n, r) -> (b, r)
        return {"class": tokens[:, 0], "patches": mean}.get(which, torch.cat([tokens[:, 0], mean], dim=1))


def count_prefix_tokens(network: nn.Module) -> tuple[int, bool]:
    """Return how many tokens stand before those of patches, and whether the first is a class token."""
    prefix = getattr(network, "num_prefix_tokens", None)
    for name in ("cls_token", "class_token"):  # timm's name and torchvision's
        if isinstance(getattr(network, name, None), Tensor):
            return (1 if prefix is None else int(prefix)), True
    return int(prefix or 0), bool(getattr(network, "has_class_token", False))
