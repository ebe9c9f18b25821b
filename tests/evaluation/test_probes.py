"""Physics targets and the linear readout."""

import math

import numpy as np
import pytest

from aime.data import EpisodeSpec, JointSpec
from aime.evaluation.metrics import coefficient_of_determination
from aime.evaluation.nonlinear_probe import fit_network
from aime.evaluation.probes import fit_probe, fit_ridge, physics_targets, score_probe


def spec(*joints: JointSpec) -> EpisodeSpec:
    return EpisodeSpec(image_shape=(3, 32, 32), action_size=1, joints=joints)


def test_slides_stay_hinges_become_sine_and_cosine() -> None:
    physics = np.array([[0.5, math.pi / 2, 3.0, 4.0]])
    targets = physics_targets(physics, np.array([7.0]), spec(JointSpec("slider", "slide"), JointSpec("pole", "hinge")))
    assert targets.names == (
        *("slider", "sin pole", "cos pole"),
        *("d/dt slider", "d/dt sin pole", "d/dt cos pole", "d/dt pole", "reward"),
    )
    assert targets.groups == ("qpos", "qpos", "qpos", "qvel", "qvel", "qvel", "rate", "reward")
    np.testing.assert_allclose(targets.values, [[0.5, 1.0, 0.0, 3.0, 0.0, -4.0, 4.0, 7.0]], atol=1e-12)
    np.testing.assert_allclose(targets.exact_state(), [[0.5, 1.0, 0.0, 3.0, 0.0, -4.0]], atol=1e-12)


def test_a_hinges_velocity_is_the_derivative_of_its_sine_and_cosine() -> None:
    """Central differences of a turning pole's sine and cosine, which no constant factor or sign survives."""
    times = np.linspace(0.0, 3.0, 3001)
    angle, rate = 1.5 * np.sin(2.0 * times) + times, 3.0 * np.cos(2.0 * times) + 1.0
    physics = np.stack([angle, rate], 1)
    targets = physics_targets(physics, np.zeros(len(times)), spec(JointSpec("pole", "hinge")))
    columns = dict(zip(targets.names, targets.values.T, strict=True))
    for name in ("sin pole", "cos pole"):
        expected = np.gradient(columns[name], times)
        np.testing.assert_allclose(columns[f"d/dt {name}"][1:-1], expected[1:-1], atol=1e-4)


def test_the_exact_state_reads_its_own_columns_and_not_the_hinges_rate() -> None:
    generator = np.random.default_rng(3)
    physics = np.stack([generator.uniform(-math.pi, math.pi, 800), generator.normal(size=800)], 1)
    episodes = np.repeat(np.arange(8), 100)
    targets = physics_targets(physics, np.zeros(800), spec(JointSpec("pole", "hinge")))
    exact = fit_probe(targets.exact_state(), targets.values, episodes)
    columns = score_probe(exact, targets.exact_state(), targets, episodes).columns
    assert all(columns[name] > 0.999 for name in ("sin pole", "cos pole", "d/dt sin pole", "d/dt cos pole"))
    assert columns["d/dt pole"] < 0.2  # the product that the linear readout lacks


def test_the_nonlinear_probe_finds_a_product_and_keeps_what_is_linear() -> None:
    generator = np.random.default_rng(4)
    features = generator.normal(size=(3000, 20))
    values = np.stack([features[:, 0] * features[:, 1], features @ generator.normal(size=20)], 1)
    episodes = np.repeat(np.arange(30), 100)
    train, test = slice(0, 2400), slice(2400, 3000)
    linear = fit_probe(features[train], values[train], episodes[train])
    network = fit_network(features[train], values[train], episodes[train])
    straight, bent = (
        coefficient_of_determination(readout.predict(features[test]), values[test]) for readout in (linear, network)
    )
    assert straight[0] < 0.1 and bent[0] > 0.7
    assert bent[1] > 0.99


def test_the_nonlinear_probe_of_noise_stays_the_linear_one() -> None:
    generator = np.random.default_rng(5)
    features, targets = generator.normal(size=(400, 40)), generator.normal(size=(400, 2))
    network = fit_network(features, targets, np.repeat(np.arange(10), 40))
    assert np.abs(network.predict(features)).max() < 1.5


def test_a_limited_hinge_stays_an_angle() -> None:
    targets = physics_targets(np.array([[0.3, 1.0]]), np.zeros(1), spec(JointSpec("knee", "hinge", limited=True)))
    assert targets.names == ("knee", "d/dt knee", "reward")  # no derivative of a sine: the angle is a readout
    assert targets.values[0, 0] == 0.3


def test_quaternions_become_rotation_columns_whatever_their_sign() -> None:
    half = math.sqrt(0.5)
    quaternion = [half, 0.0, 0.0, half]  # a quarter turn about z: x axis to y, y axis to -x
    physics = np.array([[1.0, 2.0, 3.0, *quaternion, *[0.0] * 6]])
    mirrored = physics.copy()
    mirrored[:, 3:7] *= -1
    free = spec(JointSpec("root", "free"))
    targets, same = (physics_targets(value, np.zeros(1), free) for value in (physics, mirrored))
    np.testing.assert_allclose(targets.values[0, :9], [1, 2, 3, 0, 1, 0, -1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(same.values, targets.values, atol=1e-12)
    assert targets.names[3:9] == ("root R11", "root R21", "root R31", "root R12", "root R22", "root R32")
    assert targets.groups.count("qvel") == 6


def test_physics_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="has 3 entries, the joints of the data's spec own 2"):
        physics_targets(np.zeros((1, 3)), np.zeros(1), spec(JointSpec("slider", "slide")))


def test_probe_recovers_a_linear_map_and_scores_it_on_new_episodes() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(600, 8))
    weight = generator.normal(size=(8, 4))
    physics = features @ weight[:, :2]
    values = np.concatenate([physics, features @ weight[:, 2:3]], 1)
    episodes = np.repeat(np.arange(12), 50)
    slider = spec(JointSpec("slider", "slide"))
    train, test = slice(0, 400), slice(400, 600)
    targets = physics_targets(values[train, :2], values[train, 2], slider)
    ridge = fit_probe(features[train], targets.values, episodes[train])
    held = physics_targets(values[test, :2], values[test, 2], slider)
    result = score_probe(ridge, features[test], held, episodes[test])
    for estimate in result.groups.values():
        assert estimate.mean == pytest.approx(1.0, abs=1e-4)
        assert estimate.stderr is not None and estimate.stderr < 1e-4
    assert set(result.columns) == {"slider", "d/dt slider", "reward"}


def test_probe_of_noise_scores_near_zero_and_prefers_a_strong_penalty() -> None:
    generator = np.random.default_rng(1)
    features, targets = generator.normal(size=(300, 60)), generator.normal(size=(300, 2))
    ridge = fit_probe(features, targets, np.repeat(np.arange(10), 30))
    assert ridge.penalty >= 1.0
    assert np.abs(ridge.predict(features)).max() < 1.0


def test_ridge_is_the_closed_form_on_standardised_features() -> None:
    features, targets = np.array([[1.0], [3.0]]), np.array([[2.0], [6.0]])
    ridge = fit_ridge(features, targets, penalty=1.0)
    # Standardised x = -1, 1 and centred y = -2, 2: w = sum xy / (sum x^2 + 1 * n) = 4 / 4.
    np.testing.assert_allclose(ridge.predict(features), [[3.0], [5.0]])


def test_a_constant_quantity_has_no_score_and_does_not_spoil_its_group() -> None:
    generator = np.random.default_rng(2)
    features = generator.normal(size=(100, 3))
    physics = np.stack([features[:, 0], np.zeros(100), np.ones(100), features[:, 1]], 1)
    two = spec(JointSpec("moving", "slide"), JointSpec("fixed", "slide"))
    targets = physics_targets(physics, np.zeros(100), two)
    episodes = np.repeat(np.arange(5), 20)
    result = score_probe(fit_ridge(features, targets.values, 1e-6), features, targets, episodes)
    assert result.groups["qpos"].mean == pytest.approx(1.0, abs=1e-6)
    assert math.isnan(result.columns["fixed"])
    assert result.groups["reward"].mean is None
