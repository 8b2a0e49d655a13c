"""Encoded images to one array of pixels."""

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdm_core.errors import DataError, adapted

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

# A file of a few kilobytes can claim any number of pixels: these are refused before decoding.
MAX_FILE = 64 * 2**20
MAX_PIXELS = 2**26
MAX_VALUES = 2**34

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}

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
        DataError: it is broken, too large, or has a transparency, a depth or frames that 8 bits
            a channel of one image cannot keep.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=list(formats)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{name}: {image.width} x {image.height} pixels, at most "
                                f"{MAX_PIXELS} are allowed: make it smaller")
            require_plain(image, name)
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
    except UnidentifiedImageError as error:
        raise DataError(f"{name} is not a readable {' or '.join(formats)} image: replace or remove "
                        "it") from error
    except Exception as error:  # Pillow's decoders raise a dozen kinds on broken files
        raise DataError(f"{name} is not a readable {' or '.join(formats)} image "
                        f"({type(error).__name__}: {error}): replace or remove it") from error


def require_plain(image: "ImageFile", name: str) -> None:
    """Make sure that an opened image is one picture of at most 8 bits a channel.

    Pillow's mode does not tell: it is RGB for PNGs of 16 bits, of which the decoder then keeps 8.

    Raises:
        DataError: it is not.
    """
    # What the decoder is told that the file holds; of BMP ";16" are the bits of a pixel.
    if image.format == "PNG" and any(str(tile[3]).endswith(";16B") for tile in image.tile):
        raise DataError(f"{name} has 16 bits a channel, of which images here keep 8: save it with "
                        "8 bits a channel")
    # Of a JPEG further pictures are previews and maps of depth.
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{name} is an animation of {getattr(image, 'n_frames', 1)} frames: save "
                        "the one that is meant as an image")


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
    gray, first = 0, ""
    sizes: Counter[tuple[int, int]] = Counter()
    for row, (name, content) in enumerate(files):
        image = decode(content, name, formats)
        sizes[image.size] += 1
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
        gray += image.mode == "L"
        pixels = np.asarray(image)
        stacked[row] = pixels if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    say_adapted(sizes, gray, resolution)
    return stacked[:, :1].copy() if gray == count else stacked


def say_adapted(
    sizes: Counter[tuple[int, int]], gray: int, resolution: int | None
) -> None:
    """Say in a line each whether images were resized, or gray ones became RGB.

    Args:
        sizes: how many images have which width and height.
        gray: how many are gray.
        resolution: side of the square that all were brought to, if any.
    """
    count = sizes.total()
    if resolution is not None and (others := count - sizes[(resolution, resolution)]):
        (low, narrow), (high, wide) = min(sizes, key=min), max(sizes, key=max)
        adapted(f"{others} of {count} images have another size than {resolution} x {resolution} "
                f"(from {low} x {narrow} to {high} x {wide}): they are cropped to their middle "
                "square and resized")
    if 0 < gray < count:
        adapted(f"{gray} of {count} images are gray and become RGB, as the others are")
