import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from unimix_jax.data import decode
from unimix_jax.data.rng import Stream


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def whole(width, height):
    return 0, 0, width, height


def picture(width=60, height=40, seed=0):
    """Smooth colours: a JPEG keeps them nearly."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def slow_resize(pixels, box, size):
    """Triangle filter, widened when it shrinks, pixel by pixel in float64."""

    def weights(length, low, high):
        scale = (high - low) / size
        reach = max(scale, 1.0)
        centres = low + (np.arange(size) + 0.5) * scale
        rows = np.maximum(0, 1 - np.abs(np.arange(length) + 0.5 - centres[:, None]) / reach)
        return rows / rows.sum(axis=1, keepdims=True)

    pixels = pixels.astype(np.float64)
    rows = weights(pixels.shape[0], box[1], box[3])
    columns = weights(pixels.shape[1], box[0], box[2])
    return np.einsum("yh,xw,hwc->yxc", rows, columns, pixels)


@pytest.mark.parametrize("box", [(0, 0, 60, 40), (7, 3, 31, 22), (10.5, 2.25, 59.5, 39)])
@pytest.mark.parametrize("size", [16, 50])
def test_a_box_is_resized_as_a_slow_triangle_filter_does(box, size):
    image = picture()
    out = decode.decoded(encoded(image), lambda width, height: box, size)
    assert out.dtype == np.uint8
    assert out.shape == (size, size, 3)
    assert np.abs(out - slow_resize(np.asarray(image), box, size)).max() <= 1.5  # rounded after each of two passes


GREY = np.linspace(0, 255, 60 * 40).reshape(40, 60).astype(np.uint8)
COLOUR = np.asarray(picture())
KINDS = {
    "grey": (Image.fromarray(GREY), "PNG", GREY),
    "grey jpeg": (Image.fromarray(GREY), "JPEG", GREY),
    "16 bit": (Image.fromarray(GREY.astype(np.uint16) * 257), "PNG", GREY),
    "dark 16 bit": (Image.fromarray(GREY.astype(np.uint16)), "PNG", np.zeros_like(GREY)),
    "1 bit": (Image.fromarray(GREY > 100), "PNG", (GREY > 100) * 255),
    "grey with alpha": (Image.fromarray(np.stack([GREY, 255 - GREY], axis=-1), "LA"), "PNG", GREY),
    "alpha": (Image.fromarray(np.dstack([COLOUR, GREY]), "RGBA"), "PNG", COLOUR),
    "palette": (picture().quantize(64), "PNG", np.asarray(picture().quantize(64).convert("RGB"))),
    "cmyk": (picture().convert("CMYK"), "JPEG", COLOUR),
    "webp": (picture(), "WEBP", COLOUR),
    "bmp": (picture(), "BMP", COLOUR),
    "tiff": (picture(), "TIFF", COLOUR),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_becomes_rgb(kind):
    image, form, pixels = KINDS[kind]
    data = encoded(image, form, **({"quality": 95} if form in ("JPEG", "WEBP") else {}))
    out = decode.decoded(data, lambda width, height: (0, 0, 40, 40), 40).astype(int)
    expected = np.broadcast_to(pixels[:, :40].reshape(40, 40, -1), (40, 40, 3))
    assert np.abs(out - expected).mean() <= (0 if form in ("PNG", "BMP", "TIFF") else 4)


def sun(pixels):
    header = struct.pack(">8I", 0x59A66A95, pixels.shape[1], pixels.shape[0], 24, pixels.size, 1, 0, 0)
    return header + pixels[..., ::-1].tobytes()


def psd(pixels):
    header = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, *pixels.shape[:2], 8, 3)
    return header + struct.pack(">IIIH", 0, 0, 0, 0) + pixels.transpose(2, 0, 1).tobytes()


ONLY_READ = {"SUN": sun, "PSD": psd}
LOSSY = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}, "AVIF": {"quality": 95}}


@pytest.mark.parametrize("form", decode.FORMATS)
def test_every_named_format_is_read(form):
    if form not in decode.formats():
        pytest.skip(f"this Pillow has no {form}")
    assert decode.suffixes() >= set(decode.FORMATS[form])
    image = picture(40, 40)
    data = ONLY_READ[form](np.asarray(image)) if form in ONLY_READ else encoded(image, form, **LOSSY.get(form, {}))
    expected = np.asarray(image)
    if form == "ICO":
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((40, 40), Image.Resampling.BILINEAR))
    if form == "GIF":
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    out = decode.decoded(data, whole, 40).astype(int)
    assert np.abs(out - expected).mean() <= (4 if form in ("JPEG", "AVIF") else 0)
    assert decode.is_image(data[: 2**16]) == (form not in decode._UNSIGNED)


def test_netpbm_of_all_depths_is_read():
    for data in (
        b"P1\n2 2\n0 1\n1 0\n",
        b"P4\n2 2\n" + bytes([0b01000000, 0b10000000]),
        b"P5\n2 2\n255\n" + bytes([255, 0, 0, 255]),
        b"P5\n2 2\n65535\n" + struct.pack(">4H", 65535, 0, 0, 65535),
        b"P5\n2 2\n1023\n" + struct.pack(">4H", 1023, 0, 0, 1023),
        b"P6\n2 2\n255\n" + bytes([255] * 3 + [0] * 6 + [255] * 3),
    ):
        np.testing.assert_array_equal(decode.decoded(data, whole, 2)[..., 0], [[255, 0], [0, 255]])


@pytest.mark.parametrize("name", ["EPS", "WMF", "MPEG", "text", "nothing"])
def test_other_formats_are_opened_by_nobody(monkeypatch, name):
    from PIL import EpsImagePlugin

    def never(*args, **keywords):
        raise AssertionError("Ghostscript was asked")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    data = {
        "EPS": encoded(picture(), "EPS"),
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60),
        "MPEG": b"\0\0\1\xb3" + bytes(60),
        "text": b"an image" * 20,
        "nothing": b"",
    }[name]
    with pytest.raises(ValueError, match="not an image of a format that is read: JPEG, PNG"):
        decode.decoded(data, whole, 8)
    assert not decode.is_image(data)


def large(width, height):
    """A PNG that says it has so many pixels, and has none."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded_and_the_limit_can_be_raised(monkeypatch, recwarn):
    for side, has in ((14_000, "14000 x 14000 pixels, more than"), (60_000, "more than twice as many pixels as")):
        with pytest.raises(ValueError, match=f"it has {has} the 179 megapixels of config.data.max_megapixels; raise"):
            decode.decoded(large(side, side), whole, 8)
        with pytest.raises((OSError, SyntaxError)):  # allowed, and then damaged
            decode.decoded(large(side, 3), whole, 8, side * 3 / 1e6)
    with pytest.raises(ValueError, match=r"60 x 40 pixels, more than the 0.001 megapixels"):
        decode.decoded(encoded(picture()), whole, 8, 0.001)
    # Pillow itself warns above its limit, and refuses above twice that.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(encoded(picture())))
    recwarn.clear()
    assert decode.decoded(encoded(picture()), whole, 8, 0.003).any()
    assert not recwarn.list


def test_a_palette_with_a_transparent_entry_and_an_animation():
    palette = picture().quantize(16)
    data = encoded(palette, "PNG", transparency=bytes([0] + [255] * 15))
    np.testing.assert_array_equal(decode.decoded(data, whole, 40), decode.decoded(encoded(palette), whole, 40))
    frames = [picture(seed=i).quantize(64) for i in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    first = np.asarray(frames[0].convert("RGB").resize((40, 40), Image.Resampling.BILINEAR))
    assert np.abs(decode.decoded(data, whole, 40).astype(int) - first).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_is_upright_whatever_its_exif_says(orientation, form):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(), form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    sizes = []

    def box_of(width, height):
        sizes.append((width, height))
        return 3, 5, 30, 32

    expected = upright.convert("RGB").resize((20, 20), Image.Resampling.BILINEAR, (3, 5, 30, 32))
    np.testing.assert_array_equal(decode.decoded(data, box_of, 20), np.asarray(expected))
    assert sizes == [upright.size]


@pytest.mark.slow
@pytest.mark.parametrize(("side", "factor"), [(200, 1), (255, 1), (256, 2), (600, 4), (1100, 8), (5000, 8)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_large_jpeg_is_decoded_smaller_where_the_box_allows(monkeypatch, side, factor, mode):
    data = encoded(picture(side, side + 7).convert(mode), "JPEG", quality=90)
    decoded = []
    loaded = decode._loaded
    monkeypatch.setattr(decode, "_loaded", lambda *args: decoded.append(loaded(*args)) or decoded[-1])
    out = decode.decoded(data, whole, 128)
    assert decoded[-1].size == (-(-side // factor), -(-(side + 7) // factor))
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((128, 128), Image.Resampling.BILINEAR)
    assert np.abs(out.astype(int) - np.asarray(full)).mean() < 2


def test_simplejpeg_changes_no_pixel(monkeypatch):
    pytest.importorskip("simplejpeg")
    for side in (100, 700):
        data = encoded(picture(side, side - 11), "JPEG")
        results = []
        for there in (True, False):
            monkeypatch.setattr(decode, "has_simplejpeg", lambda there=there: there)
            results.append(decode.decoded(data, whole, 64))
        np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
def test_a_truncated_image_is_an_error(form):
    data = encoded(picture(200, 200), form)
    with pytest.raises((OSError, ValueError, SyntaxError)):
        decode.decoded(data[: len(data) // 2], whole, 20)
    with pytest.raises(ValueError, match="not an image of a format that is read: JPEG, PNG, "):
        decode.decoded(b"", whole, 20)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (64, 64), (1, 1), (3, 900), (900, 3)])
def test_a_random_box_is_inside_and_of_an_allowed_shape(width, height):
    for view in range(300):
        left, upper, right, lower = decode.random_box(width, height, seed=0, step=5, view=view)
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height
        w, h = right - left, lower - upper
        if min(width, height) > 20:
            assert 0.07 < w * h / (width * height) <= 1
            assert 0.7 < w / h < 1.45


def test_random_boxes_have_torchvisions_law_and_are_a_function_of_seed_step_and_view():
    boxes = np.array([decode.random_box(400, 300, seed=0, step=0, view=view) for view in range(4000)])
    shares = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 120_000
    # 30,000 draws of torchvision 0.29's RandomResizedCrop.get_params: five standard errors of 4,000 at most.
    theirs = [0.148, 0.253, 0.422, 0.595, 0.739]
    np.testing.assert_allclose(np.quantile(shares, [0.1, 0.25, 0.5, 0.75, 0.9]), theirs, atol=0.025)
    np.testing.assert_allclose(boxes.mean(axis=0), [87.4, 41.6, 313.2, 257.9], atol=6)
    assert decode.random_box(400, 300, seed=0, step=0, view=7) == tuple(boxes[7])
    changed = [decode.random_box(400, 300, **{"seed": 0, "step": 0, "view": 7, name: 1}) for name in ("seed", "step")]
    assert len({tuple(boxes[7]), *changed}) == 3
    assert Stream.CROPS == 3


def test_the_centre_is_torchvisions():
    for width, height in ((500, 375), (375, 500), (256, 256), (999, 257), (20, 3000)):
        data = encoded(picture(width, height))
        short = min(width, height)
        resized = Image.open(io.BytesIO(data)).resize(
            (64, int(64 * height / width)) if width == short else (int(64 * width / height), 64),
            Image.Resampling.BILINEAR,
        )
        w, h = resized.size
        left, upper = round((w - 56) / 2), round((h - 56) / 2)
        expected = np.asarray(resized.crop((left, upper, left + 56, upper + 56))).astype(int)
        out = decode.decoded(data, lambda w, h: decode.centre_box(w, h, size=56, resize=64), 56)
        assert np.abs(out - expected).max() <= 1
