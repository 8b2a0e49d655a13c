"""The report, copied to where others look for it: another folder, or a bucket."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from kdm_core.errors import DataError, KDMError
from kdm_core.pairs.location import failures, local_path, options, usable
from kdm_core.serialization import write_atomic
from pipeline.runtime import paths


def published_files() -> dict[str, Path]:
    """What is published, by its name there; the page, which others wait for, comes last."""
    figures = sorted(paths.FIGURES.glob("*.png"))
    return {**{f"{paths.FIGURES.name}/{file.name}": file for file in figures},
            **{name: paths.REPORTS / name for name in ("report.json", "report.html")}}


def preview(target: str | None, picture: str) -> str | None:
    """The address of a published picture for those who show a preview of the page.

    They want a whole address, which of all targets only the two large clouds' buckets have; whether
    others may read there, the bucket's owner decides. None where there is no such address.
    """
    bucket = urlsplit(target or "")
    if bucket.scheme in ("gs", "gcs"):
        host = f"storage.googleapis.com/{bucket.netloc}"
    elif bucket.scheme in ("s3", "s3a") and not os.environ.keys() & {"AWS_ENDPOINT_URL",
                                                                     "AWS_ENDPOINT_URL_S3"}:
        host = f"{bucket.netloc}.s3.amazonaws.com"
    else:
        return None
    return f"https://{host}{bucket.path.rstrip('/')}/{paths.FIGURES.name}/{picture}.png"


def publish(target: str) -> None:
    """Copy report, figures and numbers, in place of what an earlier run has put there.

    Args:
        target: a folder, or a URL that fsspec writes to.

    Raises:
        KDMError: it cannot be written; the report here is complete all the same.
    """
    try:
        folder = local_path(target)
        if folder is None:
            upload(target)
        else:
            copy(folder)
    except DataError as error:
        raise KDMError(f"{paths.REPORTS / 'report.html'} is complete, but was not published "
                       f"(report.publish): {error}") from error


def copy(folder: Path) -> None:
    with failures(folder):
        for name, file in published_files().items():
            write_atomic(folder / name, file.read_bytes())


def upload(url: str) -> None:
    from fsspec.core import url_to_fs

    with usable(url):
        files, root = url_to_fs(url, **options(url))
        for name, file in published_files().items():
            # From a file, since its ending then says what browsers are told it is.
            files.put_file(str(file), f"{root.rstrip('/')}/{name}")
