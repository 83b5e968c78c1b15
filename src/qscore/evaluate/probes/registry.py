"""One table of the kinds of probe, and the functions that consult it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Shaped

from qscore._validate import QScoreError, nearest, require
from qscore.evaluate.probes.devices import place
from qscore.evaluate.probes.knn import TEMPERATURE, KNNClassifier, choose_k
from qscore.evaluate.probes.logistic import STRENGTHS, fit_logistic, logistic_needs
from qscore.evaluate.probes.probe import Classifier, Probe, make_probe
from qscore.evaluate.probes.rows import TrainingRows, training_rows

if TYPE_CHECKING:
    from qscore.encoders import Encoder
    from qscore.evaluate.probes.sgd import SGDConfig
    from qscore.images import ImageSource

__all__ = ["PROBES", "ProbeKind", "fit_probe", "fit_sgd_probe", "fit_table_probe"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fitted:
    """What a kind of probe gives back."""

    classifier: Classifier
    settings: dict[str, Any]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """What a fit may use beside the rows."""

    seed: int
    device: str
    encoder: "Encoder | None" = None
    images: "Sequence[str] | ImageSource | None" = None
    config: "SGDConfig | None" = None
    precision: str = "32-true"
    workers: int | None = None


@dataclass(frozen=True)
class ProbeKind:
    """A kind of probe."""

    title: str
    """What to call it in a sentence."""
    confidence: str
    """What its confidence is."""
    probability: bool
    """Whether that is meant as a probability."""
    fit: Callable[[TrainingRows, Options], Fitted]


def fit_probe(
    kind: str,
    H: Float[Any, "n r"],
    labels: Shaped[Any, " n"],
    *,
    seed: int = 0,
    device: str = "auto",
    test_labels: Shaped[Any, " m"] | None = None,
) -> Probe:
    """Fit a probe on frozen representations.

    Parameters
    ----------
    kind : {"logistic", "knn", "sgd"}
        Multinomial logistic regression, weighted nearest neighbours, or SGD on the representations as they are.
    H : array or memory map of shape (n, r)
        Floating-point training representations; rows with NaN or infinity are left out. ``knn`` and ``sgd`` read a
        part at a time, ``logistic`` holds them in float32.
    labels : array-like of shape (n,)
        Integers or strings, at least two classes.
    seed : int, default=0
        Seed of everything random, at least 0.
    device : str, default="auto"
        ``"cpu"``, ``"cuda"``, ...; ``"auto"`` takes a GPU where there is one and the work is worth it.
    test_labels : array-like of shape (m,), optional
        Labels of the rows to be predicted: classes among them that no training row has are counted and named.

    Returns
    -------
    Probe
        The fitted probe.

    Raises
    ------
    QScoreError
        If the kind is unknown, rows or labels cannot be learned from, or the work is more than the kind is made for.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat(["cat", "dog"], 50)
    >>> H = rng.normal(size=(100, 8)); H[labels == "dog", 0] += 6
    >>> probe = fit_probe("logistic", H, labels)
    >>> predicted, confidence = probe.predict(H[:2])
    >>> predicted.tolist(), probe.describe()["converged"]
    (['cat', 'cat'], True)
    """
    return _fitted(kind, H, labels, Options(seed, device), test_labels)


def fit_sgd_probe(
    H: Float[Any, "n r"],
    labels: Shaped[Any, " n"],
    *,
    encoder: "Encoder | None" = None,
    images: "Sequence[str] | ImageSource | None" = None,
    config: "SGDConfig | None" = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
    workers: int | None = None,
    test_labels: Shaped[Any, " m"] | None = None,
) -> Probe:
    """Fit the paper's linear probe: 100 epochs of SGD, on augmented images through the frozen encoder if given.

    Parameters
    ----------
    H, labels, seed, device, test_labels
        As :func:`fit_probe` takes them.
    encoder : Encoder, optional
        What made the embeddings. It stays as it is, which is proven by a checksum before and after.
    images : sequence of str or ImageSource, optional
        The image of each row of ``H``, with ``encoder``: locators such as an embedding table's ``path``.
    config : SGDConfig, optional
        The recipe; by default the published one.
    precision : str, default="32-true"
        Of the encoder: also ``"bf16-mixed"``, ``"16-mixed"``.
    workers : int, optional
        Threads that decode images; by default one a core.

    Returns
    -------
    Probe
        The fitted probe; it predicts from embeddings, as every other.

    Raises
    ------
    QScoreError
        As :func:`fit_probe`; or if encoder and images are not those of the rows, or the encoder has changed.
    """
    if (encoder is None) != (images is None):
        raise QScoreError("sgd probe: expected an encoder and the training rows' images, or neither; got one of them")
    return _fitted("sgd", H, labels, Options(seed, device, encoder, images, config, precision, workers), test_labels)


def fit_table_probe(
    kind: str,
    H: Float[Any, "n r"],
    labels: Shaped[Any, " n"],
    *,
    paths: Sequence[str] | None = None,
    encoder: "str | Path | Encoder | None" = None,
    seed: int = 0,
    device: str = "auto",
    test_labels: Shaped[Any, " m"] | None = None,
) -> Probe:
    """Fit a probe on the content of an embedding table, on its images where an encoder is named.

    Parameters
    ----------
    kind, H, labels, seed, device, test_labels
        As :func:`fit_probe` takes them.
    paths : sequence of str, optional
        The table's column ``path``.
    encoder : str, Path or Encoder, optional
        For ``kind="sgd"``, as :func:`qscore.load_encoder` takes it: train on augmented images.

    Raises
    ------
    QScoreError
        As :func:`fit_sgd_probe`; or if an encoder is named that no image or no probe has use for.
    """
    if encoder is None:
        return fit_probe(kind, H, labels, seed=seed, device=device, test_labels=test_labels)
    _known(kind)
    if kind != "sgd":
        raise QScoreError(f"probe {kind!r} is fitted on the embeddings and takes no encoder; only 'sgd' does")
    if paths is None:
        raise QScoreError(
            "probe 'sgd' with an encoder: the training table has no column 'path' that leads to every image; "
            "leave the encoder out to train on the embeddings"
        )
    require("torch", "vision")
    from qscore.encoders import load_encoder

    return fit_sgd_probe(
        H, labels, encoder=load_encoder(encoder), images=paths, seed=seed, device=device, test_labels=test_labels
    )


def _fitted(kind: str, H: Any, labels: Any, options: Options, test_labels: Any) -> Probe:
    known = _known(kind)
    if options.seed < 0:
        raise QScoreError(f"expected seed >= 0, got {options.seed}")
    training = training_rows(H, labels)
    fitted = known.fit(training, options)
    return make_probe(
        training,
        fitted.classifier,
        kind=kind,
        title=known.title,
        probability=known.probability,
        settings=fitted.settings,
        remarks=fitted.remarks,
        test_labels=test_labels,
    )


def _known(kind: str) -> ProbeKind:
    if kind not in PROBES:
        raise QScoreError(f"probe {kind!r}: expected one of {', '.join(PROBES)}{nearest(kind, PROBES)}")
    return PROBES[kind]


def _logistic(training: TrainingRows, options: Options) -> Fitted:
    needs = logistic_needs(len(training), training.n_features, len(training.classes))
    found = fit_logistic(training, seed=options.seed, placement=place(options.device, needs.operations))
    remarks = []
    if not found.converged:
        remarks.append("The probe stopped before its optimum; its mistakes are not quite a linear probe's.")
    if found.at_edge:
        edge = "strongest" if found.strength == STRENGTHS[0] else "weakest"
        remarks.append(f"Its penalty is the {edge} on offer; one beyond it might do better.")
    if found.n_single:
        remarks.append(f"Of the classes, {found.n_single:,} with a single training row had no say in its penalty.")
    settings = {"strength": found.strength, "converged": found.converged, "n_single": found.n_single}
    return Fitted(found.classifier, settings, tuple(remarks))


def _knn(training: TrainingRows, options: Options) -> Fitted:
    k = choose_k(len(training), len(training.classes))
    remark = f"Its {k} nearest training rows vote; its confidence is a share of their votes, not a probability."
    return Fitted(KNNClassifier(training, k, options.device), {"k": k, "temperature": TEMPERATURE}, (remark,))


def _sgd(training: TrainingRows, options: Options) -> Fitted:
    require("torch", "vision")
    from qscore.evaluate.probes.sgd import SGDConfig, fit_sgd

    config = options.config or SGDConfig()
    found = fit_sgd(
        training,
        config=config,
        seed=options.seed,
        device=options.device,
        encoder=options.encoder,
        images=options.images,
        precision=options.precision,
        workers=options.workers,
    )
    augmented = found.encoder_sha256 is not None
    remark = f"It was trained for {config.epochs} epochs on " + (
        "augmented images; a checksum shows the encoder unchanged."
        if augmented
        else "cached embeddings, without the augmentation of the published protocol."
    )
    recipe = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    settings = recipe | {"augmented": augmented, "loss": found.loss, "encoder_sha256": found.encoder_sha256}
    return Fitted(found.classifier, settings, (remark,))


PROBES = {
    "logistic": ProbeKind("linear probe", "the model's own probability of the class", True, _logistic),
    "knn": ProbeKind("weighted nearest-neighbour probe", "the class's share of the neighbours' votes", False, _knn),
    "sgd": ProbeKind("linear probe trained by SGD", "the model's own probability of the class", True, _sgd),
}
