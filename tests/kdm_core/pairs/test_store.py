"""The pair store: completeness, resumption, damage, identity."""

import hashlib
import json
import math
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from kdm_core.errors import DataError, DivergedError, KDMError, MismatchError
from kdm_core.networks import MLPConfig
from kdm_core.pairs.reading.whole import read_split
from kdm_core.pairs.sampling import (
    kept_states,
    plan_store,
    sample_pairs,
    sample_shard,
)
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.serialization import fingerprint
from kdm_core.solvers import AdaptiveSolver, FixedSolver
from kdm_core.solvers.grids import KarrasGrid, UniformGrid
from kdm_core.solvers.guidance import GuidanceConfig
from kdm_core.teachers import FlowMatching, FlowMatchingConfig
from kdm_core.teachers.exact import GaussianMixture, GaussianMixtureConfig
from kdm_core.teachers.guidance import guided
from kdm_core.values import as_float, from_uint8, to_uint8
from tests.support.pairs import CPU, SPEC, config, plan, sampled, teacher

POINTS = SampleSpec(kind="points", shape=[2], sigma_data=0.7)
# Fingerprint of the plan below, from before stores could keep states.
WITHOUT_STATES = "559de335208739915236369ae3caf4e40b796690e0072c6027a95b53c7611e27"


def test_complete_store_reads_back(tmp_path: Path) -> None:
    store = sampled(tmp_path / "p.zarr")
    assert store.missing_shards() == []
    assert store.spec.nfe == 5
    splits = {name: read_split(store, name, CPU) for name in ("test", "validation", "train")}
    assert [len(split.noise) for split in splits.values()] == [10, 5, 70]
    pairs = splits["train"]
    made = teacher().sample(pairs.noise, pairs.labels, store.spec.solver, "fp32").state
    # Equal to rounding and to the uint8 grid (half a step of 2/255).
    assert float((made.clamp(-1, 1) - pairs.samples).abs().max()) < 1.1 / 255
    assert set(pairs.labels.tolist()) == {0, 1}


def test_plain_zarr_reads_it(tmp_path: Path) -> None:
    sampled(tmp_path / "p.zarr")
    group = zarr.open(tmp_path / "p.zarr", mode="r")
    assert group["sample"].shape == (85, 1, 4, 4)
    assert group["sample"].dtype == np.uint8
    assert group["noise"].dtype == np.float16
    assert group["index"][:].tolist() == list(range(85))
    assert group.attrs["kdm_pairs"]["spec"]["solver"] == {
        "kind": "heun", "steps": 3, "grid": None}


def test_states_are_those_of_the_solution(tmp_path: Path) -> None:
    """Those at the stored times, divided by their deviation; the pairs are what they were."""
    store, bare = sampled(tmp_path / "p", states=2), sampled(tmp_path / "q")
    group = zarr.open(tmp_path / "p", mode="r")
    assert group["trajectory"].shape == (85, 2, 1, 4, 4)
    assert group["trajectory"].dtype == np.float16
    places = [state.place for state in store.spec.states]
    assert group["times"][:].tolist() == [store.spec.times[place] for place in places]
    pairs = read_split(store, "train", CPU, states=True)
    assert pairs.trajectory is not None
    assert pairs.positions is not None
    found = teacher().sample(pairs.noise, pairs.labels, store.spec.solver, "fp32",
                             keep_states=True)
    assert found.states is not None
    for k, state in enumerate(store.spec.states):
        level = store.spec.times[state.place]  # of an EDM denoiser: sigma
        assert state.scale == pytest.approx((0.25 + level**2) ** 0.5)
        assert float(pairs.positions[k]) == pytest.approx(2 / math.pi * math.atan(level / 0.5))
        torch.testing.assert_close(pairs.trajectory[:, k].double() * state.scale,
                                   found.states[state.place], rtol=2e-3, atol=1e-3 * state.scale)
    unread = read_split(store, "train", CPU)
    assert unread.trajectory is unread.positions is None
    assert read_split(bare, "train", CPU, states=True).trajectory is None
    for name in ("noise", "sample", "label", "index"):
        np.testing.assert_array_equal(getattr(store.read(range(85)), name),
                                      getattr(bare.read(range(85)), name))


def test_states_of_the_exact_teacher_are_its_flow_map(tmp_path: Path) -> None:
    """To the rounding of float16, 2^-11 of values of order one."""
    exact = GaussianMixture(GaussianMixtureConfig(kind="gaussian_mixture", components=1), POINTS)
    exact.describe(torch.ones(1), torch.tensor([[0.3, -0.2]]),
                   torch.tensor([[[0.9, 0.3], [0.3, 0.2]]]))
    solver = AdaptiveSolver(kind="dopri5", tolerance=1e-9, steps=8)
    spec = plan_store(config(solver=solver, states=4, noise_dtype="float32",
                             sample_dtype="float32"), exact, "f" * 64, None, 0, CPU)
    store = PairStore.create(tmp_path / "p", spec, {})
    sample_pairs(store, exact, CPU)
    block = store.read(range(spec.count))
    assert block.trajectory is not None
    start = torch.from_numpy(block.noise).double() * spec.noise_scale
    for k, state in enumerate(spec.states):
        truth = exact.flow_map(start, spec.times[0], spec.times[state.place]) / state.scale
        torch.testing.assert_close(torch.from_numpy(block.trajectory[:, k]).double(), truth,
                                   rtol=2**-11 + 1e-6, atol=2e-6)


@given(steps=st.integers(2, 40), share=st.floats(0, 1), karras=st.booleans())
@settings(max_examples=50)
def test_kept_states_are_spread_over_the_positions(
    steps: int, share: float, karras: bool
) -> None:
    grid = KarrasGrid(kind="karras") if karras else UniformGrid(kind="uniform")
    exact = GaussianMixture(GaussianMixtureConfig(kind="gaussian_mixture", components=1), POINTS)
    times = exact.times(FixedSolver(kind="heun", steps=steps, grid=grid))
    count = round(share * (steps - 1))
    kept = kept_states(exact, times, count)
    places, positions = [s.place for s in kept], [s.position for s in kept]
    assert len(kept) == count
    assert places == sorted(set(places))
    assert all(0 < place < steps for place in places)
    assert positions == sorted(positions, reverse=True)
    if count == steps - 1:
        assert places == list(range(1, steps))


def test_kept_states_are_the_nearest_to_even_positions() -> None:
    """Of EDM's 18 times those at u = 0.73, 0.55 and 0.17 for 3/4, 1/2 and 1/4."""
    spec = plan(solver=FixedSolver(kind="heun", steps=18), states=3)
    levels = [spec.times[state.place] for state in spec.states]
    assert levels == pytest.approx([1.088, 0.5853, 0.1395], rel=1e-3)


def test_more_states_than_the_grid_has_are_refused() -> None:
    with pytest.raises(KDMError, match=r"^states: 3 states .* 2 between"):
        plan(states=3)


def test_stores_without_states_are_what_they_were(tmp_path: Path) -> None:
    """No trace of states in their attributes; fingerprint and hash as before."""
    store = sampled(tmp_path / "p")
    kept = json.loads((tmp_path / "p/zarr.json").read_text())["attributes"]["kdm_pairs"]
    assert "states" not in kept["spec"]
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        "index", "label", "noise", "sample", "zarr.json"]
    assert kept["fingerprint"] == store.spec.fingerprint == WITHOUT_STATES
    digest = hashlib.sha256(WITHOUT_STATES.encode())
    for shard in range(store.spec.num_shards):
        for values in store.read(store.spec.shard_range(shard))[:4]:
            digest.update(values.tobytes())
    assert store.content_hash() == digest.hexdigest()


def test_same_parameters_give_the_same_hash(tmp_path: Path) -> None:
    assert (sampled(tmp_path / "a").content_hash() == sampled(tmp_path / "b").content_hash()
            != sampled(tmp_path / "c", batch=16).content_hash())


def test_a_larger_store_begins_with_the_smaller_one(tmp_path: Path) -> None:
    """Even its last, partial compute batch."""
    small, large = sampled(tmp_path / "a"), sampled(tmp_path / "b", train=150)
    for a, b in zip(small.read(range(85)), large.read(range(85)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_store_of_an_older_version_can_be_opened(tmp_path: Path) -> None:
    """Fields that were added since have their defaults; the fingerprint is that of what stands."""
    store = sampled(tmp_path / "p")
    content = json.loads((tmp_path / "p/zarr.json").read_text())
    kept = content["attributes"]["kdm_pairs"]
    for added in ("guidance", "guide"):
        del kept["spec"][added]
    del kept["spec"]["solver"]["grid"]
    kept["fingerprint"] = fingerprint(kept["spec"])
    (tmp_path / "p/zarr.json").write_text(json.dumps(content))
    older = PairStore.open(tmp_path / "p")
    assert older.spec == store.spec
    older.require(plan())


def test_evaluations_are_planned_or_counted(tmp_path: Path) -> None:
    flow = FlowMatching(FlowMatchingConfig(
        kind="flow_matching", network=MLPConfig(kind="mlp", width=16, blocks=1)), SPEC).eval()
    adaptive = AdaptiveSolver(kind="dopri5", tolerance=1e-3)
    spec = plan_store(config(solver=adaptive), flow, "f" * 64, None, 0, CPU)
    assert spec.nfe is None
    store = PairStore.create(tmp_path / "p", spec, {})
    counted = sample_pairs(store, flow, CPU)
    assert counted is not None and counted >= 12
    assert sample_pairs(store, flow, CPU) is None  # nothing was left to do
    guidance = GuidanceConfig(kind="classifier_free", scale=2.0)
    pushed = guided(flow, None, guidance)
    spec = plan_store(config(guidance=guidance), pushed, "f" * 64, None, 0, CPU)
    assert spec.nfe == 2 * (2 * 3 - 1)
    store = PairStore.create(tmp_path / "q", spec, {})
    assert sample_pairs(store, pushed, CPU) == spec.nfe


def test_resumes_after_the_last_complete_shard(tmp_path: Path) -> None:
    whole = sampled(tmp_path / "a").content_hash()
    store = PairStore.create(tmp_path / "b", plan(), {})
    for shard in (0, 3):
        store.write_shard(shard, sample_shard(store.spec, teacher(), shard, CPU)[0])
    reopened = PairStore.open(tmp_path / "b", writable=True)
    assert reopened.missing_shards() == [1, 2, 4, 5]
    done: list[int] = []
    sample_pairs(reopened, teacher(), CPU, done.append)
    assert done == [16, 16, 16, 5]
    assert reopened.content_hash() == whole


def fill_slowly(path: Path) -> None:
    store = PairStore.open(path, writable=True)
    sample_pairs(store, teacher(), CPU, lambda pairs: time.sleep(0.05))


@pytest.mark.parametrize(("delay", "states"),
                         [(0.0, 0), (0.02, 2), (0.07, 0), (0.1, 2), (0.15, 0)])
def test_survives_sigkill(tmp_path: Path, delay: float, states: int) -> None:
    whole = sampled(tmp_path / "a", states=states).content_hash()
    path = tmp_path / "b"
    PairStore.create(path, plan(states=states), {})
    process = multiprocessing.get_context("fork").Process(target=fill_slowly, args=(path,))
    process.start()
    time.sleep(delay)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store = PairStore.open(path, writable=True)
    sample_pairs(store, teacher(), CPU)
    assert store.content_hash() == whole
    assert not list(path.rglob("*.partial"))


def test_truncated_shard_is_written_again(tmp_path: Path) -> None:
    store = sampled(tmp_path / "p")
    whole = store.content_hash()
    victim = tmp_path / "p" / "index" / "c" / "2"
    victim.write_bytes(victim.read_bytes()[:-20])
    assert store.missing_shards() == [2]
    sample_pairs(store, teacher(), CPU)
    assert store.content_hash() == whole


@pytest.mark.parametrize("array", ["noise", "sample", "label", "trajectory"])
def test_flipped_bit_is_found_when_read(tmp_path: Path, array: str) -> None:
    store = sampled(tmp_path / "p", states=1)
    victim = next(f for f in (tmp_path / "p" / array).rglob("*") if f.is_file()
                  and f.name != "zarr.json")
    content = bytearray(victim.read_bytes())
    content[5] ^= 1
    victim.write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        store.content_hash()


@pytest.mark.parametrize("array", ["noise", "sample", "trajectory"])
def test_lost_file_of_a_complete_shard_is_damage(tmp_path: Path, array: str) -> None:
    """The stage takes such a shard for complete: to run it again, which `not complete` advises,
    would change nothing."""
    store = sampled(tmp_path / "p", states=1)
    store.local_file(array, 2).unlink()
    assert store.missing_shards() == []
    with pytest.raises(DataError, match=r"pairs 32 to 48 are damaged .*repair the store"):
        store.content_hash()


def test_incomplete_store_is_not_read(tmp_path: Path) -> None:
    store = PairStore.create(tmp_path / "p", plan(), {})
    with pytest.raises(DataError, match="not complete"):
        read_split(store, "train", CPU)


def test_mismatch_names_the_field(tmp_path: Path) -> None:
    store = PairStore.create(tmp_path / "p", plan(), {})
    store.require(plan())
    with pytest.raises(MismatchError, match=r"solver .*steps.*3.*wanted.*4"):
        store.require(plan(solver=FixedSolver(kind="heun", steps=4)))
    with pytest.raises(MismatchError, match=r"states \(here \[\], wanted \[\{'place': 1"):
        store.require(plan(states=1))


def test_foreign_and_later_stores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none is no Zarr group"):
        PairStore.open(tmp_path / "none")
    zarr.create_group(tmp_path / "foreign")
    with pytest.raises(DataError, match="no pair store"):
        PairStore.open(tmp_path / "foreign")
    PairStore.create(tmp_path / "p", plan(), {})
    with pytest.raises(DataError, match="exists already"):
        PairStore.create(tmp_path / "p", plan(), {})
    attributes = zarr.open_group(tmp_path / "p", mode="r+").attrs
    altered = {**attributes["kdm_pairs"]}
    altered["spec"] = {**altered["spec"], "noise_seed": 5}
    attributes["kdm_pairs"] = altered
    with pytest.raises(MismatchError, match="altered"):
        PairStore.open(tmp_path / "p")
    altered["spec"] = {**altered["spec"], "schema_version": 3}
    attributes["kdm_pairs"] = altered
    with pytest.raises(MismatchError, match="schema version 3"):
        PairStore.open(tmp_path / "p")


def test_a_diverged_teacher_stops_the_sampling(tmp_path: Path) -> None:
    broken = teacher()
    broken.network.leave.bias.data.fill_(float("nan"))
    store = PairStore.create(tmp_path / "p", plan(), {})
    with pytest.raises(DivergedError, match=r"\(lr\)"):
        sample_pairs(store, broken, CPU)
    assert store.missing_shards() == list(range(6))


def test_full_disk_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PairStore.create(tmp_path / "p", plan(), {})
    store.write_shard(0, sample_shard(store.spec, teacher(), 0, CPU)[0])

    def no_space(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zarr.storage._local._put", no_space)
    with pytest.raises(DataError, match="No space left on device"):
        sample_pairs(store, teacher(), CPU)
    assert store.missing_shards() == [1, 2, 3, 4, 5]


def test_misaligned_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match="shard: 16 is no multiple of batch: 5"):
        config(batch=5)


def test_uint8_at_rest() -> None:
    values = torch.linspace(-1.2, 1.2, 1001)
    stored = to_uint8(values)
    expected = np.clip(np.floor(127.5 * values.double().numpy() + 128), 0, 255)
    assert np.abs(stored.numpy() - expected).max() <= 1  # float32 against float64 at the edges
    assert (stored.numpy() != expected).mean() < 0.01
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    assert as_float(every.numpy()).min() == -1
