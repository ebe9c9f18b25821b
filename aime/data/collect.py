"""`aime collect`: play episodes of a Control Suite task and store them."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import aime
from aime.data.hdf5_writer import EpisodeWriter
from aime.data.policies import Policy, make_policy
from aime.data.recording import Recorder
from aime.data.spec import EpisodeSpec, JointSpec
from aime.files import require_writable
from aime.ranges import SEED, OptionError, Range, check_ranges, show

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from aime.envs import ParallelEnvironment

FULL_EPISODE = 1000  # control steps in an episode of the Control Suite
NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


@dataclass
class Collect:
    """Play episodes of a DeepMind Control Suite task and store frames, actions, rewards, masks and physics in one file.

    The file is written one episode at a time under the suffix .partial and renamed when complete: a collection that is
    killed leaves every episode it finished, readable under that name.
    """

    domain: str = "cartpole"
    """Domain of the Control Suite."""
    task: str = "swingup"
    """Task of that domain."""
    episodes: Annotated[int, Range(1, 10**9)] = 50
    """Episodes to store."""
    steps: Annotated[int, Range(1, 10**9)] | None = None
    """Steps of each episode at most, counted after the action repeat; the task's whole episode by default."""
    action_repeat: Annotated[int, Range(1, FULL_EPISODE)] = 2
    """Control steps for which an action is held; rewards are summed over them and one frame is rendered after them."""
    size: Annotated[int, Range(1, 4096)] = 64
    """Height and width of the frames."""
    camera: Annotated[int, Range(-1, 1000)] = 0
    """Camera of the model."""
    policy: str = "smooth"
    """smooth: time-correlated random actions. uniform: independent random actions."""
    renderer: Literal["gl", "raycast"] = "raycast"
    """raycast: the ray caster, close to MuJoCo's pictures, faster, without a GL library. gl: MuJoCo's own renderer."""
    quality: Literal["exact", "high", "fast"] = "high"
    """Of gl. exact: dm_control's own pixels. high: smaller shadow map, the same to the eye. fast: no anti-aliasing."""
    samples: Annotated[int, Range(1, 1024)] | None = None
    """Of raycast: rays a pixel; its default where not given."""
    seed: Annotated[int, SEED] = 1
    """Seed of the environments and the policy. Environment i gets seed + i."""
    split_seed: Annotated[int, SEED] = 0
    """Seed of the division into train, validation and test episodes, which is stored in the file."""
    num_envs: Annotated[int, Range(0, 65536)] = 0
    """Environments played at once, whose episodes are held in memory until they end; 0 takes four per thread."""
    threads: Annotated[int, Range(0, 4096)] = 0
    """Threads of the environments; 0 takes one per CPU core."""
    masks: bool = True
    """Store which pixels show a moving body (needed for the body-masked metrics)."""
    out: Path | None = None
    """The file to write; data/DOMAIN_TASK.h5 by default."""
    overwrite: bool = False
    """Replace the file where it exists."""

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self.out or Path("data") / f"{self.domain}_{self.task}.h5"

    def run(self) -> int:
        """Collect; returns 0."""
        from aime.envs import ParallelEnvironment

        check_ranges(self)  # nothing that is wrong may cost the start of the environments
        try:
            policy = make_policy(self.policy)
        except ValueError as error:
            raise OptionError(str(error)) from error
        steps = self.steps or FULL_EPISODE // self.action_repeat
        for name, value in (("domain", self.domain), ("task", self.task)):
            if not NAME.fullmatch(value):
                raise OptionError(f"{name}: expected a name of letters, digits and '_', found {show(value)}")
        require_writable(self.path.parent)
        threads = self.threads or len(os.sched_getaffinity(0))
        with ParallelEnvironment(
            self.domain,
            self.task,
            num_envs=min(self.num_envs or 4 * threads, self.episodes),
            num_threads=self.threads,
            action_repeat=self.action_repeat,
            seed=self.seed,
            pixels=(self.size, self.size),
            camera=self.camera,
            renderer=self.renderer,
            quality=self.quality,
            samples=self.samples,
            segmentation=self.masks,
        ) as environment:
            self._record(environment, policy, steps)
        return 0

    def _record(self, environment: ParallelEnvironment, policy: Policy, steps: int) -> None:
        from rich.console import Console

        console, begin, frames = Console(), time.perf_counter(), 0
        writer = EpisodeWriter(
            self.path,
            self._spec(environment, policy),
            body_masks=self.masks,
            split_seed=self.split_seed,
            overwrite=self.overwrite,
        )
        progress = _progress_bar(console)
        rounds = -(-self.episodes // environment.num_envs)
        bar = progress.add_task(f"{self.domain} {self.task}", total=rounds * environment.num_envs * steps, episodes=0)
        recorder = Recorder(
            environment,
            policy,
            steps=steps,
            seed=self.seed,
            on_step=lambda _: progress.advance(bar, environment.num_envs),
        )
        try:
            with progress, writer:
                for episode in recorder.episodes(self.episodes):
                    writer.append(episode)
                    frames += len(episode.actions)
                    progress.update(bar, episodes=len(writer))
                # the threads choose their GL display when they first draw
                writer.spec = dataclasses.replace(writer.spec, renderer_details=environment.renderer_details)
        except KeyboardInterrupt:
            console.print(f"interrupted: {len(writer)} whole episodes are in {writer.partial}")
            raise
        for number, reason in recorder.faults:
            console.print(f"episode {number} was dropped, its physics failed: {reason}")
        seconds = time.perf_counter() - begin
        console.print(
            f"{writer.path}: {len(writer)} episodes, {frames:,} frames in {seconds:.1f} s "
            f"({frames / seconds:.0f} frames/s), {writer.path.stat().st_size / 1e6:.1f} MB",
            highlight=False,
            soft_wrap=True,
        )

    def _spec(self, environment: ParallelEnvironment, policy: Policy) -> EpisodeSpec:
        return EpisodeSpec(
            image_shape=(3, self.size, self.size),
            action_size=environment.action_size,
            domain=self.domain,
            task=self.task,
            action_repeat=self.action_repeat,
            control_timestep=environment.control_timestep,
            camera=environment.camera,
            renderer=environment.renderer,
            quality=self.quality if environment.renderer == "gl" else "",
            samples=environment.samples,
            action_minimum=tuple(environment.action_minimum.tolist()),
            action_maximum=tuple(environment.action_maximum.tolist()),
            joints=tuple(JointSpec(joint.name, joint.kind, joint.limited) for joint in environment.joints),
            policy=policy.name,
            policy_parameters=policy.parameters,
            versions=_versions(),
        )


def _progress_bar(console: Console) -> Progress:
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class FramesPerSecond(ProgressColumn):
        """Frames rendered a second, over the last steps."""

        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.0f} frames/s")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[episodes]} episodes"),
        FramesPerSecond(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


def _versions() -> dict[str, str]:
    """Versions of what makes the episodes what they are."""
    names = ("mujoco", "dm_control", "numpy", "h5py")
    return {"aime": aime.__version__} | {name: importlib.metadata.version(name) for name in names}
