"""Services that fail: the Prefect server, and a bucket behind a bad network."""

from collections.abc import Iterator
from random import Random

from tests.drills import prefect_server, s3
from tests.drills.bench import SAME, Bench, Drill


def restart_prefect(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """The server is killed and started again while a flow runs.

    Each trial takes minutes, so there are few.
    """
    for trial in range(max(1, times // 10)):
        folder = bench.project.parent / f"prefect-{trial}"
        folder.mkdir()
        yield prefect_server.run(folder)


def break_s3(bench: Bench, random: Random, times: int) -> Iterator[str]:
    """A bucket answers some requests with 500 or 503, slowly or not at all."""
    for trial in range(times):
        folder = bench.project.parent / f"s3-{trial}"
        folder.mkdir()
        s3.run(folder, random.getrandbits(31))
        yield SAME


DRILLS: dict[str, Drill] = {
    "Prefect server restarted during a run": restart_prefect,
    "S3 answering 500, 503, slowly or not at all": break_s3,
}
