"""A pair store in figures."""

from typing import Any, Literal

from kdm_core.errors import MismatchError
from kdm_core.pairs.integrity.metadata import list_files
from kdm_core.pairs.merging import in_words
from kdm_core.pairs.sampling import PairsConfig
from kdm_core.pairs.spec import StoreSpec, law_in_words
from kdm_core.pairs.store import PairStore


def summarize(store: PairStore) -> dict[str, Any]:
    """What a store is, as JSON has it.

    `bytes` are those of all its files, None where a server does not list them (http, https);
    `missing` are rows, from the first to before the second.

    Raises:
        DataError: it cannot be read (permissions, network).
    """
    spec, missing = store.spec, store.missing_shards()
    complete = spec.count - sum(len(spec.shard_range(shard)) for shard in missing)
    files = list_files(store)
    size = None if files is None else sum(files.values())
    return {
        "location": str(store.location),
        **what_pairs_are(spec),
        "complete": complete,
        "missing": in_words(spec, missing),
        "codecs": {name: codecs(array) for name, array in store.arrays.items()},
        "bytes": size,
        "bytes_per_pair": round(size / complete, 1) if size is not None and complete else None,
        "mask": None if store.mask is None else {
            "kept": int(store.mask.keep.sum()), "dropped": store.mask.counts()},
        "provenance": store.provenance,
    }


def what_pairs_are(spec: StoreSpec) -> dict[str, Any]:
    """A specification in the words of a summary."""
    sampled = spec.noise_seed is not None
    return {
        "fingerprint": spec.fingerprint,
        "stream": spec.stream,
        "schema_version": spec.schema_version,
        "kind": spec.samples.kind,
        "shape": spec.samples.shape,
        "labels": spec.samples.label_names,
        "label_law": law_in_words(spec) if sampled and spec.samples.num_classes else None,
        "label_weights": spec.label_weights,
        "splits": spec.splits,
        "pairs": spec.count,
        "noise": {"kind": spec.noise, "dtype": spec.noise_dtype, "seed": spec.noise_seed,
                  "scale": spec.noise_scale},
        "sample_dtype": spec.sample_dtype,
        "states": len(spec.states),
        "teacher": spec.teacher,
        "guide": spec.guide,
        "guidance": None if spec.guidance is None else spec.guidance.model_dump(),
        "solver": None if spec.solver is None else spec.solver.model_dump(),
        "nfe": spec.nfe,
        "precision": spec.precision,
        "compute_batch": spec.compute_batch,
        "chunk": spec.chunk,
        "shard": spec.shard,
        "imported": spec.imported,
        "subset": None if spec.subset is None else spec.subset.model_dump(),
    }


def law(spec: StoreSpec) -> Literal["data", "uniform"] | None:
    """How the labels of a seed were drawn, in the words of a `PairsConfig`."""
    if not spec.samples.num_classes:
        return None
    return "uniform" if spec.label_weights is None else "data"


def codecs(array: Any) -> list[str]:
    """The names of the codecs of an array's chunks, in the order of writing."""
    [sharding] = array.metadata.to_dict()["codecs"]
    return [codec["name"] for codec in sharding["configuration"]["codecs"]]


def sampling_block(spec: StoreSpec) -> dict[str, Any]:
    """The values of a `PairsConfig` that samples such a store.

    Raises:
        MismatchError: there is none, since the pairs were imported or selected.
    """
    if spec.noise_seed is None or spec.solver is None or spec.subset is not None:
        origin = f"imported from {spec.imported}" if spec.subset is None else "selected"
        raise MismatchError(f"these pairs were {origin} and not sampled from a seed: use them with "
                            "pairs: {source: store, location: …}")
    config = PairsConfig(
        solver=spec.solver, guidance=spec.guidance, precision=spec.precision,
        train=spec.splits.get("train", 0), validation=spec.splits.get("validation", 0),
        test=spec.splits.get("test", 0), batch=spec.compute_batch, shard=spec.shard,
        chunk=spec.chunk, noise=spec.noise, noise_dtype=spec.noise_dtype,
        sample_dtype=spec.sample_dtype, states=len(spec.states), labels=law(spec))
    return config.model_dump()
