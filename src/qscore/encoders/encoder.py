"""An encoder: a network that turns images into representations, with all one must know to use it."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from qscore._validate import QScoreError
from qscore.encoders.preprocessing import Preprocessing

__all__ = ["Encoder", "Source", "measure_output"]


UNIT_NORM_WITHIN = 1e-3  # rounding in half precision


@dataclass(frozen=True)
class Source:
    """Where an encoder came from; recorded with every embedding it makes."""

    format: str
    """Kind of checkpoint, e.g. ``"torchvision"``, ``"timm"``, ``"qscore"``, ``"MoCo v2"``."""
    architecture: str
    """A name that `build_backbone` understands."""
    preprocessing: Preprocessing
    """What turns an image into the network's input."""
    method: str | None = None
    """How it was trained, e.g. ``"simclr"``; ``"unknown (A or B)"`` where several agree, None where nothing tells."""
    sha256: str | None = None
    """SHA-256 of the weights' file; None where they came from no single file."""
    dropped: tuple[str, ...] = ()
    """Modules of the checkpoint that were left out, such as its classifier."""
    layer: str | None = None
    """Module whose output is the representation; None for the network's own output."""
    tokens: str | None = None
    """Which of a vision transformer's tokens it is: ``"class"``, ``"patches"`` or ``"both"``; None: its own choice."""
    notes: tuple[str, ...] = ()
    """What else there is to know of the file: why modules were left out, what its name suggests."""
    config: Mapping[str, Any] | None = None
    """The settings of a network from Hugging Face; None for all others."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold, without those that say nothing."""
        record = asdict(self) | {"preprocessing": self.preprocessing.to_json(), "dropped": list(self.dropped)}
        optional = {name: record.pop(name) for name in ("layer", "tokens", "notes", "config")}
        return record | {name: value for name, value in optional.items() if value}


@final
class Encoder(nn.Module):
    """A network that maps preprocessed images to representations, in evaluation mode from the start.

    Parameters
    ----------
    backbone : nn.Module
        Maps (b, 3, h, w) to (b, r).
    source : Source
        Where it came from, and its preprocessing.

    Attributes
    ----------
    dim : int
        Number of features r.
    nonnegative : bool
        Whether representations have no negative values, as after a ReLU.
    normalised : bool
        Whether representations come out with unit L2 norm, as of some image-text models.
    preprocess : Preprocessing
        PIL image to float32 tensor of shape (3, h, w).
    source : Source
        As given.

    Raises
    ------
    QScoreError
        If the backbone does not accept images of the preprocessing's size, or its output has another shape.
    """

    def __init__(self, backbone: nn.Module, source: Source) -> None:
        super().__init__()
        self.backbone = backbone
        self.source = source
        self.preprocess = source.preprocessing
        self.eval()
        h = _run_on_noise(backbone, source.preprocessing.crop)
        self.dim, self.nonnegative = h.shape[1], bool((h >= 0).all())
        self.normalised = bool(((h.norm(dim=1) - 1).abs() < UNIT_NORM_WITHIN).all())

    def fingerprint(self) -> str:
        """Return the SHA-256 of all weights and statistics, in hexadecimal."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b r"]:
        """Return the representations of a preprocessed batch; gradients flow unless the caller forbids them."""
        h: Tensor = self.backbone(x)
        return h


def measure_output(backbone: nn.Module, size: int) -> tuple[int, bool]:
    """Find how many features a backbone has, and whether they are never negative.

    Parameters
    ----------
    backbone : nn.Module
        Maps (b, 3, h, w) to (b, r); its mode and the global random state are left as they were.
    size : int
        Side of the images in pixels.

    Returns
    -------
    tuple of int and bool
        The number of features r, and whether all are non-negative.

    Raises
    ------
    QScoreError
        If the backbone does not accept such images, or its output has another shape.
    """
    h = _run_on_noise(backbone, size)
    return h.shape[1], bool((h >= 0).all())


def _run_on_noise(backbone: nn.Module, size: int) -> Tensor:
    """Return the representations (2, r) of two images of noise."""
    device = next((p.device for p in backbone.parameters()), torch.device("cpu"))
    # No architecture says whether a ReLU comes last. On noise, a signed feature is negative about half of the time,
    # so among 2 r values of a network without one at least one is.
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    training = backbone.training
    backbone.eval()
    try:
        with torch.no_grad():
            h = backbone(noise)
    except QScoreError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise QScoreError(f"the network does not accept images of {size} x {size} pixels: {reason}") from error
    finally:
        backbone.train(training)
    if not isinstance(h, Tensor) or h.ndim != 2 or len(h) != 2:
        shape = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
        raise QScoreError(f"the network: expected output of shape (b, r), got {shape} for a batch of 2")
    return h
