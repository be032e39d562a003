import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimix_jax.errors import UserError
from unimix_jax.models import resnet
from unimix_jax.training import checkpoints, optim, steps


def state_at(step):
    tx = optim.sgd(0.9, 2e-4)
    first = steps.first_state(resnet.initialise(resnet.build("resnet8", 3), (8, 8, 1), seed=step), tx)
    return first._replace(step=jnp.int32(step))


def write(directory, *at):
    with checkpoints.opened(directory, keep=2) as manager:
        for step in at:
            checkpoints.save(manager, step, state_at(step))


def newest(directory):
    with checkpoints.opened(directory, keep=2) as manager:
        return checkpoints.restore_newest(manager, directory, state_at(0))


def test_a_state_comes_back_to_the_bit_and_in_its_type(tmp_path):
    write(tmp_path, 7)
    restored, expected = newest(tmp_path), state_at(7)
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_without_checkpoints_there_is_none(tmp_path):
    assert newest(tmp_path) is None


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


@pytest.mark.parametrize("damage", [flip_a_bit, empty, halve])
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_is_taken(tmp_path, damage):
    write(tmp_path, 1, 2)
    damage(tmp_path / "2")
    with checkpoints.opened(tmp_path, keep=2) as manager:
        restored = checkpoints.restore_newest(manager, tmp_path, state_at(0))
        assert restored.step == 1
        checkpoints.save(manager, 2, state_at(2))  # the way on leads through step 2 again
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


def test_checkpoints_that_were_moved_aside_by_hand_are_no_fresh_start(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "1").rename(tmp_path / "1.damaged")
    with pytest.raises(UserError, match="they were moved aside"):
        newest(tmp_path)


def test_a_step_that_orbax_would_pass_over_is_an_error(tmp_path):
    write(tmp_path, 5)
    with checkpoints.opened(tmp_path, keep=2) as manager, pytest.raises(RuntimeError, match="did not save step 5"):
        checkpoints.save(manager, 5, state_at(5))


@pytest.mark.parametrize("change", [lambda a: a + 1e-7, lambda a: a.astype(np.float64), lambda a: a[None]])
def test_the_digest_sees_values_types_and_shapes(change):
    tree = {"a": np.ones(3, np.float32)}
    assert checkpoints.digest(tree) == checkpoints.digest({"a": np.ones(3, np.float32)})
    assert checkpoints.digest(tree) != checkpoints.digest({"a": change(tree["a"])})
    assert checkpoints.digest(tree) != checkpoints.digest({"b": tree["a"]})
