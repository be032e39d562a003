"""The files that a machine without a network is given, and that it gives back: images, packages, compiled programs."""

import importlib.util
import pathlib
import shutil
import tarfile
import tempfile

import numpy as np

IMAGES, PACKAGES, REFERENCE, PROGRAMS = "cifar10_lt100.npz", "packages", "reference.npz", "programs.tar"
MIB = 2**20
CLASSES = 10
TRAINING = 50_000  # images of the official training files, in five of equal length
TESTING = 10_000


def differences(images: np.ndarray) -> np.ndarray:
    """Return uint8[N, H, W, C] images as differences between colours, columns and rows, which compress to .6."""
    images = images.copy()
    images[..., 0] -= images[..., 1]
    images[..., 2] -= images[..., 1]
    for axis in (1, 2):
        images = np.diff(images, axis=axis, prepend=np.uint8(0))
    return images


def sums(images: np.ndarray) -> np.ndarray:
    """Return the images of `differences`."""
    for axis in (2, 1):
        images = images.cumsum(axis=axis, dtype=np.uint8)
    images[..., 0] += images[..., 1]
    images[..., 2] += images[..., 1]
    return images


def pack_images(data: str, path: pathlib.Path) -> None:
    """Write the images of CIFAR-10-LT-100 and of the whole test set, 38 MiB of the 176 of the official files.

    The labels of all training images are kept: which ones are chosen depends on them.
    """
    from unimix_jax.data import longtail
    from unimix_jax.data.sources import cifar

    (rows, labels), (test_rows, test_labels), _ = cifar.read_rows("cifar10", data)
    chosen = longtail.subset_of_balanced(labels, CLASSES, parsed("cifar_lt.py:imbalance=100").data)
    if not (rows[chosen].any(axis=1).all() and test_rows.any(axis=1).all()):
        raise SystemExit(f"the images of CIFAR-10 under {data} that are needed are not all there: some are black")
    # One plane after the other: what is alike then stands together.
    planes = [differences(cifar.to_images(part)).transpose(3, 0, 1, 2) for part in (rows[chosen], test_rows)]
    arrays = {"chosen": chosen, "labels": labels.astype(np.uint8), "test_labels": test_labels.astype(np.uint8)}
    np.savez_compressed(path, train=planes[0], test=planes[1], **arrays)


def unpack_images(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Write what `pack_images` packed as the official binary files; images that are not needed are black."""
    with np.load(path, allow_pickle=False) as file:
        train, test = (sums(file[name].transpose(1, 2, 3, 0)) for name in ("train", "test"))
        write_cifar(folder, file["chosen"], train, file["labels"], test, file["test_labels"])


def random_images(folder: pathlib.Path) -> None:
    """Write random images with the counts of CIFAR-10-LT-100: the same everywhere, for parity and rates."""
    from unimix_jax.data import longtail

    random = np.random.RandomState(0)  # its numbers are the same in every version of numpy
    labels, test_labels = (random.permutation(np.arange(n) % CLASSES).astype(np.uint8) for n in (TRAINING, TESTING))
    chosen = longtail.subset_of_balanced(labels, CLASSES, parsed("cifar_lt.py:imbalance=100").data)
    train, test = (random.bytes(n * 3072) for n in (len(chosen), TESTING))
    train, test = (np.frombuffer(pixels, np.uint8).reshape(-1, 32, 32, 3) for pixels in (train, test))
    write_cifar(folder, chosen, train, labels, test, test_labels)


def write_cifar(folder: pathlib.Path, chosen, train, labels, test, test_labels) -> None:
    """Write images uint8[N, 32, 32, 3] as CIFAR-10's official binary files, of which `chosen` rows are not black."""
    from unimix_jax.data.sources.cifar import LAYOUTS

    layout = LAYOUTS["cifar10"]
    train_files, test_file, names_file = layout.binary_files
    target = folder / layout.binary
    target.mkdir(parents=True)
    rows = np.zeros((TRAINING, 3072), np.uint8)
    rows[chosen] = train.transpose(0, 3, 1, 2).reshape(len(train), -1)
    rows = np.concatenate([labels[:, None], rows], axis=1)
    for name, part in zip(train_files, np.split(rows, len(train_files)), strict=True):
        part.tofile(target / name)
    test = test.transpose(0, 3, 1, 2).reshape(len(test), -1)
    np.concatenate([test_labels[:, None], test], axis=1).tofile(target / test_file)
    (target / names_file).write_text("airplane automobile bird cat deer dog frog horse ship truck".replace(" ", "\n"))


def parsed(config: str, *overrides: str):
    """Return a shipped config with overrides."""
    from unimix_jax.config import parse

    return parse(["accelerator", f"--config={config}", *overrides]).config


def copy_packages(names: tuple[str, ...], folder: pathlib.Path) -> None:
    """Copy installed packages of Python files only, for a machine that lacks them."""
    for name in names:
        source = pathlib.Path(importlib.util.find_spec(name).origin).parent
        if any(source.rglob("*.so")):
            raise SystemExit(f"the package {name} has compiled parts, which are of this machine; carry its wheel")
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "tests"))


def pack_programs(cache: pathlib.Path, path: pathlib.Path, limit: int = 15 * MIB) -> dict:
    """Write a compile cache into one tar file of at most so many bytes, the oldest programs first.

    The oldest are of the jobs of most worth. Returns how many files and bytes are in it, and how many are left out.
    """
    files = sorted((f for f in cache.rglob("*") if f.is_file()), key=lambda f: (f.stat().st_mtime_ns, f))
    packed, size = 0, 10_240  # of an empty tar file
    with tarfile.open(path, "w") as tar:
        for file in files:
            needed = 1024 + -(-file.stat().st_size // 512) * 512 + 1024  # a long name has a block of its own
            if size + needed <= limit:
                tar.add(file, file.relative_to(cache), recursive=False)
                packed, size = packed + 1, size + needed
    return {"files": packed, "left_out": len(files) - packed, "bytes": path.stat().st_size}


def unpack_programs(path: pathlib.Path, cache: pathlib.Path) -> int:
    """Unpack what `pack_programs` packed; return the number of files."""
    with tarfile.open(path) as tar:
        tar.extractall(cache, filter="data")
        return len(tar.getnames())


def prepare(folder: pathlib.Path, data: str, make_reference) -> None:
    """Write all that travels: images, packages that the other machine may lack, the reference of parity.

    Compiled programs that an earlier run has brought home stay in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / PACKAGES, ignore_errors=True)
    copy_packages(("ml_collections",), folder / PACKAGES)
    if data:
        pack_images(data, folder / IMAGES)
    with tempfile.TemporaryDirectory() as temporary:
        random_images(pathlib.Path(temporary))
        make_reference(temporary, folder / REFERENCE)
    files = [f for f in folder.rglob("*") if f.is_file()]
    print(f"{folder}: {sum(f.stat().st_size for f in files) / MIB:.1f} MiB in {len(files)} files")
    for name in (IMAGES, REFERENCE, PROGRAMS):
        print(
            f"  {name}: {(folder / name).stat().st_size / MIB:.1f} MiB" if (folder / name).exists() else f"  no {name}"
        )
