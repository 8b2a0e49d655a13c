"""The engine `dask`, with real schedulers and workers on loopback: same bytes, whatever is lost."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from kdm_core.errors import KDMError
from kdm_core.metrics.extractors import ReferenceConfig
from kdm_core.metrics.features import FeatureCache, extract
from kdm_core.networks import MLPConfig
from kdm_core.pairs.claims import claims_folder
from kdm_core.pairs.filtering.config import CopiesConfig, FilterConfig
from kdm_core.pairs.filtering.judging import judged
from kdm_core.pairs.sampling import PairsConfig, Sampled, plan_store, sampler
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import Denoiser, DenoiserConfig, load_teacher, save_teacher
from pipeline.params.execution import DaskSampling, ExecutionParams
from pipeline.runtime.runner import Stage
from pipeline.runtime.stopping import Stop, Stopped, stoppable
from pipeline.workers.cluster import Cluster, Disconnected
from pipeline.workers.engine import Here, own_places
from pipeline.workers.engine import engine as engine_of
from pipeline.workers.features import FeatureSource, Origin
from pipeline.workers.filtering import FilterTask, Yardstick
from pipeline.workers.fitness import Wanted, Worker, require_own_gpus, versions
from pipeline.workers.processes import Processes
from pipeline.workers.sampling import SamplingTask
from pipeline.workers.tasks import Engine, Folder, Place
from tests.support.project import environment
from tests.support.s3_server import BUCKET, serving

PLACE, CPU = Place("cpu", 1, True), torch.device("cpu")
SPEC = SampleSpec(kind="image", shape=[1, 8, 8], label_names=list("0123456789"), sigma_data=0.75)
PAIRS = PairsConfig(solver=FixedSolver(kind="heun", steps=40), train=600, validation=40, test=200,
                    batch=40, shard=40, chunk=40, precision="fp32")


class Said(list[str]):
    """What an engine says."""

    @property
    def text(self) -> str:
        return "\n".join(self)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dask") / "teacher"
    torch.manual_seed(0)
    save_teacher(folder, Denoiser(DenoiserConfig(
        kind="denoiser", network=MLPConfig(kind="mlp", width=64, blocks=2)), SPEC))
    return folder


@pytest.fixture(scope="module")
def spec(teacher: Path) -> StoreSpec:
    model, mark = load_teacher(teacher)
    return plan_store(PAIRS, model, mark, None, 1, CPU)


@pytest.fixture(scope="module")
def content(teacher: Path, spec: StoreSpec) -> str:
    """The hash of the pairs that one process makes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    store = PairStore.create(teacher.parent / "own.zarr", spec, {})
    sample = sampler(store, load_teacher(teacher)[0], CPU)
    for shard in store.missing_shards():
        sample(shard)
    torch.set_num_threads(threads)
    return store.content_hash()


@pytest.fixture
def store(tmp_path: Path, spec: StoreSpec) -> PairStore:
    return PairStore.create(tmp_path / "pairs.zarr", spec, {})


def remote(
    address: str, workers: int = 1, patience_s: float = 20, stop: Stop | None = None,
    say: Callable[[str], None] = print,
) -> Cluster:
    return Cluster(address, workers, PLACE, patience_s, stop or Stop(), say)


def fill(
    engine: Engine, store: PairStore, teacher: Path,
    on_shard: Callable[[int, Sampled], None] = lambda place, found: None,
) -> None:
    """All that is missing."""
    engine.run(SamplingTask(str(store.location), Folder(teacher), False), store.missing_shards(),
               on_shard)


def dask(*arguments: str, folder: Path) -> subprocess.Popen[bytes]:
    """A command of Dask; what it logs lies in the folder."""
    command = [sys.executable, "-m", "dask", *arguments]
    with (folder / f"{arguments[0]}.log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env=environment(), stderr=log, stdout=log,
                                start_new_session=True)


def worker(address: str, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    return dask("worker", address, "--nthreads", "1", "--memory-limit", "0", "--no-dashboard",
                *more, folder=folder)


def scheduler(address: str, folder: Path) -> subprocess.Popen[bytes]:
    return dask("scheduler", "--host", address, "--no-dashboard", folder=folder)


def free_address() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{found.getsockname()[1]}"


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and all that it has started."""
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()


@contextmanager
def running(*processes: subprocess.Popen[bytes]) -> Iterator[None]:
    with ExitStack() as stack:
        for process in processes:
            stack.callback(end, process)
        yield


def test_a_scheduler_that_comes_back(
    store: PairStore, teacher: Path, content: str, tmp_path: Path
) -> None:
    """It is killed at work and started again. The workers end with it: one of two comes back,
    and goes on alone."""
    address, said = free_address(), Said()
    command = (f"while :; do {sys.executable} -m dask worker {address} --nthreads 1 "
               "--memory-limit 0 --no-dashboard; done")
    workers = [subprocess.Popen(["sh", "-c", command], env=environment(), cwd=tmp_path,
                                stderr=subprocess.DEVNULL, start_new_session=True),
               worker(address, tmp_path)]
    schedulers = [scheduler(address, tmp_path)]

    def restart(place: int, found: Sampled) -> None:
        if len(schedulers) == 1:
            end(schedulers[0])
            schedulers.append(scheduler(address, tmp_path))

    with running(*workers), remote(address, 2, say=said.append) as engine:
        fill(engine, store, teacher, restart)
        with running(schedulers[1]):
            pass
    assert "the connection to the Dask scheduler is lost" in said.text
    assert store.content_hash() == content


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A scheduler with one fit worker, and a folder for the logs of others."""
    address, folder = free_address(), tmp_path_factory.mktemp("cluster")
    with running(scheduler(address, folder), worker(address, folder)):
        yield address, folder


def test_a_killed_worker_of_a_cluster_that_is_there(
    cluster: tuple[str, Path], store: PairStore, teacher: Path, content: str, tmp_path: Path
) -> None:
    """Its nanny starts another. Workers need not find the teacher's folder, and a new engine does
    without the memory of a stage that was killed."""
    address, _ = cluster
    killed, copied = [], shutil.copytree(teacher, tmp_path / "teacher")

    def kill(place: int, found: Sampled) -> None:
        assert engine.client is not None
        if not killed:
            shutil.rmtree(copied)
            killed.extend(engine.client.run(os.getpid).values())
            os.kill(killed[0], signal.SIGKILL)

    with remote(address) as engine:
        fill(engine, store, copied, kill)
        assert store.content_hash() == content
        store.remove_leftovers()
        assert not claims_folder(Path(store.location)).exists()
        with remote(address) as second:
            assert engine.client is not None and second.client is not None
            task = SamplingTask(str(store.location), Folder(teacher), False)
            with engine.mission(task, engine.wanted(None)) as name:
                engine.client.close()  # as if killed
                second.get_ready(time.monotonic() + 5)
                left = second.client.run_on_scheduler(
                    lambda dask_scheduler: list(dask_scheduler.worker_plugins))
                assert name not in left


def test_a_new_scheduler_knows_no_missions(
    cluster: tuple[str, Path], store: PairStore, teacher: Path
) -> None:
    """The client may be connected to it before it is noticed that the former one is gone."""
    task = SamplingTask(str(store.location), Folder(teacher), False)
    with remote(cluster[0]) as engine:
        with pytest.raises(Disconnected), engine.mission(task, engine.wanted(None)) as name:
            assert engine.client is not None
            engine.client.unregister_worker_plugin(name)
            raise Disconnected
        engine.least = 2  # of which one comes back
        engine.get_ready(time.monotonic())


def test_what_is_under_way_is_finished_on_request(
    cluster: tuple[str, Path], store: PairStore, teacher: Path, content: str
) -> None:
    """SIGTERM: nothing new is begun, nothing is lost, and the rest is done later."""
    done = []

    def terminate(place: int, found: Sampled) -> None:
        if not done:  # a second one would end this at once
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(place)

    with pytest.raises(Stopped) as stopped, stoppable(print) as stop:  # noqa: SIM117
        with remote(cluster[0], stop=stop) as engine:
            fill(engine, store, teacher, terminate)
    assert stopped.value.code == 143
    assert len(store.missing_shards()) == store.spec.num_shards - len(done)
    assert 0 < len(done) < 5
    with remote(cluster[0]) as engine:
        fill(engine, store, teacher)
    assert store.content_hash() == content


def test_one_process_finishes_what_is_under_way() -> None:
    done: list[int] = []

    class Double:
        def start(self, device: torch.device) -> Callable[[int], int]:
            return lambda item: 2 * item

    def terminate(place: int, result: int) -> None:
        done.append(result)
        os.kill(os.getpid(), signal.SIGTERM)

    said = Said()
    with pytest.raises(Stopped), stoppable(said.append) as stop:
        Here(CPU, stop).run(Double(), [1, 2, 3], terminate)  # type: ignore[arg-type]
    assert done == [2]
    assert "run again to go on" in said.text


def test_each_worker_has_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_places(PLACE, None) == [PLACE]
    assert own_places(PLACE, 3) == [PLACE] * 3
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cuda = PLACE._replace(device="cuda")
    both = [PLACE._replace(device="cuda:0"), PLACE._replace(device="cuda:1")]
    assert own_places(cuda, None) == both
    assert own_places(cuda, 1) == both[:1]
    with pytest.raises(KDMError, match="3 workers cannot share 2 devices"):
        own_places(cuda, 3)
    with pytest.raises(KDMError, match=r"2 workers cannot share 1 device \(cuda:1\)"):
        own_places(both[1], 2)
    with pytest.raises(KDMError, match=r"2 workers cannot share 1 device \(mps\)"):
        own_places(PLACE._replace(device="mps"), 2)


def test_dask_may_be_missing(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished)
    stage = Stage("sample_pairs")
    config = DaskSampling(engine="dask", address="tcp://host:8786")
    stage.params = stage.params.model_copy(update={"execution": ExecutionParams(sampling=config)})
    monkeypatch.delitem(sys.modules, "pipeline.workers.cluster")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(KDMError, match=r"not installed .*pip install 'kdm-distill\[dask\]'"):
        engine_of(stage)
    assert isinstance(engine_of(stage, needed=False), Here)


@pytest.mark.parametrize(("preload", "flags", "message"), [
    ("import torch; torch.__version__ = '0.1'", [], r"has torch 0\.1 \(here .*same versions"),
    ("import sys; sys.modules['pipeline'] = None", [],
     r"cannot run this project \(.*pipeline.*install the same version"),
    ("", ["--nthreads", "2"], r"takes 2 tasks at a time.*--nthreads 1"),
])
def test_unfit_workers(
    cluster: tuple[str, Path], store: PairStore, teacher: Path, preload: str, flags: list[str],
    message: str,
) -> None:
    """They are found before any work; one that comes later, before it does any."""
    address, folder = cluster
    (folder / "preload.py").write_text(preload)
    unfit = worker(address, folder, "--preload", str(folder / "preload.py"), *flags)
    with running(unfit), pytest.raises(KDMError, match=message), remote(address, 2):
        pass
    assert store.missing_shards() == list(range(store.spec.num_shards))


def test_a_late_worker_checks_itself(
    cluster: tuple[str, Path], store: PairStore, teacher: Path
) -> None:
    task = SamplingTask(str(store.location), Folder(teacher), False)
    with remote(cluster[0]) as engine:
        assert engine.client is not None
        wanted = engine.wanted(None)._replace(versions=versions() | {"torch": "0.1"})
        engine.members = {"it": None}  # type: ignore[dict-item]  # as if it had been looked at
        with engine.mission(task, wanted) as name:
            answer = engine.submit(name, 0, 0)
            with pytest.raises(KDMError, match=r"the Dask worker tcp.* has torch .*\(here 0\.1"):
                answer.result(timeout=30)
    assert 0 in store.missing_shards()


def test_what_workers_must_be() -> None:
    wanted = Wanted(PLACE, versions(), Path("/data/.pairs.zarr.claims/seen-1"))
    fit = Worker("node1", 1, versions(), None, None, "AVX2", True)
    wanted.check("a", fit)
    with pytest.raises(KDMError, match=r"a on node1 does not see /data: sample into a folder"):
        wanted.check("a", fit._replace(sees=False))
    with pytest.raises(KDMError, match="compute.device: 'cuda' is not available"):
        wanted.check("a", fit._replace(problem="compute.device: 'cuda' is not available here"))
    # Whatever the system says of the path.
    assert not wanted._replace(visible=Path("/", 300 * "x")).describe(1).sees
    gpu = fit._replace(gpu="GPU-1")
    require_own_gpus({"a": gpu, "b": gpu._replace(gpu="GPU-2"), "c": fit, "d": fit})
    with pytest.raises(KDMError, match="a and b compute on the same GPU of node1.*dask-cuda"):
        require_own_gpus({"a": gpu, "b": gpu})


def test_no_scheduler_and_no_workers(tmp_path: Path) -> None:
    address = free_address()
    with (pytest.raises(KDMError, match=f"no Dask scheduler answers at {address}"),
          remote(address, patience_s=0.5)):
        pass
    with (running(scheduler(address, tmp_path)),
          pytest.raises(KDMError, match="0 of 3 workers after 6 s: start more"),
          remote(address, 3, patience_s=6)):
        pass
    with socket.create_server(("127.0.0.1", 0)) as other:  # which says nothing
        port = other.getsockname()[1]
        with (pytest.raises(KDMError, match=f"no Dask scheduler answers at tcp://127.0.0.1:{port}"),
              remote(f"tcp://127.0.0.1:{port}", patience_s=0.5)):
            pass
    with (pytest.raises(KDMError, match="Dask's settings of TLS"),
          remote(address.replace("tcp", "tls"), patience_s=0.5)):
        pass


def test_workers_write_into_a_bucket(
    teacher: Path, spec: StoreSpec, content: str, tmp_path: Path
) -> None:
    address = free_address()
    with serving():  # whose credentials the worker finds in its environment
        store = PairStore.create(f"s3://{BUCKET}/pairs.zarr", spec, {})
        with (running(scheduler(address, tmp_path), worker(address, tmp_path)),
              remote(address) as engine):
            fill(engine, store, teacher)
        assert PairStore.open(store.location).content_hash() == content


@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_filter_and_features_are_the_same(
    engine: str, finished: Path, tmp_path: Path, cluster: tuple[str, Path]
) -> None:
    """Pixels, features and saturation of pairs, and features of images, to the bit."""
    data = finished / "data"
    store = PairStore.open(data / "pairs/pairs.zarr")
    config = FilterConfig(saturated=0.5, copies=[
        CopiesConfig(threshold=1.0),
        CopiesConfig(features=ReferenceConfig(kind="classifier"), quantile=0.01)])
    yardstick = Yardstick(config, data / "dataset", data / "reference", {}, tmp_path / "cache", 3)
    origin = Origin(ReferenceConfig(kind="classifier"), {}, Folder(data / "reference"))
    extractor = origin.build(CPU)
    extractor.batch = 100
    images = torch.from_numpy(store.read(range(640)).sample)
    workers: Engine = (remote(cluster[0]) if engine == "dask"
                       else Processes([PLACE] * 2, Stop(), print))
    with workers:
        judge, marks = yardstick.judge(
            store, CPU, lambda config, extractor, images: extract(extractor, images).features)
        rows = judged(store.spec)
        parts = [range(start, min(start + 500, rows.stop)) for start in rows[::500]]
        found: dict[int, Any] = {}
        workers.run(FilterTask(str(store.location), store.spec.fingerprint, yardstick, marks),
                    parts, found.__setitem__)
        source = FeatureSource(extractor, origin, FeatureCache(tmp_path / "cache"), workers)
        features, own = source(images, "images"), extract(extractor, images)
    assert sorted(found) == list(range(len(parts)))
    for place, part in enumerate(parts):
        for name, values in judge.measure(store, part).items():
            np.testing.assert_array_equal(found[place][name], values)
    np.testing.assert_array_equal(features.features, own.features)
    np.testing.assert_array_equal(features.probabilities, own.probabilities)
