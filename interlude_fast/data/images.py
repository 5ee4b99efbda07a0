"""From one file to one prepared uint8 image: what is read, what is refused, and the rule in between."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn, get_args

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from interlude_fast.errors import DataError
from interlude_fast.options import Fit, Interpolation

# Pillow's decoders of pixels, by what a file holds and not by its name; nothing that starts other programs (EPS).
FORMATS = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "BMP": "BmpImagePlugin",
    "GIF": "GifImagePlugin",
    "TIFF": "TiffImagePlugin",
    "WEBP": "WebPImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "AVIF": "AvifImagePlugin",
}
# What a folder is searched for, in lower case.
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif"}
IMAGE_SUFFIXES |= {".ppm", ".pgm", ".pbm", ".pnm", ".jp2"}
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs
MAX_SIZE = 4096

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Recipe:
    """How images of any size and mode become uint8 [size, size, channels].

    In this order:

    1. EXIF orientation is applied. Of several frames (GIF, TIFF) the first counts.
    2. 16-bit grey becomes 8-bit: v / 257, rounded. (16-bit colour is read by Pillow as its high bytes.)
       Floating-point pixels and integers outside 0..65535 are refused.
    3. Palettes, CMYK, YCbCr, LAB and HSV become RGB; transparent parts are laid on black.
    4. `channels`: RGB to grey by Pillow's luma (299 R + 587 G + 114 B) / 1000; grey to RGB by repetition.
    5. `fit`, with Pillow's filter `interpolation`, antialiased where it shrinks:
       "crop" cuts out the largest centred square and resizes it to `size`;
       "pad" resizes the longer side to `size` and puts the image in the middle of a black square;
       "stretch" resizes both sides to `size`. An image that is already `size` x `size` is not touched.

    Raises:
        DataError: a size outside 1..4096, channels other than 1 and 3, or an unknown fit or interpolation.
    """

    size: int
    channels: int
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_SIZE:
            raise DataError(f"images of {self.size} px: the size must lie in 1..{MAX_SIZE}")
        if self.channels not in (1, 3):
            raise DataError(f"images of {self.channels} channels: choose 1 (grey) or 3 (RGB)")
        if self.fit not in get_args(Fit):
            raise DataError(f"unknown fit '{self.fit}'; known: {', '.join(get_args(Fit))}")
        if self.interpolation not in get_args(Interpolation):
            known = ", ".join(get_args(Interpolation))
            raise DataError(f"unknown interpolation '{self.interpolation}'; known: {known}")

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.size, self.size, self.channels)


class UnreadableImage(Exception):
    """A file that gives no image.

    Attributes:
        reason: why, in a few words on one line.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class ImageInfo:
    """What a header says: (width, height) after EXIF orientation, and Pillow's mode."""

    size: tuple[int, int]
    mode: str


def shown(path: Path | str) -> str:
    """A path for a message: on one line, and printable where its bytes are no UTF-8."""
    text = os.fspath(path).encode("utf-8", "backslashreplace").decode()
    return text.replace("\n", "\\n").replace("\r", "\\r")


def refuse_unseen(error: OSError) -> NoReturn:
    """os.walk's `onerror`: a folder whose files cannot be seen is an error, not an empty folder."""
    raise DataError(f"{shown(error.filename or 'a folder')} cannot be read: {error.strerror or error}") from None


def open_regular(path: Path | str) -> BinaryIO:
    """A regular, non-empty file, open for reading.

    Raises:
        UnreadableImage: it is none, or may not be read.
    """
    try:
        found = os.stat(path)  # before open: opening a FIFO would wait for its writer
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableImage("not a regular file")
        if not found.st_size:
            raise UnreadableImage("empty file")
        return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise UnreadableImage(_reason(error)) from None


def read_image(path: Path | str) -> Image.Image:
    """The first frame of an image file, decoded, as it was stored.

    Raises:
        UnreadableImage: not a regular file, empty, no image, truncated, damaged, too large or not permitted.
    """
    with open_regular(path) as file:
        return read_stream(file)


def read_stream(file: BinaryIO) -> Image.Image:
    """read_image from an open file that stands at its beginning."""
    with strict_pillow(), _refusals():
        image = _identify(file)
        image.load()
        return image


def from_array(pixels: np.ndarray) -> Image.Image:
    """uint8 [H, W, C], C = 1 or 3, as a decoded image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else np.ascontiguousarray(pixels))


def inspect_header(path: Path | str) -> ImageInfo:
    """Size and mode without decoding pixels; the end of the file may still be missing.

    Raises:
        UnreadableImage: as read_image, as far as the header shows it.
    """
    with open_regular(path) as file:
        return inspect_stream(file)


def inspect_stream(file: BinaryIO) -> ImageInfo:
    """inspect_header from an open file that stands at its beginning."""
    with strict_pillow(), _refusals():
        image = _identify(file)
        turned = _orientation(image) >= 5
        # Pillow turns a TIFF's size when it opens it or when it decodes it, by its version: ask the tags.
        stored = tuple(image.tag_v2[tag] for tag in (256, 257)) if hasattr(image, "tag_v2") else image.size
        width, height = reversed(stored) if turned else stored
        return ImageInfo((int(width), int(height)), image.mode)


def prepare(image: Image.Image, recipe: Recipe) -> np.ndarray:
    """A decoded image by the recipe's rule: uint8 [size, size, channels].

    Raises:
        UnreadableImage: floating-point pixels, or integers of more than 16 bits.
    """
    with strict_pillow(), _refusals():
        image.load()
        # Pillow turns a TIFF itself when it decodes it, and some versions leave the tag standing.
        turn = None if hasattr(image, "tag_v2") else _TURNS.get(_orientation(image))
        plain = _colour(image)
        if turn is not None:
            plain = plain.transpose(turn)
        plain = plain.convert("L" if recipe.channels == 1 else "RGB")
        return np.array(_fit(plain, recipe)).reshape(recipe.shape)


def _colour(image: Image.Image) -> Image.Image:
    """Steps 2 and 3 of the rule: mode L or RGB."""
    mode = image.mode
    if mode == "F":
        raise UnreadableImage("floating-point pixels")
    if mode == "I" or mode.startswith("I;16"):
        return _eight_bits(image)
    if mode in ("LA", "La", "PA", "RGBA", "RGBa") or _has_transparency(image):
        image = image.convert("LA") if mode == "La" else image
        layer = image.convert("RGBA")
        black = Image.new("RGB", layer.size)
        black.paste(layer.convert("RGB"), mask=layer.getchannel("A"))
        return black
    return image if mode in ("L", "RGB") else image.convert("L" if mode == "1" else "RGB")


def _has_transparency(image: Image.Image) -> bool:
    """A palette or one colour of it is transparent, by a header's word."""
    palette = image.palette.mode if image.mode == "P" and image.palette else ""
    return palette == "RGBA" or (image.mode in ("1", "L", "P", "RGB") and "transparency" in image.info)


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int32)
    if values.min() < 0 or values.max() > 65535:
        raise UnreadableImage("integer pixels outside 0..65535")
    clear = image.info.get("transparency")
    if isinstance(clear, int):  # the one grey value that a PNG declares transparent
        values[values == clear] = 0
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _fit(image: Image.Image, recipe: Recipe) -> Image.Image:
    """Step 5 of the rule. No image in between is larger than both the input and the output."""
    (width, height), size = image.size, recipe.size
    resampling = Image.Resampling[recipe.interpolation.upper()]
    if (width, height) == (size, size):
        return image
    if recipe.fit == "stretch":
        return image.resize((size, size), resampling)
    if recipe.fit == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        return square if side == size else square.resize((size, size), resampling)
    side = max(width, height)
    wide, high = (max(1, (2 * part * size + side) // (2 * side)) for part in (width, height))
    if (wide, high) != (width, height):
        image = image.resize((wide, high), resampling)
    square = Image.new(image.mode, (size, size))
    square.paste(image, ((size - wide) // 2, (size - high) // 2))
    return square


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where there is none, or none that can be read."""
    try:
        # The base class's: a PNG's own would decode all pixels in search of a late eXIf chunk.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF raises anything; the pixels may still be good
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this Pillow has."""
    for plugin in FORMATS.values():
        with contextlib.suppress(ImportError):
            importlib.import_module(f"PIL.{plugin}")
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _identify(file: BinaryIO) -> Image.Image:
    """Header read, pixels not yet decoded; refused where there are none or too many."""
    image = Image.open(file, formats=_formats())
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImage("no pixels")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
    return image


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Whatever Pillow raises over a file's content, as UnreadableImage."""
    try:
        yield
    except UnreadableImage:
        raise
    except Exception as error:  # decoders meet damaged bytes with almost any exception, MemoryError too
        raise UnreadableImage(_reason(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than {MAX_PIXELS:,} pixels"
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or its header is damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    lines = str(error).splitlines() or [""]
    return f"damaged: {lines[0][:100] or type(error).__name__}"


_strict = threading.Lock()
_strict_users = 0
_strict_before = contextlib.ExitStack()


@contextlib.contextmanager
def strict_pillow() -> Iterator[None]:
    """Truncated images are errors, bombs too, and damaged metadata is no line on the terminal.

    These are settings of the whole process: the first who enters sets them, the last who leaves restores them,
    in whatever thread. Whoever reads many images holds this around them all.
    """
    global _strict_users
    with _strict:
        if not _strict_users:
            _strict_before.callback(setattr, ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES)
            _strict_before.enter_context(warnings.catch_warnings())
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
        _strict_users += 1
    try:
        yield
    finally:
        with _strict:
            _strict_users -= 1
            if not _strict_users:
                _strict_before.close()
