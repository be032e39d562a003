"""What the tests of photographs in files share."""

from unimix_jax.config import default, use_photographs
from unimix_jax.data import sources


def load(**fields):
    """Load photographs by fields of `config.data`; paths may be given as such."""
    config = default()
    use_photographs(config)
    config.data.update({name: str(v) if hasattr(v, "is_dir") else v for name, v in fields.items()})
    return sources.load(config.data)


def touch(root, names):
    """Make empty files, and return their root."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def both(train, test, /, classes=("ant", "bee"), **more):
    """Names of images of the same classes in two folders, and of others."""
    names = [f"{top}/{c}/{i}.jpg" for top in (train, test) for c in classes for i in range(2)]
    return [*names, *(f"{folder}/{i}.jpg" for folder, count in more.items() for i in range(count))]
