"""Reader of ExORL (Yarats et al. 2022): npz episodes of states, whose frames are drawn from the physics they hold.

Row t of an episode holds the physics state (qpos, qvel and the activations of actuators) and the observation in it,
and the action, reward and discount that led to it; those of row 0 mean nothing. So an episode of T rows has T - 1
steps, as V-D4RL's. The domain is a part of the path (``walker/proto/buffer/episode_000000_1000.npz``); any of its
tasks has the model that is drawn. Rewards are those of the file: ExORL itself computes others for each task.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from aime.data.decoded import Decoded, DecodedSource, checked_steps, named_in
from aime.data.errors import DataError
from aime.data.recording import bodies_of
from aime.data.spec import EpisodeSpec, JointSpec
from aime.data.v_d4rl import npz_files, npz_names, read_array, shifted_steps

DEFAULT_SIZE = 64  # pixels
ROWS = 16  # states that are drawn in one call


def holds_states(path: Path) -> bool:
    """Whether the first npz file at a path is an episode of states."""
    files = npz_files(path)
    names = npz_names(files[0]) if files else set()
    return {"action", "reward", "physics"} <= names and "image" not in names


def task_in(path: Path, pairs: tuple[tuple[str, str], ...]) -> tuple[str, str, str]:
    """Domain, the task that the path names or "", and a task of the domain whose model can be drawn.

    Raises:
        DataError: no part of the path names a domain that there is.
    """
    known = named_in(path)
    parts = {part.lower(): part for part in path.parts}
    domain = known.get("domain") or next((domain for domain, _ in pairs if domain.lower() in parts), "")
    tasks = [task for owner, task in pairs if owner == domain]
    if not tasks:
        domains = ", ".join(dict.fromkeys(owner for owner, _ in pairs))
        expected = f"a path whose parts name the domain, as walker or walker_walk does, one of {domains}"
        raise DataError(path, key="physics", expected=expected, found=domain or "none that does")
    named = known.get("task", "")
    return domain, named if named in tasks else "", named if named in tasks else tasks[0]


class StateRenderer:
    """Draws physics states of a domain with the ray caster.

    Args:
        domain, task: whose model is drawn; what is random in it (colours, targets) is that of seed 0.
        size: height and width of the frames.
        camera: of the model.
    """

    def __init__(self, domain: str, task: str, *, size: int, camera: int) -> None:
        from aime.envs import ParallelEnvironment

        self._environment = ParallelEnvironment(
            domain,
            task,
            num_envs=ROWS,
            num_threads=0,
            seed=[0] * ROWS,  # the same target in all of them
            pixels=(size, size),
            camera=camera,
            renderer="raycast",
            segmentation=True,
            autoreset="disabled",
        )
        self._environment.reset()
        self._state = self._environment.state()
        model = self._environment.suite_environment.physics.model
        self.sizes = (int(model.nq), int(model.nv), int(model.na))
        self.bodies, self._body_of_geom = bodies_of(self._environment)

    def describe(self) -> dict[str, Any]:
        """What a spec says of it."""
        environment = self._environment
        return {
            "action_size": environment.action_size,
            "control_timestep": environment.control_timestep,
            "renderer": environment.renderer,
            "samples": environment.samples,
            "camera": environment.camera,
            "joints": tuple(JointSpec(joint.name, joint.kind, joint.limited) for joint in environment.joints),
            "bodies": self.bodies,
        }

    def draw(self, states: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Frames (T, 3, H, W) and ids of bodies (T, H, W) of states (T, nq + nv + na); ValueError where they fail."""
        width, frames, ids = states.shape[1], [], []
        for begin in range(0, len(states), ROWS):
            part = states[begin : begin + ROWS]
            physics = self._state.physics.copy()  # time, qpos, qvel, act, ...
            physics[: len(part), 1 : 1 + width] = part
            step = self._environment.set_state(dataclasses.replace(self._state, physics=physics))
            assert step.pixels is not None
            assert step.segmentation is not None
            frames.append(step.pixels[: len(part)].transpose(0, 3, 1, 2))
            ids.append(self._body_of_geom[step.segmentation[: len(part)]])
        return np.concatenate(frames), np.concatenate(ids)


class ExORLSource(DecodedSource):
    """A directory of ExORL's npz episodes {observation, action, reward, discount, physics}, or one of them.

    Args:
        path: the directory or file.
        size: height and width of the frames.
        camera: of the model.
        body_masks: give masks and ids of bodies, which are drawn with the frames.
        physics: give the physics state.

    Raises:
        DataError: naming the file and the array.
        ImportError: MuJoCo or dm_control is not installed.
    """

    def __init__(
        self, path: Path, *, size: int = DEFAULT_SIZE, camera: int = 0, body_masks: bool = True, physics: bool = True
    ) -> None:
        from aime.envs import tasks

        self._files = npz_files(path)
        domain, named, task = task_in(self._files[0].absolute(), tasks.supported())
        self._model: dict[str, Any] = {"domain": domain, "task": task, "size": size, "camera": camera}
        self._renderer: StateRenderer | None = None
        self.has_body_masks = self.has_body_ids = body_masks
        self.has_physics = physics
        spec = EpisodeSpec(image_shape=(3, size, size), domain=domain, task=named, **self._open_renderer().describe())
        steps = []
        for episode, file in enumerate(self._files):
            names = npz_names(file)
            optional = [key for key in ("discount",) if key in names]
            columns = {key: read_array(file, key, episode=episode) for key in ("action", "reward", *optional)}
            steps.append(checked_steps(file, episode, spec, shifted_steps(file, episode, columns)))
        super().__init__(path, spec, steps)
        self._read_states(0)  # of a wrong domain, say: of the others when they are drawn

    def drawn(self, *, size: int, camera: int) -> Self:
        """The same episodes with frames of another size or by another camera."""
        return type(self)(self.path, size=size, camera=camera, body_masks=self.has_body_masks, physics=self.has_physics)

    def physics(self, episode: int) -> NDArray[np.float64]:
        """(N, nq + nv) float64 physics states of a whole episode, as recorded."""
        nq, nv, _ = self._open_renderer().sizes
        return self._read_states(episode)[:, : nq + nv]

    def _read_states(self, episode: int) -> NDArray[np.float64]:
        """(N, nq + nv + na) of the steps of an episode."""
        file, sizes = self._files[episode], self._open_renderer().sizes
        states = read_array(file, "physics", episode=episode)
        shape = (int(self.lengths[episode]) + 1, sum(sizes))
        if states.dtype.kind not in "fiu" or states.shape != shape:
            expected = f"numbers {shape}: qpos, qvel and activations of {self._model['domain']} in each row"
            raise DataError(
                file, episode=episode, key="physics", expected=expected, found=f"{states.dtype} {states.shape}"
            )
        doubles = states[:-1].astype(np.float64)
        if not np.isfinite(doubles).all():
            row = int(np.argwhere(~np.isfinite(doubles))[0, 0])
            found = f"others in row {row}"
            raise DataError(file, episode=episode, key="physics", expected="finite values", found=found)
        return doubles

    def _place(self, episode: int) -> Path:
        return self._files[episode]

    def _decode(self, episode: int) -> Decoded:
        states, renderer = self._read_states(episode), self._open_renderer()
        try:
            frames, ids = renderer.draw(states)
        except ValueError as error:
            raise DataError(
                self._files[episode],
                episode=episode,
                key="physics",
                expected="states that MuJoCo can be in",
                found=str(error),
            ) from error
        return Decoded(frames, ids, states[:, : renderer.sizes[0] + renderer.sizes[1]])

    def _open_renderer(self) -> StateRenderer:
        if self._renderer is None:
            self._renderer = StateRenderer(**self._model)
        return self._renderer

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_renderer": None}
