"""Probes: what of the physics state can be read off the model's state [h_t, z_t], with a ridge regression above all.

Fitted on states of training episodes and scored on held-out ones. ``h_t`` has absorbed everything up to a_t, so the
targets are the physics state in which frame t was rendered, and the reward of a_t. An unlimited hinge is regressed as
the sine and cosine of its angle (one that turns all the way round has no linear readout), a limited one as the angle, a
quaternion as the first two columns of its rotation matrix (it has two signs itself; Zhou et al., 2019). An unlimited
hinge's velocity is regressed in the same form, d(sin)/dt and d(cos)/dt. The velocity itself is a product of these with
the sine and cosine: on cartpole a linear readout of the *exact* ones reaches R^2 .24, whatever a model knows. It is
still a column, outside of the mean ("rate"), and every column has the linear readout of the exact state beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aime.data import EpisodeSpec
from aime.evaluation.metrics import Estimate, coefficient_of_determination, jackknife
from aime.evaluation.protocol import Clips

RIDGE_GRID = tuple(10.0**power for power in range(-6, 4))
"""Penalties tried, relative to the number of samples (features are standardised)."""

SCORED_GROUPS = ("qpos", "qvel", "reward")


@dataclass(frozen=True)
class ProbeTargets:
    """Columns to regress: ``values`` (N, P), and for each a name and a group ("qpos", "qvel", "rate", "reward")."""

    values: np.ndarray
    names: tuple[str, ...]
    groups: tuple[str, ...]

    def exact_state(self) -> np.ndarray:
        """(N, P') the columns of positions and velocities: the physics state in the form of the columns."""
        return self.values[:, [index for index, group in enumerate(self.groups) if group in ("qpos", "qvel")]]


@dataclass(frozen=True)
class ProbeSamples:
    """States of a model and of the physics, frame by frame.

    Attributes:
        features: (M, F) [h_t, z_t].
        physics: (M, nq + nv).
        rewards: (M,) of a_t.
        episodes: (M,) which episode each is from.
    """

    features: np.ndarray
    physics: np.ndarray
    rewards: np.ndarray
    episodes: np.ndarray

    @staticmethod
    def of(clips: Clips, features: np.ndarray, burn_in: int) -> ProbeSamples:
        """Of clips with physics and their features (N, L, F), without the first ``burn_in`` frames of each."""
        assert clips.physics is not None
        settled = min(burn_in, clips.length - 1)
        return ProbeSamples(
            features[:, settled:].reshape(-1, features.shape[-1]),
            clips.physics[:, settled:].reshape(-1, clips.physics.shape[-1]).numpy(),
            clips.rewards[:, settled:].reshape(-1).numpy(),
            clips.episodes.repeat_interleave(clips.length - settled).numpy(),
        )

    @staticmethod
    def joined(pieces: Sequence[ProbeSamples]) -> ProbeSamples:
        """All of them."""
        return ProbeSamples(
            *(
                np.concatenate([getattr(piece, name) for piece in pieces])
                for name in ("features", "physics", "rewards", "episodes")
            )
        )


class Readout(Protocol):
    """A fitted map from features to columns."""

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(N, F) -> (N, P)."""
        ...


@dataclass(frozen=True)
class ProbeResult:
    """Scores of one readout on held-out episodes."""

    groups: dict[str, Estimate]
    """R^2 of ``SCORED_GROUPS``: mean over the group's columns that vary, with a jackknife standard error."""
    columns: dict[str, float]
    """R^2 of each column by name; NaN where it does not vary."""
    prediction: np.ndarray
    """(N, P) on the held-out samples."""
    targets: ProbeTargets
    """The held-out targets."""


@dataclass(frozen=True)
class Probes:
    """The readouts of one evaluation."""

    linear: ProbeResult
    nonlinear: ProbeResult
    exact: ProbeResult
    """Linear readout of the exact physics state, in the form of the columns: the reference of each column."""


def _rotation_columns(quaternion: np.ndarray) -> np.ndarray:
    """Unit quaternions (N, 4) as (w, x, y, z) -> first two columns of their rotation matrices (N, 6)."""
    w, x, y, z = (quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)).T
    first = [1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)]
    second = [2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)]
    return np.stack(first + second, axis=1)


def physics_targets(physics: np.ndarray, rewards: np.ndarray, spec: EpisodeSpec) -> ProbeTargets:
    """Regression targets from stored physics states.

    Args:
        physics: (N, nq + nv), qpos then qvel.
        rewards: (N,).
        spec: names and kinds of the joints. Without them qpos and qvel cannot be told apart.

    Raises:
        ValueError: when ``physics`` does not have the nq + nv entries that the joints of ``spec`` own.
    """
    if physics.shape[1] != spec.physics_size:
        raise ValueError(
            f"physics state has {physics.shape[1]} entries, the joints of the data's spec own {spec.physics_size}"
        )
    columns: list[np.ndarray] = []
    names: list[str] = []
    groups: list[str] = []

    def add(group: str, name: str, values: np.ndarray) -> None:
        columns.append(values)
        names.append(name)
        groups.append(group)

    start = 0
    for joint in spec.joints:
        values = physics[:, start : start + joint.qpos_size]
        start += joint.qpos_size
        if joint.kind == "slide" or (joint.kind == "hinge" and joint.limited):
            add("qpos", joint.name, values[:, 0])
        elif joint.kind == "hinge":
            add("qpos", f"sin {joint.name}", np.sin(values[:, 0]))
            add("qpos", f"cos {joint.name}", np.cos(values[:, 0]))
        else:  # "free": position and quaternion; "ball": quaternion
            for axis, name in enumerate("xyz"[: joint.qpos_size - 4]):
                add("qpos", f"{joint.name} {name}", values[:, axis])
            for entry, column in enumerate(_rotation_columns(values[:, -4:]).T):
                add("qpos", f"{joint.name} R{entry % 3 + 1}{entry // 3 + 1}", column)
    angles = dict(zip(names, columns, strict=True))
    for joint in spec.joints:
        if joint.kind == "hinge" and not joint.limited:
            rate = physics[:, start]
            start += 1
            add("qvel", f"d/dt sin {joint.name}", angles[f"cos {joint.name}"] * rate)
            add("qvel", f"d/dt cos {joint.name}", -angles[f"sin {joint.name}"] * rate)
            add("rate", f"d/dt {joint.name}", rate)
            continue
        for axis in range(joint.qvel_size):
            name = f"d/dt {joint.name}" + (f" {axis}" if joint.qvel_size > 1 else "")
            add("qvel", name, physics[:, start])
            start += 1
    add("reward", "reward", rewards)
    return ProbeTargets(np.stack(columns, axis=1).astype(np.float64), tuple(names), tuple(groups))


@dataclass(frozen=True)
class Ridge:
    """A fitted linear readout on standardised features."""

    center: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    penalty: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(N, F) -> (N, P)."""
        prediction: np.ndarray = (features - self.center) / self.scale @ self.weight + self.bias
        return prediction


def fit_ridge(features: np.ndarray, targets: np.ndarray, penalty: float) -> Ridge:
    """Least squares with an L2 ``penalty`` per sample on the standardised features; none on the bias."""
    features = features.astype(np.float64)
    center, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-8, scale, 1.0)
    standard = (features - center) / scale
    bias = targets.mean(0)
    gram = standard.T @ standard + penalty * len(standard) * np.eye(standard.shape[1])
    weight = np.linalg.solve(gram, standard.T @ (targets - bias))
    return Ridge(center, scale, weight, bias, penalty)


def held_out_samples(episodes: np.ndarray) -> np.ndarray:
    """(N,) True on samples of the last fifth of the episodes, by which a fit is chosen; none of a single episode."""
    names = np.unique(episodes)
    if len(names) < 2:
        return np.zeros(len(episodes), dtype=bool)
    return np.isin(episodes, names[-max(1, len(names) // 5) :])


def fit_probe(features: np.ndarray, targets: np.ndarray, episodes: np.ndarray) -> Ridge:
    """Ridge with the penalty of ``RIDGE_GRID`` that does best on the last fifth of the episodes, refitted on all.

    Args:
        features: (N, F).
        targets: (N, P).
        episodes: (N,) which episode each sample is from.
    """
    held = held_out_samples(episodes)
    if not held.any():
        return fit_ridge(features, targets, 1e-3)
    spread = np.where(targets[~held].std(0) > 1e-8, targets[~held].std(0), 1.0)

    def error(penalty: float) -> float:
        prediction = fit_ridge(features[~held], targets[~held], penalty).predict(features[held])
        return float((np.square(prediction - targets[held]) / spread**2).mean())

    return fit_ridge(features, targets, min(RIDGE_GRID, key=error))


def score_probe(readout: Readout, features: np.ndarray, targets: ProbeTargets, episodes: np.ndarray) -> ProbeResult:
    """R^2 of a fitted readout on held-out samples; ``episodes`` (N,) says which episode each is from."""
    prediction = readout.predict(features)
    groups: dict[str, Estimate] = {}
    for group in SCORED_GROUPS:
        columns = [index for index, name in enumerate(targets.groups) if name == group]
        groups[group] = jackknife(_mean_r2(prediction[:, columns], targets.values[:, columns]), episodes)
    r2 = coefficient_of_determination(prediction, targets.values)
    return ProbeResult(groups, dict(zip(targets.names, r2.tolist(), strict=True)), prediction, targets)


def _mean_r2(prediction: np.ndarray, target: np.ndarray) -> Callable[[np.ndarray], float]:
    """Mean R^2 over the columns that vary, as a function of a selection of samples (for the jackknife)."""
    varies = ~np.isnan(coefficient_of_determination(prediction, target))
    prediction, target = prediction[:, varies], target[:, varies]

    def statistic(chosen: np.ndarray) -> float:
        if target.shape[1] == 0:
            return float("nan")
        return float(coefficient_of_determination(prediction[chosen], target[chosen]).mean())

    return statistic
