"""Measure how fast photographs are read, compared with decoding alone.

    python benchmarks/loading.py --images=FOLDER [--rounds=5] [--threads=1,2] [--output=FILE.json]

FOLDER holds JPEG files, in sub-folders or not; they are read as they are, and as copies of 500 x 375 and 1000 x 750
pixels, quality 90 (for ImageNet's and iNaturalist's sizes). For each size, interleaved in every round:

    libjpeg-turbo   simplejpeg's decode_jpeg of whole files to RGB, nothing else: the limit (the extra `fast` is needed)
    Pillow          the same by Pillow
    view            reading a file, decoding, random-resized crop to 224, in a plain loop; by Pillow and by simplejpeg
    test view       the same with the crop of an evaluation
    batches N       the loader of training, batches of 64 by N threads

Ratios are taken round by round against libjpeg-turbo in the same round; their median is printed.
"""

import argparse
import functools
import json
import pathlib
import statistics
import tempfile
import time

import numpy as np
from PIL import Image

from unimix_jax.data import decode, loading, sampling
from unimix_jax.data.types import Source
from unimix_jax.data.views import Reading

SIZES = {"as they are": None, "500 x 375": (500, 375), "1000 x 750": (1000, 750)}


def copies(paths, size, folder: pathlib.Path) -> list[pathlib.Path]:
    """Write copies of photographs at another size."""
    made = []
    for i, path in enumerate(paths):
        made.append(folder / f"{i}.jpg")
        image = Image.open(path).convert("RGB").resize(size, Image.Resampling.BICUBIC)
        image.save(made[-1], quality=90)
    return made


def cases(paths: list[pathlib.Path], threads: list[int]) -> dict:
    """Return what is timed, by name: functions that go through all photographs once."""
    import simplejpeg

    data = [path.read_bytes() for path in paths]
    flat = np.zeros(3, np.float32)
    labels = np.zeros(len(paths), np.int32)
    source = Source(labels, ("all",), flat, flat, names=tuple(map(str, paths)))
    class_index = sampling.sorted_by_class(labels)
    centre = functools.partial(decode.centre_box, size=224, resize=256)

    def views(simple: bool, box_at):
        decode.has_simplejpeg = lambda: simple
        for i in range(len(paths)):
            decode.decoded(source.read(i), box_at(i), 224)

    def batches(count: int):
        decode.has_simplejpeg = lambda: True
        reading = Reading(224, 256, 0.08, False, threads=count, workers=0)
        indices_of = functools.partial(sampling.indices, class_index, seed=0, batch_size=64)
        for _ in loading.batches(
            source,
            class_index,
            indices_of,
            range(len(paths) // 64),
            rows=range(64),
            partners=False,
            seed=0,
            reading=reading,
        ):
            pass

    def random_at(i: int):
        return functools.partial(decode.random_box, seed=0, step=0, view=i)

    found = {
        "libjpeg-turbo": lambda: [simplejpeg.decode_jpeg(x) for x in data],
        "Pillow": lambda: [Image.open(path).load() for path in paths],
        "view, Pillow": lambda: views(False, random_at),
        "view, simplejpeg": lambda: views(True, random_at),
        "test view, simplejpeg": lambda: views(True, lambda i: centre),
    }
    return found | {f"batches {count}": functools.partial(batches, count) for count in threads}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", required=True, type=pathlib.Path)
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    paths = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    paths = paths[: len(paths) // 64 * 64][:512]
    if not paths:
        parser.error(f"{options.images} holds fewer than 64 JPEG images, a batch")
    results = {}
    for size, pixels in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            these = paths if pixels is None else copies(paths, pixels, pathlib.Path(folder))
            timed = cases(these, [int(n) for n in options.threads.split(",")])
            rates = {name: [] for name in timed}
            for function in timed.values():
                function()  # files and code are warm
            for _ in range(options.rounds):
                for name, function in timed.items():
                    begun = time.perf_counter()
                    function()
                    rates[name].append(len(these) / (time.perf_counter() - begun))
        mean_bytes = sum(path.stat().st_size for path in paths) // len(paths) if pixels is None else None
        print(f"\n{len(these)} photographs, {size}" + (f" ({mean_bytes} bytes on average)" if mean_bytes else ""))
        print(f"{'':<24}{'images/s':>10}{'of libjpeg-turbo':>18}")
        for name, values in rates.items():
            ratio = statistics.median(v / limit for v, limit in zip(values, rates["libjpeg-turbo"], strict=True))
            print(f"{name:<24}{statistics.median(values):>10.0f}{ratio:>18.2f}")
            results.setdefault(size, {})[name] = {"images_per_second": values, "ratio": ratio}
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
