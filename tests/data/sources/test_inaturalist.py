import json

import numpy as np
import pytest

from unimix_jax.data.sources import inaturalist
from unimix_jax.errors import UserError

from .files import load

INAT = {
    "images": [{"id": i, "file_name": f"train_val2018/{c}/{i}.jpg"} for i, c in enumerate("aab")],
    "annotations": [{"id": 9, "image_id": i, "category_id": c} for i, c in enumerate([4, 4, 6])],
    "categories": [{"id": 4, "name": "Acer"}, {"id": 5, "name": "Betula"}, {"id": 6, "name": "Corylus"}],
}


def test_inaturalists_json(lists):
    (lists.root / "train.json").write_text(json.dumps(INAT))
    lists("test.txt", "train_val2018/a/8.jpg 4\ntrain_val2018/b/9.jpg 6\n")
    for image in INAT["images"]:
        (lists.root / image["file_name"]).touch()
    found = load(dir=lists.root, train_list="train.json", test_list="test.txt")
    assert found.train.class_names == ("Acer", "Corylus")
    np.testing.assert_array_equal(found.train.labels, [0, 0, 1])
    (lists.root / "train.json").write_text(json.dumps({"images": []}))
    with pytest.raises(UserError, match=r"not JSON like iNaturalist's.*KeyError: 'annotations'"):
        load(dir=lists.root, train_list="train.json")


@pytest.mark.parametrize("category", [-1, 10**11])
def test_categories_that_are_no_classes_are_refused(lists, category):
    content = {**INAT, "annotations": [{"id": 9, "image_id": 0, "category_id": category}]}
    (lists.root / "train.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"holds the label {category}"):
        load(dir=lists.root, train_list="train.json")


IMAGES, NOTES = [{"id": 0, "file_name": "a/0.jpg"}], [{"image_id": 0, "category_id": 1}]


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "[1]",
        "{}",
        "[" * 100_000,
        '{"images": ' + "[" * 100_000,
        '{"images": 1, "annotations": 2}',
        json.dumps({"images": IMAGES, "annotations": NOTES}).replace("1}", "1e999}"),
        json.dumps({"images": IMAGES, "annotations": NOTES}).replace("1}", "NaN}"),
        json.dumps({"images": IMAGES, "annotations": NOTES}).replace("1}", "9" * 5000 + "}"),
        *(
            json.dumps({"images": IMAGES, "annotations": [{"image_id": 0, "category_id": label}]})
            for label in (True, None, 1.5, "x", [], {}, -1, 2**70, -(2**70), 10**4000)
        ),
        *(
            json.dumps({"images": [{"id": 0, "file_name": name}], "annotations": NOTES})
            for name in ("a\0.jpg", "a\n.jpg", "a\r.jpg", "\ud800.jpg", 5, None, ["a"])
        ),
        json.dumps({"images": IMAGES, "annotations": NOTES, "categories": [{"id": 1, "name": "\ud800"}]}),
        json.dumps({"images": IMAGES, "annotations": NOTES, "categories": [5]}),
        json.dumps({"images": IMAGES * 2, "annotations": NOTES}),
        json.dumps({"images": IMAGES, "annotations": NOTES, "categories": [{"id": 1}, {"id": 1}]}),
        json.dumps({"images": [{"id": [], "file_name": "a"}], "annotations": NOTES}),
        b"\xff\xfe",
        b"",
    ],
)
def test_json_of_any_content_gets_a_sentence(tmp_path, text):
    path = tmp_path / "train.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        inaturalist.read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800
