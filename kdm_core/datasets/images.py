"""Encoded images to one array of pixels."""

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdm_core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# A file of a few kilobytes can claim any number of pixels: these are refused before decoding.
MAX_FILE = 64 * 2**20
MAX_PIXELS = 2**26
MAX_VALUES = 2**34

# Modes of Pillow's that become one channel and three.
GRAY = ("1", "L", "LA")
COLOUR = ("P", "RGB", "RGBA")


def decode(content: bytes, name: str, formats: Sequence[str]) -> "Image":
    """Decode one image to mode L or RGB, upright.

    Args:
        content: the file's bytes.
        name: of the file, for messages.
        formats: the formats of Pillow's that may be tried; the others' decoders are never run.

    Raises:
        DataError: it is broken, too large, or has a transparency or depth that 8 bits a channel
            cannot keep.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content), formats=list(formats)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{name}: {image.width} x {image.height} pixels, at most "
                                f"{MAX_PIXELS} are allowed: make it smaller")
            upright = ImageOps.exif_transpose(image)
            if upright.mode not in (*GRAY, *COLOUR):
                raise DataError(f"{name} has mode {upright.mode}: save it as 8-bit RGB or gray")
            mode = "L" if upright.mode in GRAY else "RGB"
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                if upright.getchannel("A").getextrema() != (255, 255):
                    raise DataError(f"{name} has transparent pixels: put it on an opaque "
                                    "background")
            return upright.convert(mode)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen kinds on broken files
        raise DataError(f"{name} is not a readable {' or '.join(formats)} image "
                        f"({type(error).__name__}: {error}): replace or remove it") from error


def centre_square(image: "Image", resolution: int) -> "Image":
    """The largest square in the middle, resized to `resolution` pixels a side (Lanczos)."""
    from PIL import Image

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    # `resize(box=…)` would mix in pixels from outside the box.
    square = image.crop((left, top, left + side, top + side))
    return square.resize((resolution, resolution), Image.Resampling.LANCZOS)


def stack_images(
    files: Iterable[tuple[str, bytes]],
    count: int,
    formats: Sequence[str],
    resolution: int | None = None,
) -> NDArray[np.uint8]:
    """Decode images of one size into an array.

    Args:
        files: names and contents of `count` image files; read one at a time.
        count: at least 1.
        formats: see `decode`.
        resolution: side of the square that each image is cropped and resized to, if any.

    Returns:
        (count, 1, H, W) if all files are gray, else (count, 3, H, W).

    Raises:
        DataError: an image is broken, or of another size than the first.
    """
    stacked = np.empty((0, 3, 0, 0), dtype=np.uint8)
    all_gray = True
    first = ""
    for row, (name, content) in enumerate(files):
        image = decode(content, name, formats)
        if resolution is not None:
            image = centre_square(image, resolution)
        if row == 0:
            first = name
            if count * 3 * image.width * image.height > MAX_VALUES:
                raise DataError(f"{count} images of {image.width} x {image.height} pixels like "
                                f"{name} are too many to hold in memory: use fewer or smaller ones")
            stacked = np.empty((count, 3, image.height, image.width), dtype=np.uint8)
        elif (image.height, image.width) != stacked.shape[2:]:
            raise DataError(f"{name} has {image.width} x {image.height} pixels, {first} has "
                            f"{stacked.shape[3]} x {stacked.shape[2]}: make all images one size")
        all_gray = all_gray and image.mode == "L"
        pixels = np.asarray(image)
        stacked[row] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return stacked[:, :1].copy() if all_gray else stacked
