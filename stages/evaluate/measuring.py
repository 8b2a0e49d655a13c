"""What an evaluation measures of images and points, noted in its results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.classes import require_order
from kdm_core.datasets import Dataset, on_board, open_dataset
from kdm_core.datasets.base import DatasetInfo
from kdm_core.errors import MismatchError, at_most
from kdm_core.losses.perceptual import LPIPS
from kdm_core.metrics.classifier import ClassifierExtractor, load_classifier
from kdm_core.metrics.compare import (
    Reference,
    compare_features,
    compare_points,
    left_out,
    reference_of,
    reliability,
)
from kdm_core.metrics.estimate import Counts, Estimate, resampling
from kdm_core.metrics.features import Extractor, FeatureCache, Features
from kdm_core.metrics.frechet import read_statistics
from kdm_core.metrics.paired import (
    coincidence,
    label_accuracy,
    label_agreement,
    paired_lpips,
    paired_mse,
)
from kdm_core.metrics.spread import within_class_variance
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.serialization import file_sha256, read_json
from kdm_core.students.seen import NETS
from kdm_core.values import as_float, to_uint8
from kdm_core.weights.store import WeightsMissing, find
from pipeline.params.evaluation import EvaluationParams
from pipeline.runtime import paths
from pipeline.runtime.latents import Pictures
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import Stage, with_command
from pipeline.workers.features import FeatureSource, Origin
from pipeline.workers.tasks import Engine, Folder
from stages.evaluate.results import Results, Who

WHOSE: dict[Who, str] = {"teacher": "the teacher's samples", "student": "the student's samples",
                         "pairs": "the stored pairs", "real": "other real data",
                         "autoencoded": "other real data through the autoencoder"}


class Samples(NamedTuple):
    """What is measured.

    Attributes:
        test: noise, and the teacher's samples of it.
        made: the student's samples of the same noise (n, *shape).
        pictures: makes images at rest of samples and of data.
        counts: how often each noise is drawn in each replicate; the teacher's and the student's
            figures share them, so that their ratio is paired.
    """

    test: Pairs
    made: Tensor
    counts: Counts
    pictures: Pictures

    @property
    def shown(self) -> "Samples":
        """The same as images, where samples are latents that are decoded."""
        test = self.test._replace(samples=self.pictures(self.test.samples))
        return self._replace(test=test, made=self.pictures(self.made))

    def images(self, real: NDArray[Any]) -> Tensor:
        """Real images (n, C, H, W) uint8, of samples of a data set as it has them."""
        if real.dtype == np.uint8:
            return torch.from_numpy(np.array(real))
        return to_uint8(self.pictures(as_float(real)))


def measure_pairs(results: Results, samples: Samples) -> None:
    """MSE between teacher and student, and how much the samples of each vary."""
    mse = paired_mse(samples.test.samples, samples.made, samples.counts)
    results.figures["student"] |= {"mse": mse.matched, "mse_permuted": mse.permuted}
    sets: dict[Who, Tensor] = {results.source: samples.test.samples, "student": samples.made}
    for who, found in sets.items():
        results.figures[who]["spread"] = within_class_variance(
            found, samples.test.labels, samples.counts)


def measure_points(stage: Stage, results: Results, dataset: Dataset, samples: Samples) -> None:
    """Distances to real points that no training has seen, and the share on the board."""
    config = stage.params.evaluation
    real = np.asarray(dataset.test_samples)
    results.conditions |= {"reference": results.reference("test"), "reference_n": len(real),
                           "projections": config.projections}
    sets: dict[Who, Any] = {results.source: samples.test.samples.numpy(),
                            "student": samples.made.numpy()}
    if results.real_data:
        # As many as there are of the others, on which the figures depend.
        sets["real"] = np.asarray(dataset.train_samples[: len(samples.made)])
        results.conditions |= {"real": "train split", "real_n": len(sets["real"])}
    # Of others' points nobody knows where they may lie.
    support = on_board if dataset.info.source == "checkerboard" else None

    def measure(who: Who, counts: Counts) -> dict[str, Estimate]:
        return compare_points(sets[who][: counts.shape[1]], real, counts,
                              stage.shared_seed("projections"), config.projections, support)

    measure_beside_real(stage, results, samples, measure)
    results.compare("sliced_wasserstein")


def measure_beside_real(
    stage: Stage, results: Results, samples: Samples,
    measure: Callable[[Who, Counts], dict[str, Estimate]],
) -> None:
    """Note the figures of the sets of both models and, where there are data, of other real samples.

    Of real samples there may be fewer, and figures of sets of different size cannot be compared:
    then all are measured once more, of as many samples as there are real ones.

    Args:
        measure: the figures of the first n samples of a set, given counts (B, n).
    """
    models: tuple[Who, ...] = (results.source, "student")
    for who in models:
        results.figures[who] |= measure(who, samples.counts)
    if not results.real_data:
        return
    n, n_real = len(samples.made), results.conditions["real_n"]
    beside = results.figures
    if 2 <= n_real < n:
        shared = resampling(n_real, len(samples.counts), stage.shared_seed("pairs"))
        beside = results.at_equal_n
        for who in models:
            beside.setdefault(who, {}).update(measure(who, shared))
    if n_real < 2:
        results.absent.append(f"other real data beside the models: the {results.conditions['real']}"
                              f" has {n_real} samples, and two are the least")
        return
    apart = resampling(n_real, len(samples.counts), stage.shared_seed("real"))
    others: tuple[Who, ...] = ("real", "autoencoded") if results.autoencoded else ("real",)
    for who in others:
        beside.setdefault(who, {}).update(measure(who, apart))


def measure_lpips(stage: Stage, results: Results, samples: Samples) -> None:
    """LPIPS between teacher and student, by all networks that are asked for and can be had."""
    config = stage.params.evaluation
    if not config.lpips_pairs or not config.lpips:
        results.absent.append("LPIPS was left out (evaluation.lpips, evaluation.lpips_pairs)")
        return
    n = at_most("evaluation.lpips_pairs", config.lpips_pairs, len(samples.made), "test pairs")
    counts = resampling(n, config.bootstrap, stage.shared_seed("pairs"))
    results.conditions |= {"lpips_n": n, "lpips_resolution": config.lpips_resolution}
    teacher, student = (x[:n].to(stage.device) for x in (samples.test.samples, samples.made))
    for net in config.lpips:
        try:
            find(NETS[net])
        except WeightsMissing as error:
            results.absent.append(f"{with_command(error)}; without them there is no lpips_{net}")
            stage.say(results.absent[-1])
            continue
        lpips = LPIPS(config.lpips_resolution, net).to(stage.device)
        with Progress(f"LPIPS ({net})", n, "pair") as progress:
            distance = paired_lpips(lpips, teacher, student, counts, on_pairs=progress.update)
        results.figures["student"] |= {f"lpips_{net}": distance.matched,
                                       f"lpips_{net}_permuted": distance.permuted}
        results.mark_network(NETS[net], f"lpips_{net}")


def measure_images(
    stage: Stage, results: Results, dataset: Dataset, samples: Samples, workers: Engine
) -> None:
    """Figures in the features of every extractor that can be had.

    Args:
        samples: as images (`Samples.shown`).
    """
    config = stage.params.evaluation
    splits = {"train": dataset.train_samples, "test": dataset.test_samples}
    held_out = "test" if config.reference == "train" else "train"
    reference = samples.images(splits[config.reference])
    sets: dict[Who, Tensor] = {results.source: to_uint8(samples.test.samples),
                               "student": to_uint8(samples.made)}
    if results.real_data:
        # No more than of the others: the figures depend on how many there are.
        sets["real"] = samples.images(splits[held_out][: len(samples.made)])
        results.conditions |= {"real": f"{held_out} split", "real_n": len(sets["real"])}
    if results.autoencoded:
        sets["autoencoded"] = samples.images(autoencoded(held_out, len(samples.made)))
    cache = FeatureCache(paths.FEATURES)
    folder = Folder(paths.REFERENCE) if stage.params.reference.classifier is not None else None
    for extractor_config in config.extractors:
        origin = Origin(extractor_config, stage.params.weights, folder)
        try:
            extractor = origin.build(stage.device)
        except WeightsMissing as error:
            results.absent.append(f"{with_command(error)}; without them there are no figures of "
                                  f"{extractor_config.name}")
            stage.say(results.absent[-1])
            continue
        source = FeatureSource(extractor, origin, cache, workers)
        against = reference_for(stage, results, source, reference)
        features = {who: source(images, who) for who, images in sets.items()}
        measure_features(stage, results, extractor, features, against, samples)
        results.compare(extractor.metric_names["fd"])
    warn(results, len(samples.made))
    if folder is not None:
        measure_labels(stage, results, cache, sets, samples,
                       dataset.info)


def autoencoded(split: str, n: int) -> NDArray[Any]:
    """The latents of the first real images of a split."""
    latents, _ = open_dataset(paths.LATENTS)
    found = latents.train_samples if split == "train" else latents.test_samples
    return found[:n]


def warn(results: Results, n: int) -> None:
    """Note what is doubtful about Fréchet distances, once for all extractors that it is true of."""
    doubts: dict[str, list[str]] = {}
    for name, extractor in results.extractors.items():
        for remark in reliability(n, extractor["dim"]):
            doubts.setdefault(remark, []).append(name)
    results.warnings += [f"{', '.join(names)}: {remark}" for remark, names in doubts.items()]


def warn_of_flattery(stage: Stage, results: Results) -> None:
    """Warn where figures are in, or beside, what the student's losses have seen."""
    lines = []
    if results.in_seen:
        seen = " and ".join(f"{network} ({', '.join(results.seen.networks[network])})"
                            for network in results.in_seen)
        unseen = set(results.distances).difference(*results.in_seen.values())
        lines.append(
            f"its losses have seen {seen}: figures in these features flatter it, and no verdict "
            "rests on them" + ("" if unseen else ". There are no others of its distance to real "
            "images: add an extractor that no loss has seen to evaluation.extractors"))
    if results.beside_seen:
        lines.append(
            f"its losses ({', '.join(results.seen.real)}) took the training images as real, and it "
            "is compared with these: its distances to them flatter it, and no verdict rests on "
            "them. Set evaluation.reference: test")
    for line in lines:
        stage.warn(line)
    results.warnings += lines


def reference_for(
    stage: Stage, results: Results, source: FeatureSource, images: Tensor
) -> Reference:
    """What an extractor's features are compared with: those of real images, or published ones."""
    config: EvaluationParams = stage.params.evaluation
    extractor = source.extractor
    known: dict[str, Any] = {"fingerprint": extractor.fingerprint, "dim": extractor.dim,
                             "text": extractor.text, "metrics": dict(extractor.metric_names)}
    if extractor.name in config.statistics:
        path = Path(config.statistics[extractor.name])
        gaussian = read_statistics(path)
        if len(gaussian.mean) != extractor.dim:
            raise MismatchError(f"evaluation.statistics.{extractor.name}: {path} is of "
                                f"{len(gaussian.mean)} dimensions, the extractor's features have "
                                f"{extractor.dim}; give statistics of its own features")
        reference = Reference(gaussian, None, path.name, 0)
        known["reference_sha256"] = file_sha256(path)
    else:
        features = source(images, "reference").features
        reference = reference_of(features, results.reference(config.reference),
                                 stage.shared_seed("subset"),
                                 stage.device)
    names = extractor.metric_names
    results.mark_network(extractor.name, *names.values())
    # Published statistics may well be those of the training images.
    if config.reference == "train" or extractor.name in config.statistics:
        results.mark_images(*(key for name, key in names.items() if name != "is"))
    results.extractors[extractor.name] = known | {"reference": reference.name,
                                                  "reference_n": reference.n}
    if extractor.name == "classifier":
        accuracy = read_json(paths.REFERENCE / "reference.json")
        results.extractors[extractor.name] |= {key: accuracy[key]
                                               for key in ("accuracy", "accuracy_n")}
    return reference


def measure_features(
    stage: Stage, results: Results, extractor: Extractor, features: dict[Who, Features],
    reference: Reference, samples: Samples,
) -> None:
    """All figures of the sets in one extractor's features."""

    def measure(who: Who, counts: Counts) -> dict[str, Estimate]:
        found = compare_features(features[who].first(counts.shape[1]), reference, counts,
                                 stage.shared_seed("subset"))
        if found.extrapolation is not None and counts is samples.counts:
            line = found.extrapolation
            results.extrapolation.setdefault(extractor.name, {})[who] = {
                "n": [round(n) for n in line.n], "fd": line.distances,
                "infinite": line.infinite.value}
        return {extractor.metric_names[name]: estimate
                for name, estimate in found.estimates.items()}

    for who, own in features.items():
        results.absent += [f"{extractor.name}, {WHOSE[who]}: {reason}"
                           for reason in left_out(own, reference)]
    measure_beside_real(stage, results, samples, measure)


def measure_labels(
    stage: Stage, results: Results, cache: FeatureCache, sets: dict[Who, Tensor],
    samples: Samples, data: DatasetInfo,
) -> None:
    """Whether the classifier sees the class that was asked for, and the teacher's."""
    model, mark = load_classifier(paths.REFERENCE)
    require_order(model.spec.label_names, data.class_names, str(paths.REFERENCE),
                  str(paths.DATASET))
    extractor = ClassifierExtractor(model.to(stage.device), mark)
    results.mark_network("classifier", "label_accuracy", "label_agreement")
    results.classifier = read_json(paths.REFERENCE / "reference.json")["accuracy"]
    labels = samples.test.labels.numpy()
    classes = {}
    both: tuple[Who, ...] = (results.source, "student")
    for who in both:
        found = cache.get(extractor, sets[who]).probabilities
        assert found is not None
        classes[who] = found
        if data.samples.num_classes:
            results.figures[who] |= {
                "label_accuracy": label_accuracy(found, labels, samples.counts),
                "label_accuracy_chance": by_chance(found.argmax(axis=1), labels)}
    theirs, own = (classes[who] for who in both)
    results.figures["student"] |= {
        "label_agreement": label_agreement(own, theirs, samples.counts),
        "label_agreement_chance": by_chance(own.argmax(axis=1), theirs.argmax(axis=1))}


def by_chance(a: NDArray[np.integer], b: NDArray[np.integer]) -> Estimate:
    """The agreement of classes (n,) that chance would give."""
    return Estimate(coincidence(a, b), np.empty(0), len(a))
