"""The formats in which others publish encoders: one row each, read from their own loading and saving code."""

from dataclasses import dataclass, replace

from qscore.encoders.preprocessing import Preprocessing, Triple

__all__ = ["FORMATS", "TITLES", "Format"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ANYWHERE: tuple[tuple[str, ...], ...] = ((), ("state_dict",), ("model",), ("model_state_dict",))
HEAD, MOMENTUM, TEACHER, QUEUE = "head", "momentum encoder", "other network of the pair", "queue of negatives"
CLASSIFIER = "classifier"
PROJECTOR = "projection head, stored as fc"

TITLES = {
    "simclr": "SimCLR",
    "moco": "MoCo",
    "swav": "SwAV",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "dino": "DINO",
    "dinov2": "DINOv2",
    "vicreg": "VICReg",
    "barlow": "Barlow Twins",
    "supervised": "supervised",
}


@dataclass(frozen=True)
class Format:
    """How one publisher stores one method's encoders.

    Patterns are matched against the start of a key from which ``module.`` and ``_orig_mod.`` have been taken out.
    """

    name: str
    """For people, and for ``method=`` where a method has several formats."""
    methods: tuple[str, ...] = ()
    """The methods it may come from, keys of ``TITLES``; several where nothing tells them apart, none where any."""
    containers: tuple[tuple[str, ...], ...] = ANYWHERE
    """Where in the file the state dict may lie: paths of keys."""
    prefix: str = ""
    """What stands before the encoder's keys."""
    marks: tuple[str, ...] = ()
    """Patterns each of which some key matches."""
    without: tuple[str, ...] = ()
    """Patterns that no key matches."""
    drop: tuple[tuple[str, str], ...] = ()
    """Patterns of keys that are no part of the encoder, and what they are; the first that matches counts."""
    families: tuple[str, ...] = ("resnet",)
    """Keys of ``architectures.FAMILIES``."""
    mean: Triple = IMAGENET_MEAN
    """Subtracted from the channels of an image in [0, 1]."""
    std: Triple = IMAGENET_STD
    """Divides them."""
    interpolation: str | None = None
    """Filter of the resizing; None for bilinear with ResNets and bicubic with the younger networks."""
    resize: int = 256
    """Shorter side in pixels before a crop of 224."""
    cifar_padding: int | None = None
    """Padding of a 3x3 stem; None where the format does not settle it."""
    same: bool = False
    """Whether every convolution and pooling was trained with TensorFlow's "SAME" padding."""
    heads: tuple[tuple[int, int], ...] = ()
    """Pairs of width and attention heads, where the format settles what networks of this width have by turns."""
    note: str = ""
    """What a user should know who has this file."""
    only_on_request: bool = False
    """Whether ``method=`` must name it."""

    def preprocessing(self, family: str, native: int) -> Preprocessing:
        """Return the publisher's evaluation preprocessing for a network made for images of ``native`` pixels a side."""
        interpolation = self.interpolation or ("bilinear" if family == "resnet" else "bicubic")
        crop, resize = (224, self.resize) if native >= 224 else (native, native)
        return Preprocessing(crop, resize, interpolation=interpolation, mean=self.mean, std=self.std)


SMALL = ((384, 6),)
FLAT = Format("a bare ResNet", without=(r"fc\.", r"projection_head\.", r"prototypes\."))
CLASSIFIED = Format("a bare ResNet with fc", marks=(r"fc\.weight",), drop=((r"fc\.(weight|bias)", CLASSIFIER),))
# Lightning modules keep what they like beside the encoder.
LIGHTNING = Format(
    "Lightning module",
    containers=((), ("state_dict",)),
    prefix="backbone.",
    without=(r"classifier\.",),
    drop=(
        (r"(teacher|student|key)_backbone|backbone_momentum|(target|momentum)_(encoder|backbone)", TEACHER),
        (r"(?!backbone\.)", HEAD),
    ),
    families=("resnet", "vit", "convnext"),
)
OF_SOLO = r"projector\.|momentum_|prototypes|queue"  # beside its classifier
CLASSIFIED_LIGHTNING = replace(LIGHTNING, marks=(r"classifier\.",), without=(OF_SOLO,))
SOLO = replace(
    LIGHTNING,
    name="solo-learn",
    methods=("simclr", "vicreg", "barlow"),
    marks=(r"classifier\.", OF_SOLO),
    drop=((r"momentum_", MOMENTUM), (r"queue", QUEUE), (r"(?!backbone\.)", HEAD)),
    cifar_padding=2,
    heads=SMALL,
)
DINO_HEAD, MOMENTUM_NETWORK = r"(momentum_)?head\.|dino_loss", r"momentum_(backbone|encoder)\."
LIGHTLY = (r"projection_head\.", r"prediction_head\.", r"(teacher|student|key)_")


def _solo(method: str | None, has: tuple[str, ...], lacks: tuple[str, ...]) -> Format:
    name = f"solo-learn {TITLES[method]}" if method else "solo-learn"
    methods = (method,) if method else SOLO.methods
    return replace(SOLO, name=name, methods=methods, marks=(*SOLO.marks, *has), without=(*LIGHTLY, *lacks))


# Its heads tell its methods apart, but for three.
SOLO_METHODS = (
    _solo("dino", (DINO_HEAD,), ()),
    _solo("swav", (r"prototypes\.",), (DINO_HEAD,)),
    _solo("moco", (r"queue", MOMENTUM_NETWORK), (r"predictor\.", DINO_HEAD)),
    # Its MoCo v3 has the same parts, and in ViT-S twice the heads.
    replace(_solo("byol", (r"predictor\.", MOMENTUM_NETWORK), (DINO_HEAD, r"prototypes\.")), heads=()),
    _solo("simsiam", (r"predictor\.",), (MOMENTUM_NETWORK, DINO_HEAD, r"prototypes\.")),
    _solo(None, (), (r"predictor\.", r"prototypes\.", DINO_HEAD, r"queue", MOMENTUM_NETWORK)),
    replace(_solo(None, (MOMENTUM_NETWORK,), (r"predictor\.", r"prototypes\.", DINO_HEAD, r"queue")), methods=()),
)


def _before_renaming(row: Format) -> Format:
    """Return a row for solo-learn's first releases and their like, which said ``encoder.`` for ``backbone.``."""
    drop = (*row.drop[:-1], (r"(?!encoder\.)", HEAD))
    # SimSiam's and Lightning Bolts' files begin alike, but have other heads.
    return replace(row, prefix="encoder.", drop=drop, without=(*row.without, r"encoder\.fc\.", r"projection\."))


OLD_LIGHTNING = (replace(LIGHTNING, marks=(r"projector\.|momentum_",)), CLASSIFIED_LIGHTNING)


VIT = Format(
    "a bare ViT",
    families=("vit",),
    without=(r"head\.weight", r".*\.ls1\.gamma", r"register_tokens"),
    drop=((r"mask_token", "mask token"), (r"head\.(mlp|last_layer)", HEAD)),
)
DINO_NOTE = (
    "note: nothing tells DINO's file from a timm network without its classifier; if it is one that wants inputs in "
    "[-1, 1], such as vit_small_patch16_224, give --preprocessing minus-one-one"
)
CONVNEXT = Format("a bare ConvNeXt", families=("convnext",))

FORMATS: tuple[Format, ...] = (
    replace(CLASSIFIED, name="torchvision", methods=("supervised",)),
    replace(CLASSIFIED, name="SimCLR, converted", methods=("simclr",), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    replace(CLASSIFIED, name="BYOL, converted", methods=("byol",), interpolation="bicubic", same=True),
    replace(FLAT, name="DINO", methods=("dino",)),
    replace(FLAT, name="VICReg", methods=("vicreg",)),
    replace(FLAT, name="Barlow Twins", methods=("barlow",)),
    Format(
        "VISSL",
        containers=(("classy_state_dict", "base_model", "model", "trunk"), *ANYWHERE),
        prefix="_feature_blocks.",
        drop=((r"heads\.", HEAD),),
    ),
    Format(
        "Lightning Bolts",
        ("simclr",),
        containers=(("state_dict",),),
        prefix="encoder.",
        marks=(r"projection\.",),
        drop=((r"projection\.", HEAD), (r"encoder\.fc\.", CLASSIFIER), (r"(online_)?(finetuner|classifier)\.", HEAD)),
    ),
    Format(
        "SwAV",
        ("swav",),
        marks=(r"projection_head\.|prototypes\.",),
        drop=((r"projection_head\.", HEAD), (r"prototypes\.", "prototypes")),
        std=(0.228, 0.224, 0.225),
    ),
    Format(
        "MoCo v2",
        ("moco",),
        prefix="encoder_q.",
        drop=((r"encoder_q\.fc\.", PROJECTOR), (r"encoder_k\.", MOMENTUM), (r"queue", QUEUE)),
    ),
    Format(
        "SimSiam",
        ("simsiam",),
        prefix="encoder.",
        marks=(r"encoder\.fc\.|predictor\.",),
        without=(r"projector\.", r"projection\.", r"classifier\.", r"momentum_"),
        drop=((r"encoder\.fc\.", PROJECTOR), (r"predictor\.", HEAD)),
    ),
    Format(
        "VICReg, full",
        ("vicreg",),
        containers=(("model",),),
        prefix="backbone.",
        marks=(r"projector\.",),
        without=(r"bn\.",),
        drop=((r"projector\.", HEAD),),
    ),
    Format(
        "Barlow Twins, full",
        ("barlow",),
        containers=(("model",),),
        prefix="backbone.",
        marks=(r"bn\.",),
        drop=((r"projector\.", HEAD), (r"bn\.", HEAD)),
    ),
    *(
        Format(
            f"DINO {network}",
            ("dino",),
            containers=((network,),),
            prefix=prefix,
            drop=((r"(dino_|ibot_)?head\.", HEAD), (r".*mask_token", "mask token")),
            families=("resnet", "vit"),
            interpolation="bicubic",
            heads=SMALL,
            only_on_request=network == "student",
        )
        for network in ("teacher", "student")
        for prefix in ("backbone.", "")
    ),
    *SOLO_METHODS,
    *map(_before_renaming, SOLO_METHODS),
    LIGHTNING,
    CLASSIFIED_LIGHTNING,
    *map(_before_renaming, OLD_LIGHTNING),
    replace(
        LIGHTNING,
        name="Lightning module, teacher",
        methods=("dino",),
        prefix="teacher_backbone.",
        without=(r"backbone\.",),
        drop=((r"student_backbone", TEACHER), (r"(?!teacher_backbone\.)", HEAD)),
    ),
    Format(
        "MoCo v3",
        ("moco",),
        prefix="base_encoder.",
        drop=(
            (r"base_encoder\.(head|fc)\.", PROJECTOR),
            (r"momentum_encoder\.", MOMENTUM),
            (r"predictor\.", HEAD),
        ),
        families=("resnet", "vit"),
        interpolation="bilinear",
        heads=((384, 12),),
    ),
    # Of DINO's file, flat, every key is the encoder's.
    replace(
        VIT,
        name="DINO ViT",
        methods=("dino",),
        containers=((),),
        without=(*VIT.without, r"mask_token", r"head\."),
        drop=(),
        heads=SMALL,
        note=DINO_NOTE,
    ),
    replace(VIT, containers=((),), marks=(r"mask_token|head\.",)),
    replace(VIT, containers=ANYWHERE[1:]),
    replace(
        VIT,
        name="DINOv2",
        methods=("dinov2",),
        without=(r"head\.weight",),
        marks=(r".*\.ls1\.gamma",),
        heads=SMALL,
    ),
    replace(
        VIT,
        name="supervised ViT",
        methods=("supervised",),
        marks=(r"head\.weight",),
        without=(),
        drop=((r"head\.(weight|bias)", CLASSIFIER),),
        heads=SMALL,
    ),
    replace(
        VIT,
        name="supervised ViT in [-1, 1]",
        methods=("supervised",),
        marks=(r"head\.weight",),
        without=(),
        drop=((r"head\.(weight|bias)", CLASSIFIER),),
        heads=SMALL,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
    replace(
        CONVNEXT,
        name="supervised ConvNeXt",
        methods=("supervised",),
        marks=(r"head\.(fc\.)?weight",),
        drop=((r"head\.(fc\.)?(weight|bias)", CLASSIFIER),),
    ),
    replace(
        CONVNEXT,
        name="torchvision ConvNeXt",
        methods=("supervised",),
        marks=(r"features\.",),
        drop=((r"classifier\.2\.", CLASSIFIER),),
        interpolation="bilinear",
        resize=236,
    ),
    replace(CONVNEXT, without=(r"head\.(fc\.)?weight", r"features\.")),
)
