import pytest

from unimix_jax.errors import UserError

from .files import load, touch


@pytest.mark.parametrize(("train", "test"), [("Ant", "ant"), ("caf\u00e9", "cafe\u0301")])
def test_classes_that_are_spelled_differently_in_another_split_are_refused(tmp_path, train, test):
    touch(tmp_path, [f"train/{train}/1.jpg", "train/bee/1.jpg", f"test/{test}/2.jpg", "test/bee/2.jpg"])
    with pytest.raises(
        UserError, match=rf"1 of the classes in .*test are spelled differently .* {test!r} and {train!r}"
    ):
        load(dir=tmp_path)


def test_a_split_of_files_that_are_not_read_is_not_left_out(tmp_path, heard):
    touch(tmp_path, [*(f"train/{c}/{i}.jpg" for c in ("ant", "bee") for i in range(3)), "val/readme.txt"])
    assert load(dir=tmp_path).train.class_names == ("ant", "bee")
    assert "val holds no image: no split is made of it" in heard.text
    touch(tmp_path, ["test/ant/1.heic", "test/bee/1.heic"])
    with pytest.raises(UserError, match=r"test holds no image that is read \(2 .heic\)"):
        load(dir=tmp_path)


def test_files_that_are_not_taken_are_said_by_class_suffix_and_count(tmp_path, heard):
    names = [f"{c}/{i}.jpg" for c in "ab" for i in range(10)]
    touch(tmp_path, [*names, "a/1.heic", "b/notes.txt", "b/more.txt", "b/.hidden.jpg", "b/.DS_Store"])
    assert sum(load(dir=tmp_path, test_share=0.1, validation_share=0.0).counts) == 18
    assert (
        "4 files are skipped, because they are not images of a format that is read: 2 .txt, 1 .heic, 1 with a name"
        in heard.text
    )
    assert "class a: 10 images; skipped: 1 .heic\n" in heard.text
    assert "class b: 10 images; skipped: 2 .txt, 1 with a name that begins with a dot\n" in heard.text


def test_a_class_that_loses_a_tenth_of_its_files_stops_unless_told_to_go_on(tmp_path):
    touch(tmp_path, [f"{c}/{i}.jpg" for c in "abc" for i in range(3)])
    touch(tmp_path, [*(f"b/{i}.HEIC" for i in range(9)), *(f"c/{i}.xml" for i in range(3)), "d/1.jxl"])
    message = (
        r"of the class 'b' in .* 3 files are images that are read and 9 are not \(9 .heic\); 1 more of the classes lose"
    )
    with pytest.raises(UserError, match=message):
        load(dir=tmp_path)
    found = load(dir=tmp_path, skip_other_files=True)
    assert found.train.class_names == ("a", "b", "c")
    assert len(found.train.names) + len(found.test.names) == 9


def test_a_line_break_in_a_name_is_refused(tmp_path):
    touch(tmp_path, ["a/1.jpg", "b/1.jpg", "b/1\n2.jpg"])
    with pytest.raises(UserError, match=r"holds a line break, such as 'b/1\\n2.jpg'"):
        load(dir=tmp_path)
