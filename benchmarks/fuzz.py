"""Damaged and hostile files against every reader: nothing but UserError and OSError may come out.

    python benchmarks/fuzz.py [--cases=20000] [--seed=0] [--only=NAME]

Prints for each reader how many cases were read, refused and escaped, the slowest case, and the memory of the process;
exits with 1 if one escaped. `tests/test_fuzz.py` runs some thousand of the same cases.
"""

import argparse
import collections
import contextlib
import io
import json
import logging
import os
import pathlib
import pickle
import resource
import shutil
import socket
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import numpy as np
from damage import damaged, damaged_json, damaged_npz, damaged_pickle, damaged_tensors

from unimix_jax import priors, storage
from unimix_jax.config.compare import differing_keys
from unimix_jax.data import download, sources
from unimix_jax.data.sources import cifar, inaturalist, list_file, tfds
from unimix_jax.errors import UserError
from unimix_jax.metrics.predictions import Predictions, read_predictions, write_predictions
from unimix_jax.report import files
from unimix_jax.training import rundir

COUNTS = np.array([5, 2, 1])


class Reader(NamedTuple):
    """A reader, sound files for it, and how it is called."""

    write: Callable[[pathlib.Path], None]  # sound files into an empty folder
    read: Callable[[pathlib.Path], object]  # that folder
    mutate: Callable[[bytes, np.random.RandomState], bytes]  # one file's content
    share: float = 1.0  # of the cases: what is slow has fewer


# --- Sound files


def _write_predictions(folder: pathlib.Path) -> None:
    logits = np.linspace(-2, 2, 12, dtype=np.float32).reshape(4, 3)
    predictions = Predictions(logits, np.arange(4) % 3, COUNTS, COUNTS / COUNTS.sum(), ("a", "b", "ü"))
    write_predictions(folder / "predictions.npz", predictions)


def _write_arrays(folder: pathlib.Path) -> None:
    arrays = {"class_names": np.array(["a", "b", "c"])}
    for split in ("train", "test"):
        arrays[f"{split}_images"] = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4)
        arrays[f"{split}_labels"] = np.arange(6) % 3
    np.savez_compressed(folder / "f.npz", **arrays)


def _read_arrays(folder: pathlib.Path):
    from ml_collections import ConfigDict

    fields = {"source": "arrays", "file": str(folder / "f.npz"), "imbalance": 1.0, "profile": "exp", "subset_seed": 0}
    return sources.load(ConfigDict(fields))


def _write_run(folder: pathlib.Path) -> None:
    stage = {
        "loss": {"name": "bayias"},
        "mixer": {"name": "unimix", "alpha": 0.5},
        "pair_sampler": {"name": "by_class"},
    }
    config = {"seed": 0, "epochs": 2, "batch_size": 8, "network": "resnet8", "test_prior": "uniform", "pretrained": ""}
    config |= {"method": {"name": "erm", "stages": {"mixed": stage}}, "data": {"source": "digits", "imbalance": 40.0}}
    storage.write_json(folder / "config.json", config | {"optim": {"learning_rate": 0.1}})
    about = {"images": 8, "digest": "abc"}
    start = {
        "version": "0",
        "commit": None,
        "command": ["main.py"],
        "time": "2026",
        "environment": {"jax": "1", "cores": 2},
    }
    data = {"train": about | {"counts": COUNTS.tolist()}, "test": about, "test_prior": {"digest": "d"}}
    record = {"seed": 0, "data": data, "starts": [start], "state": "complete", "seconds": 3.0, "unreadable": 0}
    storage.write_json(folder / "run.json", record)
    best = {"step": 2, "epoch": 2.0, "split": "test", "accuracy": 0.5, "ece": 0.1, "nll": 1.0, "evaluations": 1}
    measures = {
        "accuracy": 0.5,
        "many": 0.5,
        "medium": None,
        "few": 0.1,
        "groups": "shots",
        "ece": 0.1,
        "mce": 0.1,
        "images": 4,
    }
    storage.write_json(folder / "metrics.json", {"best": best, "test": measures})
    for line in (
        {"step": 1, "epoch": 1.0, "loss": 1.0, "accuracy": 0.3, "stage": "plain"},
        {"step": 2, "epoch": 2.0, "split": "test", "accuracy": 0.5, "ece": 0.1, "nll": 1.0},
    ):
        rundir.append_metrics(folder / "metrics.jsonl", line)


def _read_run(folder: pathlib.Path) -> None:
    from unimix_jax.report import html, tables
    from unimix_jax.report.sections import Section

    _write_predictions(folder)  # sound ones: what is tried here are the records
    refusal = None
    try:
        given = files.read_run(folder)
        section = Section("What was run", tables=tables.run_tables(given) + tables.runs_tables([given]))
        storage.write_whole(folder / "report.html", html.html_document("title", "about", [section], {}))
        storage.write_whole(folder / "report.md", html.markdown("title", "about", [section], "figures"))
        files.unimix_factor(given.about["config"])
        for line in given.about["lines"]:
            np.array([line[key] for key in line if key not in ("split", "stage")], np.float64)
    except UserError as error:
        refusal = error
    config = storage.read_json(folder / "config.json")
    differing_keys(config or {}, {"seed": 0})
    rundir.read_manifest(folder / "run.json")
    results = rundir.read_results(folder / "metrics.json")
    if results is not None:
        tables.closing_table(results)
    rundir.truncate_metrics(folder / "metrics.jsonl", 1)
    if refusal:
        raise refusal


def _write_text(folder: pathlib.Path) -> None:
    (folder / "numbers.txt").write_text("5, 2\n1\n")
    np.savez(folder / "numbers.npz", counts=COUNTS)
    (folder / "prior.txt").write_text("0.2 0.3 # of the field\n0.5\n")
    (folder / "list.txt").write_text("a/1.jpg 0\na/2 x.jpg 0\nb/3.jpg 1\n")
    listed = {
        "images": [{"id": i, "file_name": f"a/{i}.jpg"} for i in range(3)],
        "annotations": [{"image_id": i, "category_id": i % 2} for i in range(3)],
        "categories": [{"id": 0, "name": "ant"}, {"id": 1, "name": "bee"}],
    }
    (folder / "list.json").write_text(json.dumps(listed))


def _read_text(folder: pathlib.Path) -> None:
    refusal = None
    for read in (
        lambda: files.read_counts(folder / "numbers.txt"),
        lambda: files.read_counts(folder / "numbers.npz"),
        lambda: priors.test_prior(str(folder / "prior.txt"), COUNTS),
        lambda: list_file.read(folder / "list.txt"),
        lambda: inaturalist.read(folder / "list.json"),
    ):
        try:
            read()
        except (UserError, OSError) as error:
            refusal = error
    if refusal:
        raise refusal


def _damaged_text(data: bytes, random: np.random.RandomState) -> bytes:
    if data[:1] == b"{":
        return damaged_json(data, random)
    return damaged_npz(data, random) if data[:2] == b"PK" else damaged(data, random)


def _write_cifar(folder: pathlib.Path) -> None:
    layout = cifar.LAYOUTS["cifar10"]
    (folder / layout.python).mkdir()
    train, test, names = layout.python_files
    for i, file in enumerate((*train, test)):
        content = {b"data": np.full((2, 3072), i, np.uint8), b"labels": [1, 2], b"batch_label": b"x"}
        dump = pickle._dumps if i % 2 else pickle.dumps
        (folder / layout.python / file).write_bytes(dump(content, protocol=2 + i % 4))
    content = {b"label_names": [b"%d" % c for c in range(10)], b"num_vis": 3072}
    (folder / layout.python / names).write_bytes(pickle.dumps(content, protocol=2))


def _write_cifar_binary(folder: pathlib.Path) -> None:
    layout = cifar.LAYOUTS["cifar100"]
    (folder / layout.binary).mkdir()
    train, test, names = layout.binary_files
    for file in (*train, test):
        (folder / layout.binary / file).write_bytes(bytes(2 * 3074))
    (folder / layout.binary / names).write_text("\n".join(map(str, range(100))))


_PREPARED = []


def _write_prepared(folder: pathlib.Path) -> None:
    if not _PREPARED:
        import tensorflow_datasets as tfds
        from PIL import Image

        def png(grey):
            Image.new("RGB", (2, 2), (grey, grey, grey)).save(buffer := io.BytesIO(), "PNG")
            return io.BytesIO(buffer.getvalue())

        class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            """Two images."""

            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                image = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
                about = {"image": image, "label": tfds.features.ClassLabel(names=["ant", "bee"])}
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(about))

            def _split_generators(self, manager):
                return {"train": ((i, {"image": png(i), "label": i}) for i in range(2))}

            def _generate_examples(self):
                pass

        root = tempfile.TemporaryDirectory()
        builder = Tiny(data_dir=root.name, file_format="array_record")
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
        _PREPARED.extend([root, pathlib.Path(builder.data_path)])
    shutil.copytree(_PREPARED[1], folder, dirs_exist_ok=True)


def _damaged_prepared(data: bytes, random: np.random.RandomState) -> bytes:
    return damaged_json(data, random) if data[:1] == b"{" else damaged(data, random)


def _weights() -> dict[str, np.ndarray]:
    return {
        "conv1.weight": np.ones((4, 3, 3, 3), np.float32),
        "bn1.running_var": np.ones(4, np.float32),
        "bn1.num_batches_tracked": np.array(3),
        "layer1.0.bn1.weight": np.ones(4, np.float32),
        "fc.weight": np.ones((3, 4), np.float16),
        "fc.bias": np.ones(3, np.float64),
    }


def _write_weights(folder: pathlib.Path) -> None:
    from safetensors.numpy import save_file

    save_file(_weights(), folder / "w.safetensors")


def _read_weights(folder: pathlib.Path) -> None:
    from unimix_jax.models import networks, pretrained, resnet

    pretrained.digest(folder / "w.safetensors")
    pretrained.load(folder / "w.safetensors", networks.build("resnet8", 3), resnet.from_torch(_weights()))


def _write_archive(folder: pathlib.Path) -> None:
    with tarfile.open(folder / "a.tar.gz", "w:gz") as tar:
        for name in ("set/a", "set/b"):
            member = tarfile.TarInfo(name)
            member.size = 700
            tar.addfile(member, io.BytesIO(b"x" * 700))


def _write_reply(folder: pathlib.Path) -> None:
    (folder / "reply").write_bytes(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello")
    (folder / "reply2").write_bytes(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"
    )


def _read_reply(folder: pathlib.Path) -> None:
    for reply in ("reply", "reply2"):
        with replying((folder / reply).read_bytes()) as url, mock.patch.multiple(download, _PAUSE=0, _PATIENCE=1):
            # The digest of "hello".
            download.fetch(url, folder / "got", "5d41402abc4b2a76b9719d911017c592", limit=10_000, timeout=0.3)


@contextlib.contextmanager
def replying(*pieces: bytes, pause: float = 0.0, again: bool = False) -> Iterator[str]:
    """Answer requests on 127.0.0.1 with these bytes, whatever is asked; yields the address.

    Args:
      pieces: what is sent, one after the other, before the connection is closed.
      pause: seconds after each piece.
      again: send the last piece without end.
    """
    over = threading.Event()

    def answer(connection):
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            for piece in pieces:
                connection.sendall(piece)
                over.wait(pause)
            while again and not over.is_set():
                connection.sendall(pieces[-1])
                over.wait(pause)

    def serve():
        while not over.is_set():
            with contextlib.suppress(OSError):
                answer(listener.accept()[0])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/a.tar.gz"
        finally:
            over.set()
            thread.join()


READERS = {
    "predictions": Reader(_write_predictions, lambda f: read_predictions(f / "predictions.npz"), damaged_npz),
    "arrays": Reader(_write_arrays, _read_arrays, damaged_npz, 0.7),
    "run": Reader(_write_run, _read_run, damaged_json),
    "text": Reader(_write_text, _read_text, _damaged_text),
    "cifar_python": Reader(_write_cifar, lambda f: cifar.read_rows("cifar10", str(f)), damaged_pickle),
    "cifar_binary": Reader(_write_cifar_binary, lambda f: cifar.read_rows("cifar100", str(f)), damaged, 0.2),
    "prepared": Reader(_write_prepared, lambda f: tfds.read(f, np.zeros(3), np.ones(3)), _damaged_prepared, 0.05),
    "weights": Reader(_write_weights, _read_weights, damaged_tensors, 0.7),
    "archive": Reader(
        _write_archive, lambda f: download.extract(f / "a.tar.gz", f / "set", ("a", "b"), 10_000), damaged, 0.3
    ),
    "reply": Reader(_write_reply, _read_reply, damaged, 0.05),
}


class Outcome(NamedTuple):
    """The outcomes of the cases of a reader."""

    counts: collections.Counter  # read, refused, escaped
    escaped: list[tuple[int, str]]  # the case's number and its traceback
    seconds: float  # in all
    slowest: float  # of one case


def run(name: str, cases: int, seed: int = 0, folder: pathlib.Path | None = None) -> Outcome:
    """Give a reader damaged files.

    Args:
      name: a key of `READERS`.
      cases: how many, times the reader's share.
      seed: with a case's number it gives the case.
      folder: an empty one; None for a temporary one.
    """
    reader, counts, escaped, slowest = READERS[name], collections.Counter(), [], 0.0
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or pathlib.Path(temporary)
        (root / "sound").mkdir()
        reader.write(root / "sound")
        sound = {
            p.relative_to(root / "sound"): p.read_bytes() for p in sorted((root / "sound").rglob("*")) if p.is_file()
        }
        for case in range(max(1, round(cases * reader.share))):
            random = np.random.RandomState([seed, case])
            place = root / "case"
            shutil.rmtree(place, ignore_errors=True)
            chosen = list(sound)[random.randint(len(sound))]
            for path, content in sound.items():
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                (place / path).write_bytes(reader.mutate(content, random) if path == chosen else content)
            begun = time.perf_counter()
            try:
                with mock.patch.object(os, "fsync"):  # waiting for the disk tells nothing here
                    reader.read(place)
                counts["read"] += 1
            except (UserError, OSError):
                counts["refused"] += 1
            except BaseException:
                counts["escaped"] += 1
                escaped.append((case, traceback.format_exc()))
            slowest = max(slowest, time.perf_counter() - begun)
    return Outcome(counts, escaped, time.perf_counter() - started, slowest)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000, help="of a reader whose share is 1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=READERS)
    given = parser.parse_args()
    logging.disable()
    found = 0
    for name in [given.only] if given.only else READERS:
        outcome = run(name, given.cases, given.seed)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        about = ", ".join(f"{outcome.counts[kind]} {kind}" for kind in ("read", "refused", "escaped"))
        times = f"{outcome.seconds:.0f} s, slowest {outcome.slowest:.2f} s"
        print(f"{name}: {about}; {times}; peak memory of the process {memory} MiB", flush=True)
        for case, words in outcome.escaped[:3]:
            print(f"--- case {case}\n{words}")
        found += len(outcome.escaped)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
