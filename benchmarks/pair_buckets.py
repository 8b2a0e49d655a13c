"""Two writers in one bucket: Zarr on S3 as it is, against icechunk's transactions.

    python -m benchmarks.pair_buckets

Both write the same pairs of CIFAR-10's size, every other shard each, to a server with S3's
interface on this machine (moto); icechunk commits every shard. Printed are the time that the
writers take, commits that had to be tried again, objects and bytes in the bucket, the time to
read and hash all, what a reader sees that had opened the store before, and what becomes of the
same shard written by two. icechunk is no dependency: pip install icechunk.
"""

import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import boto3
import numpy as np
import zarr

from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import Block, PairStore, fill_group
from kdm_core.samples import SampleSpec
from tests.support.s3_server import BUCKET, S3, serving

SHARD, SHARDS = 1000, 8
SHAPE = (3, 32, 32)
URL = f"s3://{BUCKET}/plain.zarr"
SPEC = StoreSpec(
    samples=SampleSpec(kind="image", shape=list(SHAPE)), teacher="t", noise_seed=0,
    noise_dtype="float16", noise_scale=80.0, sample_dtype="uint8", solver=None, times=[], nfe=35,
    compute_batch=100, precision="fp32", chunk=250, shard=SHARD,
    splits={"test": 10, "validation": 10, "train": SHARD * SHARDS - 20})


def block(shard: int) -> Block:
    """Pairs of about the entropy of images."""
    generator = np.random.default_rng(shard)
    noise = generator.standard_normal((SHARD, *SHAPE)).astype(np.float16)
    sample = np.clip(generator.normal(128, 20, (SHARD, *SHAPE)), 0, 255).astype(np.uint8)
    return Block(noise, sample, np.full(SHARD, -1),
                 np.arange(shard * SHARD, (shard + 1) * SHARD))


def repository(create: bool = False) -> Any:
    """icechunk's repository in the bucket."""
    import icechunk

    place = icechunk.s3_storage(
        bucket=BUCKET, prefix="ice", region="us-east-1", allow_http=True, force_path_style=True,
        endpoint_url=os.environ["AWS_ENDPOINT_URL"], from_env=True)
    return icechunk.Repository.create(place) if create else icechunk.Repository.open(place)


def store_of(session: Any, mode: Any = "r") -> PairStore:
    """The pair store that a session of icechunk sees."""
    return PairStore("memory://icechunk", zarr.open_group(session.store, mode=mode), SPEC, {})


def write_plain(shard: int, pairs: Block) -> int:
    PairStore.open(URL, writable=True).write_shard(shard, pairs)
    return 0


def write_transaction(shard: int, pairs: Block) -> int:
    """Returns the number of conflicts."""
    import icechunk

    session = repository().writable_session("main")
    store_of(session, "r+").write_shard(shard, pairs)
    try:
        session.commit(f"shard {shard}")
    except icechunk.ConflictError:
        session.commit(f"shard {shard}", rebase_with=icechunk.ConflictDetector(), rebase_tries=20)
        return 1
    return 0


def work(write: Callable[[int, Block], int], first: int, start: Any, results: Any) -> None:
    """One of two writers; both start when their pairs are ready."""
    pairs = {shard: block(shard) for shard in range(first, SHARDS, 2)}
    start.wait()
    began = time.perf_counter()
    conflicts = sum(write(shard, content) for shard, content in pairs.items())
    results.put((time.perf_counter() - began, conflicts))


def measure(name: str, write: Callable[[int, Block], int], prefix: str, s3: S3,
            reopen: Callable[[], PairStore]) -> None:
    """Write with two processes and read with one."""
    old = reopen()
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Barrier(2), spawn.Queue()
    writers = [spawn.Process(target=work, args=(write, first, start, results)) for first in (0, 1)]
    before = len(s3.requests)
    for writer in writers:
        writer.start()
    found = [results.get() for _ in writers]
    for writer in writers:
        writer.join()
    requests = len(s3.requests) - before
    began = time.perf_counter()
    content = reopen().content_hash()
    read = time.perf_counter() - began
    objects = bucket(prefix)
    print(f"\n{name}: writing {max(seconds for seconds, _ in found):.2f} s, "
          f"{sum(conflicts for _, conflicts in found)} commits tried again, {requests} requests\n"
          f"  reading {read:.2f} s, content {content[:12]}; a reader from before sees "
          f"{SHARDS - len(old.missing_shards())} of {SHARDS} shards\n"
          f"  {len(objects)} objects, {sum(objects.values()) / 1e6:.1f} MB: "
          f"{dict(Counter(key.split('/')[1] for key in objects))}")


def bucket(prefix: str) -> dict[str, int]:
    """Objects and their bytes."""
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(
        Bucket=BUCKET, Prefix=prefix)
    return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}


def compare_rewriting() -> None:
    """The same shard by two writers, and what a reader without icechunk can open."""
    import icechunk

    sessions = [repository().writable_session("main") for _ in range(2)]
    for session in sessions:
        store_of(session, "r+").write_shard(0, block(0))
    sessions[0].commit("the same pairs again")
    try:
        sessions[1].commit("and again", rebase_with=icechunk.ConflictDetector())
        print("\nthe same shard by two: both went in")
    except icechunk.RebaseFailedError as error:
        print(f"\nthe same shard by two: the second is refused ({str(error).splitlines()[0]})")
    print(f"  then {sum(bucket('ice/').values()) / 1e6:.1f} MB, until garbage is collected")
    try:
        zarr.open(f"s3://{BUCKET}/ice", mode="r")
        print("zarr.open reads it")
    except FileNotFoundError as error:
        print(f"zarr.open on the repository: {type(error).__name__}")


def main() -> None:
    logging.getLogger("icechunk").setLevel(logging.ERROR)
    with serving() as s3:
        PairStore.create(URL, SPEC, {})
        measure("Zarr", write_plain, "plain.zarr/", s3, lambda: PairStore.open(URL))
        try:
            import icechunk
        except ImportError:
            print("\nicechunk is not installed: pip install icechunk")
            return
        session = repository(create=True).writable_session("main")
        fill_group(zarr.create_group(session.store), SPEC, {})
        session.commit("empty")
        measure(f"icechunk {icechunk.__version__}", write_transaction, "ice/", s3,
                lambda: store_of(repository().readonly_session("main")))
        compare_rewriting()


if __name__ == "__main__":
    main()
