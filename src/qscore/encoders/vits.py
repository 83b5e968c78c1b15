"""Vision transformers as DINO, DINOv2 and MoCo v3 released them, and their shape from a state dict."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mode
from typing import Any

import torch
from timm.layers.mlp import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

__all__ = ["NAME", "ViT", "build_vit", "infer_vit", "original_vit_key", "usual_heads"]

NAME = re.compile(
    r"(?P<width>\d{1,4})x(?P<depth>\d{1,3})-h(?P<heads>\d{1,3})-m(?P<hidden>\d{1,5})-p(?P<patch>\d{1,2})"
    r"-s(?P<size>\d{1,4})(?:-r(?P<registers>\d{1,2}))?(?P<scale>-ls)?(?P<gated>-swiglu)?"
)
# DINO's ViT-S and MoCo v3's; one head for every 64 features, and the ViT-H of everyone else.
SEVERAL_HEADS = {384: (6, 12), 1280: (16, 20)}
BY_OTHERS = (
    (re.compile(r"^blocks\.\d+\.(\d+\.)"), r"blocks.\1"),  # training in chunks numbers them too
    (re.compile(r"^register_tokens$"), "reg_token"),
    (re.compile(r"^(blocks\.\d+\.mlp)\.w12\."), r"\1.fc1."),
    (re.compile(r"^(blocks\.\d+\.mlp)\.w3\."), r"\1.fc2."),
)


@dataclass(frozen=True)
class ViT:
    """The shape of a vision transformer with a class token and learned or fixed position embeddings."""

    width: int
    """Features of a token, r."""
    depth: int
    """Blocks."""
    heads: int
    """Attention heads; no weight tells them."""
    hidden: int
    """Outputs of the first layer of each perceptron."""
    patch: int
    """Side of a patch in pixels."""
    size: int
    """Side in pixels of the images that the position embeddings are for."""
    registers: int = 0
    """Register tokens."""
    layer_scale: bool = False
    """Whether the blocks scale their branches."""
    gated: bool = False
    """Whether the perceptrons are SwiGLU."""

    @property
    def name(self) -> str:
        """What `build_backbone` understands."""
        flags = f"-r{self.registers}" * bool(self.registers) + "-ls" * self.layer_scale + "-swiglu" * self.gated
        shape = f"{self.width}x{self.depth}-h{self.heads}-m{self.hidden}"
        return f"vit:{shape}-p{self.patch}-s{self.size}{flags}"


class ReleasedViT(VisionTransformer):
    """timm's vision transformer, with positions interpolated as DINO and DINOv2 do, at whatever image size.

    timm's own rule (antialiased, without the offset) gives slightly different numbers.
    """

    cls_token: nn.Parameter
    pos_embed: nn.Parameter
    OFFSET = 0.1  # added to the grid's sides against rounding, in releases without registers

    def _pos_embed(self, x: Tensor) -> Tensor:
        b, h, w, _ = x.shape
        tokens = torch.cat([self.cls_token.expand(b, -1, -1), x.flatten(1, 2)], dim=1)  # (b, 1 + h * w, r)
        tokens = tokens + self._positions(h, w)
        if self.reg_token is not None:
            registers = self.reg_token.expand(b, -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        return tokens

    def _positions(self, h: int, w: int) -> Tensor:
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (h, w) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, r, side, side)
        if self.reg_token is not None:
            grid = nn.functional.interpolate(grid, size=(h, w), mode="bicubic", antialias=True)
        else:
            scale = ((h + self.OFFSET) / side, (w + self.OFFSET) / side)
            grid = nn.functional.interpolate(grid, scale_factor=scale, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def build_vit(name: str) -> nn.Module:
    """Build a randomly initialised vision transformer, (b, 3, h, w) to its class token (b, r).

    Parameters
    ----------
    name : str
        ``WIDTHxDEPTH-hHEADS-mHIDDEN-pPATCH-sSIZE``, and what else it has: ``-rN`` register tokens, ``-ls`` layer scale,
        ``-swiglu``; such as ``"384x12-h6-m1536-p16-s224"`` for ViT-S/16.
    """
    match = NAME.fullmatch(name)
    width, depth, heads, hidden, patch, size = (int(match[i]) for i in range(1, 7))  # type: ignore[index]
    registers = int(match["registers"] or 0)  # type: ignore[index]
    gated: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if match["gated"] else {}  # type: ignore[index]
    network = ReleasedViT(
        img_size=size,
        patch_size=patch,
        num_classes=0,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=hidden / width,
        init_values=1e-5 if match["scale"] else None,  # type: ignore[index]
        reg_tokens=registers,
        dynamic_img_size=True,
        **gated,
    )
    # timm keeps positions for the registers too; in the releases they have none.
    network.pos_embed = nn.Parameter(network.pos_embed[:, registers:].detach().clone())
    return network


def usual_heads(tensors: Mapping[str, Tensor], *, settled: Mapping[int, int]) -> tuple[int, ...]:
    """Return the numbers of attention heads that networks of this width have, but for widths that are settled."""
    width = _width(tensors)
    return (settled[width],) if width in settled else SEVERAL_HEADS.get(width, (max(1, width // 64),))


def infer_vit(tensors: Mapping[str, Tensor], *, heads: int) -> ViT:
    """Find the shape of the vision transformer whose state dict this is; a key or two may be missing or wrong.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Weights by timm's names.
    heads : int
        Attention heads.
    """
    blocks = {key.split(".")[1] for key in tensors if re.match(r"blocks\.\d+\.", key)}
    width = _width(tensors)
    hidden = _size(tensors, r"blocks\.\d+\.mlp\.fc1\.(weight|bias)", 0, 4 * width)
    patch = _size(tensors, r"patch_embed\.proj\.weight", 3, 16)
    positions = _size(tensors, r"pos_embed", 1, 197)
    registers = _size(tensors, r"reg_token", 1, 0)
    return ViT(
        width=width,
        depth=len(blocks),
        heads=heads,
        hidden=hidden,
        patch=patch,
        size=patch * math.isqrt(max(positions - 1, 1)),
        registers=registers,
        layer_scale=any(key.endswith(".ls1.gamma") for key in tensors),
        gated=_size(tensors, r"blocks\.\d+\.mlp\.fc2\.weight", 1, hidden) * 2 == hidden,
    )


def original_vit_key(key: str) -> str:
    """Return timm's name for a key of DINOv2's network."""
    for pattern, ours in BY_OTHERS:
        key = pattern.sub(ours, key)
    return key


def _width(tensors: Mapping[str, Tensor]) -> int:
    return _size(tensors, r"(norm|blocks\.\d+\.norm[12])\.(weight|bias)", 0, 384)


def _size(tensors: Mapping[str, Tensor], pattern: str, axis: int, default: int) -> int:
    """Return the size on which most of the matching tensors agree."""
    votes = [t.shape[axis] for key, t in tensors.items() if re.fullmatch(pattern, key) and t.ndim > axis]
    return mode(votes) if votes else default
