import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.errors import Failure, UserError
from unimix_jax.models import init, networks
from unimix_jax.training import checkpoints, optim
from unimix_jax.training.step import first_state


def state_at(step):
    tx = optim.sgd(momentum=0.9, weight_decay=2e-4)
    first = first_state(init.initialise(networks.build("resnet8", 3), (8, 8, 1), seed=step), tx)
    return first._replace(step=jnp.int32(step))


def write(directory, *at, run="a"):
    with checkpoints.opened(directory, keep=2) as manager:
        for step in at:
            checkpoints.save(manager, step, state_at(step), run)


def newest(directory, run="a"):
    with checkpoints.opened(directory, keep=2) as manager:
        return checkpoints.restore_newest(manager, directory, state_at(0), run)


@pytest.mark.slow
def test_a_state_comes_back_to_the_bit_and_in_its_type(tmp_path):
    write(tmp_path, 7)
    restored, expected = newest(tmp_path), state_at(7)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_without_checkpoints_there_is_none(tmp_path):
    assert newest(tmp_path) is None


@pytest.mark.slow
def test_the_newest_ones_stay(tmp_path):
    write(tmp_path, 1, 2, 3, 4)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.isdigit()) == ["3", "4"]


def flip_a_bit(directory):
    """Flip one bit in the largest file: the numbers. Orbax itself restores them without a word."""
    file = max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(directory):
    shutil.rmtree(directory)
    directory.mkdir()


def halve(directory):
    for file in (p for p in directory.rglob("*") if p.is_file() and p.stat().st_size > 1000):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flip_a_bit, empty, halve])
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_is_taken(tmp_path, damage):
    write(tmp_path, 1, 2)
    damage(tmp_path / "2")
    with checkpoints.opened(tmp_path, keep=2) as manager:
        restored = checkpoints.restore_newest(manager, tmp_path, state_at(0), "a")
        assert restored.step == 1
        checkpoints.save(manager, 2, state_at(2), "a")  # the way on leads through step 2 again
    assert (tmp_path / "2.damaged").is_dir()
    assert newest(tmp_path).step == 2


def test_checkpoints_none_of_which_is_sound_are_an_error_and_not_a_fresh_start(tmp_path):
    write(tmp_path, 1, 2)
    for step in "12":
        empty(tmp_path / step)
    for _ in range(2):  # a second try is no fresh start either
        with pytest.raises(UserError, match="none of the checkpoints in .* is sound"):
            newest(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} >= {"1", "2"}  # left for somebody to look at


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("RESOURCE_EXHAUSTED: No space")])
@pytest.mark.parametrize("when", ["save", "wait_until_finished"])
def test_a_checkpoint_that_cannot_be_written_is_a_failure_and_no_mistake(tmp_path, monkeypatch, error, when):
    def full(*_, **__):
        raise error

    def write_it():
        with checkpoints.opened(tmp_path, keep=2) as manager:
            monkeypatch.setattr(manager, when, full)
            if when == "save":
                checkpoints.save(manager, 1, state_at(1), "a")

    with pytest.raises(Failure, match=f"a checkpoint in {tmp_path} could not be written: .*No space"):
        write_it()


def test_checkpoints_that_were_moved_aside_by_hand_are_no_fresh_start(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "1").rename(tmp_path / "1.damaged")
    with pytest.raises(UserError, match="they were moved aside"):
        newest(tmp_path)


def test_a_step_that_orbax_would_pass_over_is_an_error(tmp_path):
    write(tmp_path, 5)
    with checkpoints.opened(tmp_path, keep=2) as manager, pytest.raises(RuntimeError, match="did not save step 5"):
        checkpoints.save(manager, 5, state_at(5))


def meta_file(directory, step):
    return directory / str(step) / "meta" / "metadata"


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_moved_aside_and_the_one_before_is_taken(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write(ours, 1, 2)
    write(theirs, 2, run="b")
    shutil.rmtree(ours / "2")
    shutil.copytree(theirs / "2", ours / "2")
    assert newest(ours).step == 1
    assert (ours / "2.foreign").is_dir()
    assert "checkpoint 2 is of another run (b, not a); it is moved aside, to 2.foreign" in caplog.text
    with pytest.raises(UserError, match=r"none of .* is sound \(checkpoint 2 is of another run"):
        newest(theirs)
    assert (theirs / "2").is_dir()


@pytest.mark.slow
def test_a_checkpoint_under_the_name_of_another_step_is_moved_aside(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("unimix_jax"), "propagate", True)
    write(tmp_path, 1, 2)
    shutil.rmtree(tmp_path / "2")
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    assert newest(tmp_path).step == 1
    # One of before checkpoints said so of themselves: the state has its step.
    meta = meta_file(tmp_path, 1)
    meta.write_text(json.dumps({"digest": json.loads(meta.read_text())["digest"]}))
    shutil.copytree(tmp_path / "1", tmp_path / "3")
    assert newest(tmp_path, checkpoints.UNNAMED).step == 1
    for step in (2, 3):
        assert f"checkpoint {step} is of another step, 1; it is moved aside, to {step}.foreign" in caplog.text


def test_a_checkpoint_that_names_no_run_goes_with_a_run_of_that_time_alone(tmp_path):
    write(tmp_path, 1)
    meta = meta_file(tmp_path, 1)
    meta.write_text(json.dumps({"digest": json.loads(meta.read_text())["digest"]}))  # as it was written once
    assert newest(tmp_path, checkpoints.UNNAMED).step == 1
    with pytest.raises(UserError, match="checkpoint 1 does not say of which run it is"):
        newest(tmp_path)


@pytest.mark.parametrize("change", [lambda a: a + 1e-7, lambda a: a.astype(np.float64), lambda a: a[None]])
def test_the_digest_sees_values_types_and_shapes(change):
    tree = {"a": np.ones(3, np.float32)}
    assert checkpoints.digest(tree) == checkpoints.digest({"a": np.ones(3, np.float32)})
    assert checkpoints.digest(tree) != checkpoints.digest({"a": change(tree["a"])})
    assert checkpoints.digest(tree) != checkpoints.digest({"b": tree["a"]})
