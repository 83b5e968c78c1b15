"""Options that several verbs have."""

from typing import Annotated, Any, Literal

import typer

from qscore._validate import settle_epsilon

__all__ = ["IMAGES", "BatchSize", "Device", "Images", "Overwrite", "Precision", "Seed", "Workers", "read_epsilon"]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes a GPU where there is one.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per forward pass.")]
Workers = Annotated[int | None, typer.Option(min=0, help="Processes that decode images.", show_default="by the source")]
Precision = Annotated[
    Literal["32-true", "bf16-mixed", "16-mixed"], typer.Option(help="Arithmetic of the network, in Lightning's names.")
]
IMAGES = (
    "A folder of images, a .csv or .parquet list, .npz archives or WebDataset tars (a pattern in quotes), "
    "torchvision:NAME/SPLIT, hf:NAME:SPLIT, 'digits', or drawn shapes, 'shapes' or shapes:n=2000,spurious=0,split=test."
)
Images = Annotated[str, typer.Argument(help=IMAGES)]


def read_epsilon(text: str) -> float | Literal["auto"]:
    """Read an epsilon as typed: a number, ``auto``, or ``paper``, which is 4.

    Raises
    ------
    QScoreError
        If it is neither a positive number nor one of these words.
    """
    try:
        epsilon: Any = float(text)
    except ValueError:
        epsilon = text
    return settle_epsilon(epsilon)
