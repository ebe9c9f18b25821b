"""The C++ random numbers are numpy's: an episode begun in C++ is the one that dm_control draws."""

from __future__ import annotations

import numpy as np
import pytest

from aime.envs.extension import load_extension

SEEDS = (0, 1, 7, 2026, 2**31, 2**32 - 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_draw_is_numpys(seed: int) -> None:
    ours, theirs = load_extension().RandomState(seed), np.random.RandomState(seed)
    order = np.random.default_rng(seed)
    for kind in order.integers(0, 5, 5000):  # past several refills of the 624 words
        if kind == 0:
            assert ours.random() == theirs.rand()
        elif kind == 1:
            low, high = order.normal(size=2).tolist()
            assert ours.uniform(low, high) == theirs.uniform(low, high)
        elif kind == 2:
            assert ours.randn() == theirs.randn()
        elif kind == 3:
            high = int(order.choice([1, 2, 3, 4, 7, 1000, 2**31 + 3]))
            assert ours.randint(high) == theirs.randint(high)
        else:
            low_bounds, high_bounds = np.array([-1.0, 0.0, 2.5]), np.array([-0.5, 2 * np.pi, 2.5])
            drawn = [ours.uniform(*pair) for pair in zip(low_bounds, high_bounds, strict=True)]
            np.testing.assert_array_equal(drawn, theirs.uniform(low_bounds, high_bounds))


@pytest.mark.parametrize("normals", [0, 1, 2])
def test_states_pass_between_numpy_and_cpp(normals: int) -> None:
    ours, theirs = load_extension().RandomState(3), np.random.RandomState(99)
    theirs.randn(normals)  # after an odd number one normal is waiting
    ours.set_state(theirs.get_state())
    assert [ours.randn() for _ in range(3)] == theirs.randn(3).tolist()
    back = np.random.RandomState(5)
    back.set_state(ours.get_state())
    assert back.randn() == theirs.randn() == ours.randn()


def test_wrong_states_are_errors() -> None:
    state = load_extension().RandomState(1)
    name, key, position, has_gauss, cached = state.get_state()
    for wrong in (
        ("PCG64", key, position, has_gauss, cached),
        (name, key[:-1], position, has_gauss, cached),
        (name, key, 625, has_gauss, cached),
        (name, key),
    ):
        with pytest.raises(ValueError, match="random state"):
            state.set_state(wrong)
    with pytest.raises(ValueError, match="high >= 1"):
        state.randint(0)
