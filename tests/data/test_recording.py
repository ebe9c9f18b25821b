"""Recording: (o_t, a_t) alignment, early ends, faults and reproducibility, on a scripted environment."""

from __future__ import annotations

import numpy as np
import pytest

from aime.data.policies import SmoothPolicy, UniformPolicy, make_policy
from aime.data.recording import Recorder
from tests.data.scripted_environment import ScriptedEnvironment


def test_each_action_is_stored_with_the_frame_it_was_taken_after() -> None:
    environment = ScriptedEnvironment(3)
    episodes = list(Recorder(environment, UniformPolicy(), steps=8, seed=1).episodes(6))
    assert len(episodes) == 6
    t = np.arange(8)
    for number, episode in enumerate(episodes):
        assert episode.observations.shape == (8, 3, 6, 5)
        assert (episode.observations[:, 0] == t[:, None, None]).all()
        assert (episode.observations[:, 2] == number % 3).all()
        # frame t shows the action before it: a_{t-1}; so a_t was applied after o_t and shows in o_{t+1}
        shown = episode.observations[1:, 1, 0, 0]
        np.testing.assert_array_equal(shown, np.round(100 + 100 * episode.actions[:-1, 0].astype(np.float64)))
        np.testing.assert_allclose(episode.rewards, episode.actions[:, 0] + t, rtol=1e-6)  # r_t follows a_t
        assert episode.physics is not None
        np.testing.assert_array_equal(episode.physics[:, 0], t)
        np.testing.assert_allclose(episode.physics[1:, 1], episode.actions[:-1, 0])
        assert episode.body_masks is not None
        np.testing.assert_array_equal(episode.body_masks[:, 0, 0], t % 2 == 1)
        assert (episode.continues == 1).all()
        assert episode.seed == 100 + number % 3
        assert episode.reset_index == number // 3


def test_ids_of_bodies_are_those_of_the_geoms_seen() -> None:
    table = np.array([0, 7, 9, 0], np.uint8)  # geoms 0, 1, 2 and none
    recorder = Recorder(ScriptedEnvironment(2), UniformPolicy(), steps=6, seed=1, body_of_geom=table)
    for episode in recorder.episodes(2):
        assert episode.body_ids is not None
        assert episode.body_ids.shape == (6, 6, 5)
        assert episode.body_ids.dtype == np.uint8
        assert episode.body_ids[:, 3, 2].tolist() == [0, 0, 7, 9, 0, 0]
        assert (episode.body_ids == episode.body_ids[:, :1, :1]).all()


def test_an_episode_that_ends_early_is_shorter_and_its_end_is_stored() -> None:
    environment = ScriptedEnvironment(2, ends={1: 5})
    steps_seen: list[int] = []
    recorder = Recorder(environment, UniformPolicy(), steps=9, seed=1, on_step=steps_seen.append)
    whole, early, _, again = recorder.episodes(4)
    assert len(whole.actions) == 9
    assert early.continues.tolist() == [1, 1, 1, 1, 0]
    assert (early.observations[:, 0, 0, 0] == np.arange(5)).all()
    assert steps_seen[:9] == [2, 2, 2, 2, 1, 1, 1, 1, 1]
    assert early.reset_index == 0
    assert again.reset_index == 2  # the environment began an episode by itself in between


def test_a_fault_drops_the_episode_and_another_is_played() -> None:
    recorder = Recorder(ScriptedEnvironment(2, faults={0: 3}), UniformPolicy(), steps=6, seed=1)
    episodes = list(recorder.episodes(3))
    assert [len(episode.actions) for episode in episodes] == [6, 6, 6]
    assert [episode.seed for episode in episodes] == [101, 100, 101]
    assert recorder.faults == [(0, "NaN")]
    with pytest.raises(RuntimeError, match="failed in every episode of a round: NaN"):
        list(Recorder(ScriptedEnvironment(1, faults={0: 1}), UniformPolicy(), steps=6, seed=1).episodes(1))


def test_actions_depend_on_seed_and_episode_not_on_the_batch() -> None:
    def actions(num_envs: int, seed: int) -> list[np.ndarray]:
        recorder = Recorder(ScriptedEnvironment(num_envs), SmoothPolicy(), steps=7, seed=seed)
        return [episode.actions for episode in recorder.episodes(4)]

    assert all(np.array_equal(one, four) for one, four in zip(actions(1, 3), actions(4, 3), strict=True))
    assert not np.array_equal(actions(2, 3)[0], actions(2, 4)[0])
    assert not np.array_equal(actions(2, 3)[0], actions(2, 3)[1])


@pytest.mark.parametrize("name", ["uniform", "smooth"])
def test_policies_stay_in_bounds_and_use_them(name: str) -> None:
    minimum, maximum = np.array([-1.0, 0.0, -0.1]), np.array([1.0, 3.0, 0.1])
    policy = make_policy(name)
    drawn = [policy.actions(np.random.default_rng(i), 400, minimum, maximum) for i in range(20)]
    actions = np.concatenate([sequence for sequence, _ in drawn])
    assert actions.dtype == np.float32
    assert (actions >= minimum.astype(np.float32)).all()
    assert (actions <= maximum.astype(np.float32)).all()
    assert (np.ptp(actions, axis=0) > 0.95 * (maximum - minimum)).all()
    assert all(len(values) == len(policy.parameters) for _, values in drawn)


def explained(actions: np.ndarray, periods: tuple[float, ...]) -> float:
    """Share of the variance of actions (steps,) that cosines of these periods, at their highest at step 0, explain."""
    time = np.arange(len(actions))
    waves = np.stack([np.cos(2 * np.pi * time / period) for period in periods], 1)
    fitted = waves @ np.linalg.lstsq(waves, actions, rcond=None)[0]
    return 1.0 - float(np.square(actions - fitted).mean() / np.square(actions).mean())


def test_smooth_actions_follow_the_documented_process() -> None:
    for seed in range(20):
        generator = np.random.default_rng(seed)
        actions, (first, second, tau) = SmoothPolicy().actions(generator, 2000, np.array([-1.0]), np.array([1.0]))
        assert 40 <= first <= 90
        assert 40 <= second <= 90
        assert 3 <= tau <= 10
        # Clipping and noise take the rest, half of it where near-equal periods cancel; other cosines explain nothing.
        assert explained(actions[:, 0], (first, second)) > 0.4
        assert explained(actions[:, 0], (17.0, 150.0)) < 0.1


def test_an_unknown_policy_names_the_near_ones() -> None:
    with pytest.raises(ValueError, match=r"one of uniform, smooth, found 'smoth'; did you mean smooth\?"):
        make_policy("smoth")
