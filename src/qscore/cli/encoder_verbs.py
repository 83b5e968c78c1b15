"""The verbs about one encoder: what a checkpoint is, and the same in this package's own format."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qscore._validate import require
from qscore.cli.verb import Outcome, verb

if TYPE_CHECKING:
    from qscore.encoders import Encoder

__all__ = ["Heads", "Layer", "Method", "Normalisation", "StemPadding", "Tokens", "encoder_app", "load"]

logger = logging.getLogger(__name__)
encoder_app = typer.Typer()

Checkpoint = Annotated[
    str, typer.Argument(help="A checkpoint, an encoder directory, torchvision:NAME, timm:NAME, or hf:NAME.")
]
Method = Annotated[
    str | None,
    typer.Option(
        help="How a checkpoint by others was trained (simclr, byol, supervised, ...), or its format's name: "
        "decides where nothing in the file does.",
        show_default="by its keys",
    ),
]
Layer = Annotated[
    str | None,
    typer.Option(help="Module whose output is the representation, e.g. layer3.", show_default="the network's output"),
]
Tokens = Annotated[
    Literal["class", "patches", "both"] | None,
    typer.Option(
        help="Of a vision transformer: the class token, the mean of the patch tokens, or both side by side.",
        show_default="its authors' choice",
    ),
]
StemPadding = Annotated[
    int | None,
    typer.Option(min=1, max=2, help="Padding of a 3x3 stem, which no file tells.", show_default="its format's"),
]
Heads = Annotated[
    int | None,
    typer.Option(
        min=1, help="Attention heads of a vision transformer, which no file tells.", show_default="its format's"
    ),
]
Normalisation = Annotated[
    Literal["imagenet", "cifar", "zero-one", "minus-one-one"] | None,
    typer.Option("--preprocessing", help="Mean and std of the encoder's input.", show_default="its publisher's"),
]


@encoder_app.command()
@verb
def inspect(
    checkpoint: Checkpoint,
    method: Method = None,
    layer: Layer = None,
    tokens: Tokens = None,
    stem_padding: StemPadding = None,
    heads: Heads = None,
    preprocessing: Normalisation = None,
) -> Outcome:
    """Say what an encoder is: its format, method, architecture and preprocessing, and what was left out.

    Example:  qscore inspect moco_v2_800ep_pretrain.pth.tar
    """
    require("torch", "vision")
    from qscore.encoders import load_encoder, summarise

    readout = {"layer": layer, "tokens": tokens}
    encoder = load_encoder(
        checkpoint, method=method, **readout, stem_padding=stem_padding, heads=heads, preprocessing=preprocessing
    )

    data = encoder.source.to_json() | {
        "dim": encoder.dim,
        "nonnegative": encoder.nonnegative,
        "normalised": encoder.normalised,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
    }
    return Outcome(data, summarise(encoder))


@encoder_app.command()
@verb
def convert(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="Safetensors file to write; every verb takes it as an encoder.")],
    method: Method = None,
    layer: Layer = None,
    tokens: Tokens = None,
    stem_padding: StemPadding = None,
    heads: Heads = None,
    preprocessing: Normalisation = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> Outcome:
    """Write a checkpoint by others as one safetensors file that knows its architecture and preprocessing.

    Example:  qscore convert moco_v2_800ep_pretrain.pth.tar --out moco.safetensors
    """
    readout = {"layer": layer, "tokens": tokens}
    encoder = load(
        checkpoint, method=method, **readout, stem_padding=stem_padding, heads=heads, preprocessing=preprocessing
    )
    from qscore.encoders import convert_encoder

    path = convert_encoder(encoder, out, overwrite=overwrite)
    return Outcome({"encoder": str(path)}, [f"Encoder: {path}"])


def load(spec: str, **options: Any) -> "Encoder":
    """Load an encoder and log what it is; torch is imported by those verbs alone that need it."""
    require("torch", "vision")
    from qscore.encoders import load_encoder, summarise

    encoder = load_encoder(spec, **options)
    for line in summarise(encoder):
        logger.info("%s", line)
    return encoder
