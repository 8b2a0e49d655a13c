"""filter_pairs: which pairs students are not shown, and why, into a mask beside the store."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.errors import placed
from kdm_core.figures.files import save_figure
from kdm_core.metrics.extractors import ExtractorConfig
from kdm_core.metrics.features import Extractor, FeatureCache
from kdm_core.metrics.labels import in_words, label_shift
from kdm_core.pairs.filtering.judging import Judge, Measures, judged
from kdm_core.pairs.keep import KeepMask
from kdm_core.pairs.store import PairStore
from kdm_core.serialization import read_tensors, write_json, write_tensors
from pipeline.pairs.kept import link_anew
from pipeline.reporting.records import PICTURES, FilterRecord
from pipeline.runtime import paths
from pipeline.runtime.latents import learned_data
from pipeline.runtime.progress import Progress
from pipeline.runtime.runner import Stage
from pipeline.runtime.stopping import stoppable
from pipeline.workers.engine import engine
from pipeline.workers.features import FeatureSource, Origin
from pipeline.workers.filtering import FeaturesOf, FilterTask, Yardstick
from pipeline.workers.tasks import Engine, Folder
from stages.filter_pairs.near_copies import picture


def main(stage: Stage) -> None:
    needed = bool(stage.params.filter.reasons)
    with stoppable(stage.say) as stop, engine(stage, stop, needed) as workers:
        filter_pairs(stage, workers)


def filter_pairs(stage: Stage, workers: Engine) -> None:
    """Measure all pairs, decide, and show what was found."""
    store = PairStore.open(paths.PAIRS)
    link_anew(store, stage.say)
    config, rows = stage.params.filter, judged(store.spec)
    yardstick = Yardstick(config, learned_data(stage.params), paths.REFERENCE, stage.params.weights,
                          paths.FEATURES, stage.seed("training"))
    judge, marks = yardstick.judge(store, stage.device, features_with(workers, yardstick))
    folder, _ = stage.work_folder(store.spec.fingerprint, config.model_dump(), marks,
                                  stage.device.type)
    task = FilterTask(str(store.location), store.spec.fingerprint, yardstick, marks)
    measures = measure(judge, store, folder, workers, task) if config.reasons else {}
    mask = judge.decide(store, measures)
    compare_labels(stage, store, mask)
    shown = [picture(space, measures, store) for space in judge.spaces]
    counts = mask.counts()
    record = FilterRecord(
        pairs=len(rows), kept=int(mask.keep[rows.start :].sum()),
        reasons=[(config.texts.get(name, f"`{name}`, as the store's own mask says"), count)
                 for name, count in counts.items()],
        findings=[finding for finding, _ in shown])
    finish(stage, folder, mask, record, {finding.name: figure for finding, figure in shown})
    write_json(paths.DETAILS / "filter_pairs.json",
               {"pairs": record.pairs, "kept": record.kept, **counts})
    stage.write_metrics("pairs", {"pairs": record.kept, "nfe": store.spec.nfe})
    stage.write_timing(workers=workers.workers)
    stage.say(f"{record.kept:,} of {record.pairs:,} pairs are kept"
              + "".join(f", {count:,} {name}" for name, count in counts.items()))


def compare_labels(stage: Stage, store: PairStore, mask: KeepMask) -> None:
    """Note where the training pairs that are kept have other labels than all of them."""
    samples, rows = store.spec.samples, store.spec.split_range("train")
    keep = mask.keep[rows.start : rows.stop]
    if not samples.num_classes or keep.all() or not keep.any():
        return
    labels = store.read_arrays(rows, ["label"])["label"]
    kept, every = (np.bincount(found, minlength=samples.num_classes)
                   for found in (labels[keep], labels))
    if label_shift(kept, every) is not None:
        stage.note("the training pairs that are kept have classes in other proportions than all "
                   f"of them: {in_words(kept, every, samples.label_names)}")


def features_with(workers: Engine, yardstick: Yardstick) -> FeaturesOf:
    """Features of the training images, with the workers of an engine."""

    def features_of(
        config: ExtractorConfig, extractor: Extractor, images: Tensor
    ) -> NDArray[np.float32]:
        origin = Origin(config, yardstick.weights, Folder(yardstick.classifier))
        source = FeatureSource(extractor, origin, FeatureCache(yardstick.cache), workers)
        return source(images, "training images").features

    return features_of


def measure(
    judge: Judge, store: PairStore, folder: Path, workers: Engine, task: FilterTask
) -> Measures:
    """All pairs, shard by shard; what an earlier run has measured is read."""
    rows, spec = judged(store.spec), store.spec
    parts = [range(max(rows.start, shard.start), shard.stop)
             for shard in map(spec.shard_range, range(spec.num_shards)) if shard.stop > rows.start]
    files = {part: folder / f"{part.start}.safetensors" for part in parts}
    missing = [part for part, file in files.items() if not file.exists()]
    done = len(rows) - sum(map(len, missing))
    with Progress("filter", len(rows), "pair", done) as progress:

        def on_part(place: int, found: Measures) -> None:
            part = missing[place]
            write_tensors(files[part], {key: torch.from_numpy(values)
                                        for key, values in found.items()}, {})
            progress.update(len(part))

        workers.run(task, missing, on_part,
                    placed("filter")(lambda part: judge.measure(store, part)))
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
