"""iNaturalist's JSON files: images, annotations and categories. Touches files."""

import json
import os

from unimix_jax import storage
from unimix_jax.data.sources.listing import Listing, checked_listing, is_text
from unimix_jax.errors import UserError

_LARGEST = storage.GIB  # bytes of a file; iNaturalist's largest has 120 MB


def read(path: str | os.PathLike) -> Listing:
    """Read a JSON file in the form of iNaturalist's.

    Args:
      path: of the file.

    Returns:
      Its images, with the ids of the categories as labels.

    Raises:
      UserError: the content has another form, or images or labels that cannot be.
      OSError: the file cannot be read.
    """  # noqa: DOC501, ValueError is caught below
    data = storage.read_bytes(path, _LARGEST)
    try:
        content = json.loads(data)
        files = {image["id"]: os.fspath(image["file_name"]) for image in content["images"]}
        if len(files) < len(content["images"]):
            raise ValueError("images share an id")
        names = [files[a["image_id"]] for a in content["annotations"]]
        labels = [_label(a["category_id"]) for a in content["annotations"]]
        class_names = {_label(c["id"]): str(c.get("name", c["id"])) for c in content.get("categories", ())}
        if len(class_names) < len(content.get("categories", ())):
            raise ValueError("categories share an id")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} is not JSON like iNaturalist's, with images, annotations and categories ({type(error).__name__}: "
            f"{str(error)[:200]})"
        ) from None
    unwritable = [name for name in class_names.values() if not is_text(name)]
    if unwritable:
        raise UserError(f"{path} names a category {unwritable[0]!r}, which is not text")
    return checked_listing(path, names, labels, class_names)


def _label(value) -> int:
    """Return a category's id, which is a whole number or its digits."""
    if type(value) is int or (isinstance(value, str) and value.isdecimal()):
        return int(value)
    raise ValueError(f"the category id {str(value)[:40]!r} is not a whole number")
