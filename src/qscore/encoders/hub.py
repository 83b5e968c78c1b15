"""Networks by Hugging Face's transformers: a vision tower, read as this package reads timm's."""

import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

from qscore._files import sha256
from qscore._validate import QScoreError, require
from qscore.encoders.encoder import Source
from qscore.encoders.preprocessing import Preprocessing

__all__ = ["Tower", "build_from_config", "load_hugging_face", "to_preprocessing"]

WEIGHTS = "model.safetensors"
RESCALE = 1 / 255
MASKS_AT_RANDOM = ("vit_mae", "videomae")
KINDS = {
    *("beit", "bit", "chinese_clip", "chinese_clip_vision_model", "clip", "clip_vision_model", "convnext"),
    *("convnextv2", "data2vec-vision", "deit", "dinov2", "dinov2_with_registers", "dinov3_convnext", "dinov3_vit"),
    *("efficientnet", "focalnet", "ijepa", "levit", "mobilenet_v1", "mobilenet_v2", "mobilevit", "poolformer", "pvt"),
    *("pvt_v2", "regnet", "resnet", "segformer", "siglip", "siglip_vision_model", "swin", "swinv2", "vit", "vit_msn"),
}
OF_REPEATS = re.compile(r"layers|depth|blocks|stages|repeats")  # settings that say how often a part is built
OF_OTHERS = re.compile(r"backbone|timm")  # settings that fetch or open another network
CONFIGS = 3  # one name may stand in those of text, vision and both
OF_RUNNING = ("attn_implementation", "_attn_implementation", "quantization_config", "auto_map", "_name_or_path")


class Tower(nn.Module):
    """A vision model of transformers with the face of a timm network.

    Its own representation is, of tokens, what the model pools with trained weights (SigLIP, CLIP), else the class
    token, else the mean of the patch tokens (I-JEPA); of feature maps, their average.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        model = getattr(model, "vision_model", model)
        # BERT's pooler was trained for no self-supervised encoder, and most files lack it.
        if hasattr(getattr(model, "pooler", None), "dense"):
            model.pooler = None
        self.model = model
        embeddings = getattr(model, "embeddings", None)
        self.has_class_token = any(hasattr(embeddings, name) for name in ("cls_token", "class_embedding"))
        registers = int(getattr(self.config, "num_register_tokens", 0) or 0)
        distilled = hasattr(embeddings, "distillation_token")
        self.num_prefix_tokens = int(self.has_class_token) + registers + int(distilled)
        self._interpolates = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    @property
    def config(self) -> Any:
        """The model's settings."""
        return self.model.config

    def forward_features(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to tokens (b, n, r), or to a map (b, r, h', w')."""
        features: Tensor = self._run(x).last_hidden_state
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, r)."""
        out = self._run(x)
        pooled: Tensor | None = getattr(out, "pooler_output", None)
        if pooled is not None:
            return pooled.flatten(1)
        features: Tensor = out.last_hidden_state
        if features.ndim == 4:
            return features.mean((2, 3))
        return features[:, 0] if self.has_class_token else features[:, self.num_prefix_tokens :].mean(1)

    def _run(self, x: Tensor) -> Any:
        other_size = getattr(self.config, "image_size", x.shape[-1]) != x.shape[-1]
        options = {"interpolate_pos_encoding": True} if self._interpolates and other_size else {}
        return self.model(pixel_values=x, **options)


def load_hugging_face(name: str) -> tuple[nn.Module, Source]:
    """Load a model by its name on the hub or from its directory, which needs no network.

    Parameters
    ----------
    name : str
        Such as ``"facebook/dinov2-small"``, or a directory with ``config.json`` and ``model.safetensors``.

    Raises
    ------
    QScoreError
        If weights are missing, or the image processor does something that `Preprocessing` cannot say.
    """
    transformers = require("transformers", "hf")
    config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    if config.model_type in MASKS_AT_RANDOM:
        raise QScoreError(f"{config.model_type} hides random patches; save its encoder as a plain ViT")
    _check_kind(config.to_dict())
    if Path(name, WEIGHTS).is_file():
        with safe_open(Path(name, WEIGHTS), framework="pt") as archive:
            _check_repeats(config.to_dict(), len(archive.keys()))
    processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
    preprocessing = to_preprocessing(processor.to_dict())
    model, info = _load_quietly(transformers, name)
    tower = Tower(model)
    kept = {id(parameter) for parameter in tower.state_dict(keep_vars=True).values()}
    ours = {key for key, value in model.state_dict(keep_vars=True).items() if id(value) in kept}
    missing = sorted(key for key in info["missing_keys"] if key in ours)
    mismatched = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    if missing or mismatched:
        count = len(missing) + len(mismatched)
        raise QScoreError(
            f"the file does not fill the network: {', '.join([*missing, *mismatched][:4])} "
            f"{'is' if count == 1 else 'are'} missing or of another shape ({count} in all)"
        )
    others = [key for key in [*model.state_dict(), *info["unexpected_keys"]] if key not in ours]
    for tensor in tower.state_dict(keep_vars=True).values():
        # In a mapped file they lie at odd addresses, where some kernels round otherwise.
        tensor.data = tensor.data.clone()
    source = Source(
        "Hugging Face",
        f"hf:{name}",
        preprocessing,
        sha256=_hash(name),
        dropped=tuple(sorted({key.partition(".")[0] for key in others})),
        config=tower.config.to_dict(),
    )
    return tower, source


def _load_quietly(transformers: Any, name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model and what transformers found amiss, which it would also print at length."""
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        model, info = transformers.AutoModel.from_pretrained(
            name,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        transformers.logging.set_verbosity(verbosity)
    return model, info


def build_from_config(config: Mapping[str, Any], *, at_most: int) -> nn.Module:
    """Build a randomly initialised tower from its settings, which may come from anyone.

    Parameters
    ----------
    config : mapping
        What a tower's ``config.to_dict()`` returned.
    at_most : int
        No part may be repeated more often than that: the number of tensors there are to fill it.

    Raises
    ------
    QScoreError
        If the settings are of no model that is supported, name another network, or ask for more parts.
    """
    _check_kind(config)
    _check_repeats(config, at_most)
    transformers = require("transformers", "hf")
    try:
        settings = {name: value for name, value in config.items() if name not in OF_RUNNING}
        made = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
        with torch.random.fork_rng(devices=[]):
            return Tower(transformers.AutoModel.from_config(made, trust_remote_code=False).float())
    except Exception as error:  # transformers raises nearly anything for settings that do not fit together
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise QScoreError(f"the settings of a network from Hugging Face cannot be used: {reason}") from error


def _check_kind(config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    if kind not in KINDS:
        raise QScoreError(f"a network of type {kind!r} from Hugging Face: expected one of {', '.join(sorted(KINDS))}")
    for name, value in _flatten(config):
        if OF_OTHERS.search(name) and value:
            raise QScoreError(f"the settings of a network from Hugging Face name another network: {name}={value!r:.80}")


def _check_repeats(config: Mapping[str, Any], at_most: int) -> None:
    totals: Counter[str] = Counter()
    for name, value in _flatten(config):
        if OF_REPEATS.search(name) and isinstance(value, int | float):
            totals[name] += value  # type: ignore[assignment]
            if totals[name] > at_most * CONFIGS:
                raise QScoreError(f"the settings of a network from Hugging Face ask for {name}={value}: too many")


def _flatten(settings: Any) -> Iterator[tuple[str, Any]]:
    """Give the values in nested settings, each by the last name on its way, however deep."""
    waiting = [("", settings)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(str(key), item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(name, item) for item in value]
        else:
            yield name, value


def to_preprocessing(settings: Mapping[str, Any]) -> Preprocessing:
    """Say what an image processor does in this package's terms.

    Parameters
    ----------
    settings : mapping
        What its ``to_dict`` returns.

    Raises
    ------
    QScoreError
        If it does anything else than resize, crop, scale to [0, 1] and normalise to a square image.

    Notes
    -----
    Where a crop's margins differ by one pixel, this package puts the odd one where torchvision does, and transformers
    where NumPy does.
    """
    unusual = [name for name in ("do_pad", "do_flip_channel_order", "do_thumbnail", "offset") if settings.get(name)]
    rescales = settings.get("do_rescale", True) and abs(settings.get("rescale_factor", RESCALE) - RESCALE) < 1e-9
    size = dict(settings.get("size") or {})
    resize, squash = size.get("shortest_edge"), "shortest_edge" not in size
    crop = _side(dict(settings.get("crop_size") or {})) if settings.get("do_center_crop") else None
    if squash:
        resize = _side(size)
    elif crop is None and "crop_pct" in settings and resize:  # ConvNeXt's: large images are squashed, others cropped
        squash = resize >= 384
        crop, resize = resize, resize if squash else int(resize / settings["crop_pct"])
    elif crop is None:
        unusual.append("size without a crop")
    if not settings.get("do_resize", True):
        resize, squash = None, False
    crop = crop or resize
    if unusual or not rescales or crop is None:
        raise QScoreError(f"its image processor does more than resize, crop and normalise: {dict(settings)}")
    normalises = settings.get("do_normalize", True)
    return Preprocessing(
        crop=crop,
        resize=resize,
        squash=squash,
        interpolation=Image.Resampling(settings.get("resample", Image.Resampling.BILINEAR)).name.lower(),
        mean=tuple(settings["image_mean"]) if normalises else (0.0, 0.0, 0.0),
        std=tuple(settings["image_std"]) if normalises else (1.0, 1.0, 1.0),
    )


def _side(size: Mapping[str, Any]) -> int | None:
    height, width = size.get("height"), size.get("width")
    return height if height == width else None


def _hash(name: str) -> str | None:
    """Return the SHA-256 of the weights, in the directory or in the download cache."""
    from huggingface_hub import try_to_load_from_cache

    found = Path(name, WEIGHTS) if Path(name).is_dir() else try_to_load_from_cache(name, WEIGHTS)
    return sha256(found) if isinstance(found, str | Path) and Path(found).is_file() else None
