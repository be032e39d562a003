"""Encoded images to pixels on the host: the box of a crop, decoding, resizing. No jax; touches no files."""

import functools
import importlib.util
import io
import math
from collections.abc import Callable

import numpy as np

from unimix_jax.data.rng import Stream, generator

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels of the upright image
MAX_MEGAPIXELS = 179.0  # the size at which Pillow refuses an image
# Pillow's names of the formats that are read, with their suffixes, in the order in which a file is tried. Other formats
# hold no photographs, or run programs: Pillow hands EPS to Ghostscript.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".jpc", ".j2c"),
    "QOI": (".qoi",),
    "PSD": (".psd",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "DDS": (".dds",),
    "ICO": (".ico",),
    "PCX": (".pcx",),
    "DIB": (".dib",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}
_UNSIGNED = ("PCX", "DIB", "TGA")  # formats without a signature
# The libraries that Pillow needs for some formats, by the names under which it reports them.
_OPTIONAL = {"JPEG": "jpg", "PNG": "zlib", "WEBP": "webp", "AVIF": "avif", "JPEG2000": "jpg_2000"}
_ORIENTATION = 0x0112  # the EXIF tag; 5 to 8 turn width into height


def random_box(
    width: int, height: int, *, seed: int, step: int, view: int, area: tuple[float, float] = (0.08, 1.0)
) -> Box:
    """Draw the crop of one view.

    The share of the area is uniform, and so is the logarithm of the aspect ratio, in 3/4..4/3.

    Args:
      width: of the image, in pixels.
      height: of the image, in pixels.
      seed: of the run.
      step: from 0.
      view: the image's number in the global batch.
      area: smallest and largest share of the image's area.

    Returns:
      A box of whole pixels. If ten draws do not fit, it is the largest centred one with an allowed ratio.

    Source: torchvision, RandomResizedCrop.
    """
    draws = generator(seed, Stream.CROPS, step, view).random((10, 4)).tolist()
    for share, ratio, left, upper in draws:
        pixels = width * height * (area[0] + share * (area[1] - area[0]))
        aspect = (4 / 3) ** (2 * ratio - 1)
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, upper = int(left * (width - w + 1)), int(upper * (height - h + 1))
            return left, upper, left + w, upper + h
    w = min(width, max(1, round(height * 4 / 3)))
    h = min(height, max(1, round(width * 4 / 3)))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def centre_box(width: int, height: int, *, size: int, resize: int) -> Box:
    """Return the box that becomes the centre `size` x `size` when the shorter side is resized to `resize`.

    Args:
      width: of the image, in pixels.
      height: of the image, in pixels.
      size: of a side of the centre.
      resize: of the shorter side.

    Returns:
      The box, in pixels of the image as it is.

    Source: torchvision, Resize and CenterCrop.
    """
    short = min(width, height)
    new_w, new_h = (max(resize, int(resize * side / short)) for side in (width, height))
    left, upper = round((new_w - size) / 2), round((new_h - size) / 2)
    x, y = width / new_w, height / new_h
    return left * x, upper * y, (left + size) * x, (upper + size) * y


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the keys of `FORMATS` that the installed version of Pillow decodes."""
    from PIL import Image, features

    Image.init()
    return tuple(
        name for name in FORMATS if name in Image.OPEN and (name not in _OPTIONAL or features.check(_OPTIONAL[name]))
    )


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of the files that `decoded` reads, in lower case with their dots."""
    return frozenset(suffix for name in formats() for suffix in FORMATS[name])


def is_image(data: bytes) -> bool:
    """Return whether bytes begin with the signature and header of an image of one of `formats`.

    Args:
      data: the first bytes of a file; 64 KiB are enough.
    """
    from PIL import Image

    for name, has_signature in (  # Pillow opens these formats from whole files only
        ("TIFF", data.startswith((b"II*\0", b"MM\0*"))),
        ("WEBP", data[:4] == b"RIFF" and data[8:12] == b"WEBP"),
        ("AVIF", data[4:12] in (b"ftypavif", b"ftypavis")),
    ):
        if has_signature:
            return name in formats()
    try:
        Image.open(io.BytesIO(data), formats=[name for name in formats() if name not in _UNSIGNED])
    except Image.DecompressionBombError:
        return True
    except Exception:  # damage is raised as nearly any type
        return False
    return True


def decoded(
    data: bytes, box_of: Callable[[int, int], Box], size: int, max_megapixels: float = MAX_MEGAPIXELS
) -> np.ndarray:
    """Decode an image, upright, and resize a box of it to size x size.

    A JPEG is decoded at 1/2, 1/4 or 1/8 if the box has at least that many times the pixels of the result. Grey,
    palette, CMYK and 16-bit images become RGB of 8 bits; alpha is dropped; an animation counts as its first frame. The
    pixels are the same with and without simplejpeg.

    Args:
      data: the content of a file, in one of `formats`.
      box_of: (width, height) of the upright image -> box, see `random_box` and `centre_box`.
      size: of a side of the result.
      max_megapixels: of the image; above Pillow's own limit it raises that limit for this process.

    Returns:
      uint8[size, size, 3].

    Raises:
      ValueError: the image has more pixels than allowed, another format, or grey values of neither 8 nor 16 bits.
      Exception: of any type that Pillow raises for a damaged image.
    """
    from PIL import Image

    image = _opened(data, max_megapixels)
    if image.format == "TIFF":
        image.load()  # Pillow turns a TIFF upright itself, and knows its size only then
    orientation = image.getexif().get(_ORIENTATION, 1)
    width, height = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
    left, upper, right, lower = box_of(width, height)
    image = _loaded(image, data, min((right - left) / size, (lower - upper) / size))
    if orientation != 1:
        image = _upright(image, orientation)
    x, y = image.size[0] / width, image.size[1] / height
    box = max(left * x, 0), max(upper * y, 0), min(right * x, image.size[0]), min(lower * y, image.size[1])
    image = image.resize((size, size), Image.Resampling.BILINEAR, box)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _opened(data: bytes, max_megapixels: float):
    """Open an image of at most so many pixels, undecoded."""
    from PIL import Image, UnidentifiedImageError

    # Pillow warns above its limit and refuses above twice that, neither of which may happen to an image that is allowed
    # here. The limit stays on, because it also guards the images that some formats hold inside.
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, round(max_megapixels * 1e6))
    try:
        image = Image.open(io.BytesIO(data), formats=formats())
    except UnidentifiedImageError:
        raise ValueError(f"it is not an image of a format that is read: {', '.join(formats())}") from None
    except Image.DecompressionBombError:
        raise ValueError(_too_large("more than twice as many pixels as", max_megapixels)) from None
    width, height = image.size
    if width * height > max_megapixels * 1e6:
        raise ValueError(_too_large(f"{width} x {height} pixels, more than", max_megapixels))
    return image


def _too_large(has: str, max_megapixels: float) -> str:
    return (
        f"it has {has} the {max_megapixels:g} megapixels of config.data.max_megapixels; raise that where the image is "
        "what it should be"
    )


def _loaded(image, data: bytes, ratio: float):
    """Return an opened image decoded, as RGB or L of 8 bits; a JPEG smaller by up to `ratio`."""
    from PIL import Image

    if image.format == "JPEG":
        factor = next(f for f in (8, 4, 2, 1) if f <= max(ratio, 1))
        if image.mode in ("RGB", "L") and has_simplejpeg():
            import simplejpeg

            smallest = {"min_width": -(-image.size[0] // factor), "min_height": -(-image.size[1] // factor)}
            space = "RGB" if image.mode == "RGB" else "Gray"
            try:
                pixels = simplejpeg.decode_jpeg(data, space, **(smallest if factor > 1 else {}))
                return Image.fromarray(pixels if image.mode == "RGB" else pixels[..., 0])
            except ValueError:  # simplejpeg refuses more images than Pillow does
                pass
        if factor > 1:
            image.draft(None, (image.size[0] // factor, image.size[1] // factor))
    image.load()
    if image.mode in ("RGB", "L"):
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode == "I" and image.format == "PPM":  # more than 8 bits, which Pillow scales to 0..65535
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its grey values are neither of 8 nor of 16 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of a direct conversion to RGB
    return image.convert("RGB")


def _upright(image, orientation: int):
    """Turn an image as its EXIF orientation says."""
    from PIL import Image

    turns = Image.Transpose
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


@functools.cache
def has_simplejpeg() -> bool:
    """Return whether the faster JPEG decoder of the extra `fast` is installed."""
    return importlib.util.find_spec("simplejpeg") is not None
