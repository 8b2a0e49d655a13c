"""filter_pairs: which pairs students are not shown, and why, into a mask beside the store."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from kdm_core.datasets import Dataset, open_dataset
from kdm_core.errors import MismatchError
from kdm_core.metrics.extractors import build_extractor
from kdm_core.metrics.features import Extractor, FeatureCache, extract
from kdm_core.pairs.filtering.config import CopiesConfig
from kdm_core.pairs.filtering.copies import Space, make_space
from kdm_core.pairs.filtering.judging import Judge, Measures, judged
from kdm_core.pairs.filtering.rules import load_rules
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.serialization import read_tensors, write_json, write_tensors
from kdm_core.values import as_float, to_uint8
from stages import paths
from stages.figures import save_figure
from stages.kept_pairs import link_anew
from stages.near_copies import picture
from stages.progress import Progress
from stages.reporting.records import PICTURES, FilterRecord
from stages.runner import Stage, run


def main(stage: Stage) -> None:
    store = PairStore.open(paths.PAIRS)
    link_anew(store, stage.say)
    config, rows = stage.params.filter, judged(store.spec)
    rules = load_rules(config, store.spec.samples)
    spaces, marks = open_spaces(stage, store.spec) if config.copies else ([], [])
    judge = Judge(config, spaces, {path: rule for path, (rule, _) in rules.items()}, stage.device)
    folder, _ = stage.work_folder(store.spec.fingerprint, config.model_dump(), marks,
                                  [mark for _, mark in rules.values()], stage.device.type)
    measures = measure(judge, store, folder) if config.reasons else {}
    mask = judge.decide(store, measures)
    shown = [picture(space, measures, store) for space in spaces]
    counts = mask.counts()
    record = FilterRecord(
        pairs=len(rows), kept=int(mask.keep[rows.start :].sum()),
        reasons=[(config.texts.get(name, f"`{name}`, as the store's own mask says"), count)
                 for name, count in counts.items()],
        findings=[finding for finding, _ in shown])
    finish(stage, folder, mask, record, {finding.name: figure for finding, figure in shown})
    write_json(paths.METRICS / "filter_pairs.json",
               {"pairs": record.pairs, "kept": record.kept, **counts})
    stage.write_timing()
    stage.say(f"{record.kept:,} of {record.pairs:,} pairs are kept"
              + "".join(f", {count:,} {name}" for name, count in counts.items()))


def open_spaces(stage: Stage, spec: StoreSpec) -> tuple[list[Space], list[str]]:
    """The spaces of `filter.copies`, and what their distances depend on besides the pairs.

    Raises:
        MismatchError: the pairs are no samples of the data's shape.
        KDMError: an extractor cannot be had.
    """
    dataset, mark = open_dataset(paths.DATASET)
    real = dataset.info.samples
    if (real.kind, real.shape) != (spec.samples.kind, spec.samples.shape):
        raise MismatchError(f"filter.copies: {paths.DATASET} has {real.kind} samples of shape "
                            f"{real.shape}, {paths.PAIRS} {spec.samples.kind} samples of shape "
                            f"{spec.samples.shape}: they cannot be compared; leave it out")
    spaces, marks = [], [mark]
    for config in stage.params.filter.copies:
        if config.features is None:
            spaces.append(make_space(config, dataset.train_samples, lambda samples: samples,
                                     stage.seed("training"), stage.device))
            continue
        extractor = build_extractor(config.features, stage.params.weights, stage.device,
                                    paths.REFERENCE)
        spaces.append(feature_space(stage, config, extractor, dataset))
        marks.append(extractor.fingerprint)
    return spaces, marks


def feature_space(
    stage: Stage, config: CopiesConfig, extractor: Extractor, dataset: Dataset
) -> Space:
    """The space of an extractor's features, in which the training images lie."""
    images = torch.from_numpy(np.array(dataset.train_samples))
    with Progress(f"{extractor.name}, training images", len(images), "image") as progress:
        train = FeatureCache(paths.FEATURES).get(extractor, images, progress.update).features
    return make_space(
        config, train, lambda samples: extract(extractor, to_uint8(as_float(samples))).features,
        stage.seed("training"), stage.device)


def measure(judge: Judge, store: PairStore, folder: Path) -> Measures:
    """All pairs, shard by shard; what an earlier run has measured is read."""
    rows, spec = judged(store.spec), store.spec
    parts = [range(max(rows.start, shard.start), shard.stop)
             for shard in map(spec.shard_range, range(spec.num_shards)) if shard.stop > rows.start]
    files = {part: folder / f"{part.start}.safetensors" for part in parts}
    done = sum(len(part) for part, file in files.items() if file.exists())
    with Progress("filter", len(rows), "pair", done) as progress:
        for part, file in files.items():
            if not file.exists():
                found = judge.measure(store, part)
                write_tensors(file, {key: torch.from_numpy(values)
                                     for key, values in found.items()}, {})
                progress.update(len(part))
    measured = [read_tensors(file)[0] for file in files.values()]
    return {key: np.concatenate([one[key].numpy() for one in measured]) for key in measured[0]}


def finish(
    stage: Stage, folder: Path, mask: KeepMask, record: FilterRecord, figures: dict[str, Figure]
) -> None:
    """Put everything in its place, the mask last."""
    shown = folder / "shown" / paths.FILTERED.name
    write_json(shown / "filtered.json", record.model_dump())
    for name, figure in figures.items():
        save_figure(shown / PICTURES / f"{name}.png", figure)
    stage.finish(shown, paths.FILTERED)
    mask.save(folder / paths.KEEP.name)
    stage.finish(folder / paths.KEEP.name, paths.KEEP)


if __name__ == "__main__":
    run("filter_pairs", main, "make pairs.shard smaller")
