"""A bucket behind a bad network: a store is written, its writer killed, and gone on with."""

import multiprocessing
import random
import shutil
from pathlib import Path

from kdm_core.pairs.opening import open_or_create
from kdm_core.pairs.sampling import sample_pairs
from kdm_core.pairs.store import PairStore
from tests.support.faulty_s3 import faulty
from tests.support.pairs import CPU, plan, sampled, teacher
from tests.support.s3_server import BUCKET, serving
from tests.support.waiting import wait_until

# Making and filling the store takes about 100 requests, and those that are sent again.
REQUESTS = 100
RATE = 0.1
LIMIT_S = 60.0


def run(workdir: Path, seed: int) -> str:
    """One drill; returns its outcome in a few words.

    Args:
        workdir: an empty folder.
        seed: decides the instant of the kill and the faults of the network.

    Raises:
        AssertionError: the store is not that of an undisturbed run.
        KDMError: it could not be written or read.
    """
    expected = sampled(workdir / "undisturbed.zarr").content_hash()
    with serving(), faulty(seed, RATE) as network:
        url = f"s3://{BUCKET}/drill/pairs.zarr"
        last = random.Random(seed).randrange(1, REQUESTS)
        writer = multiprocessing.get_context("spawn").Process(target=write, args=(url,))
        writer.start()
        try:
            wait_until(lambda: network.requests >= last or not writer.is_alive(), LIMIT_S)
        finally:
            writer.kill()
            writer.join()
        write(url)
        found = PairStore.open(url).content_hash()
        shutil.rmtree(workdir / "undisturbed.zarr")
        assert found == expected, f"content {found}, undisturbed {expected}"
        return f"identical after {len(network.faults)} faults and a kill at request {last}"


def write(url: str) -> None:
    """Make the store or go on with it, to its end."""
    sample_pairs(open_or_create(url, plan(), {}), teacher(), CPU)
