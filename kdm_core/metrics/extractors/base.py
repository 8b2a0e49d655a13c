"""What extractors of images have in common."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from kdm_core.errors import DataError


def as_rgb(images: Tensor) -> Tensor:
    """Images (B, 1 or 3, H, W) with three channels, a grey one three times."""
    return images.expand(-1, 3, -1, -1)


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """What goes wrong within it is the fault of a file that should hold `what`.

    Raises:
        DataError: something went wrong; it names the file.
    """
    try:
        yield
    except Exception as error:  # each library has errors of its own for damaged or other files
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{path} does not hold {what} ({type(error).__name__}: {text}): give the "
                        "path of another file, or fetch it again") from error
