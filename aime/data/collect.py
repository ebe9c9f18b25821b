"""`aime collect`: play episodes of a Control Suite task and store them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import aime
from aime.data.collect_parts import Plan, join_parts, play, prepare
from aime.data.hdf5_writer import EpisodeWriter, hold_output
from aime.data.policies import Policy, make_policy
from aime.data.recording import Recorder, bodies_of
from aime.data.spec import EpisodeSpec, JointSpec, check_name
from aime.ranges import SEED, OptionError, Range, check_ranges
from aime.terminal import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from aime.envs import ParallelEnvironment
    from aime.locking import Lock

FULL_EPISODE = 1000  # control steps in an episode of the Control Suite
LONGEST_EPISODE = 1_000_000  # steps; an episode is held in memory until it ends
LARGEST_SIZE = 4096  # pixels
ENVIRONMENTS_OF_A_PART = 4  # on every machine: the seeds of the parts follow from it
#: what decides which episodes are played: a collection in parts goes on with the same alone
SETTINGS_OF_EPISODES = (
    "domain", "task", "episodes", "steps", "action_repeat", "size", "camera", "policy", "renderer", "quality",
    "samples", "seed", "split_seed", "masks", "part_episodes",
)  # fmt: skip


@dataclass
class Collect:
    """Play episodes of a DeepMind Control Suite task and store frames, actions, rewards, masks and physics in one file.

    Each episode is stored when it ends, in the directory with the suffix .partial, and all are joined to one file in
    the end: a collection that is killed leaves every episode it finished, readable under that name.

    With --workers the episodes are played in parts by so many processes, each part into a file of its own in the
    directory with the suffix .parts; --resume plays what is missing there. On a cluster every task plays its share with
    --worker, and --resume without it joins them.
    """

    domain: str = "cartpole"
    """Domain of the Control Suite."""
    task: str = "swingup"
    """Task of that domain."""
    episodes: Annotated[int, Range(1, 10**9)] = 50
    """Episodes to store."""
    steps: Annotated[int, Range(1, LONGEST_EPISODE)] | None = None
    """Steps of each episode at most, counted after the action repeat; the task's whole episode by default."""
    action_repeat: Annotated[int, Range(1, FULL_EPISODE)] = 2
    """Control steps for which an action is held; rewards are summed over them and one frame is rendered after them."""
    size: Annotated[int, Range(1, LARGEST_SIZE)] = 64
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
    """Store which pixels show a moving body, and which one (needed for the metrics that look at bodies)."""
    workers: Annotated[int, Range(1, 65536)] = 1
    """Processes; above 1 the collection is one in parts, whose episodes do not depend on how many there are."""
    worker: Annotated[int, Range(0, 65535)] | None = None
    """Play the parts of this one of the workers alone, from 0, and join nothing: a task of a cluster's array."""
    part_episodes: Annotated[int, Range(1, 10**6)] = 20
    """Episodes of a part at most: what a killed worker loses at most."""
    resume: bool = False
    """Continue a collection in parts."""
    out: Path | None = None
    """The file to write; data/DOMAIN_TASK.h5 by default."""
    overwrite: bool = False
    """Replace the file where it exists."""

    @property
    def path(self) -> Path:
        """The file that is written."""
        return self.out or Path("data") / f"{self.domain}_{self.task}.h5"

    def run(self) -> int:
        """Collect; returns 0.

        Raises:
            OptionError: a wrong setting; the message names it.
            LockedError: another process is collecting into the file.
            FileExistsError: the file exists and is not to be overwritten.
            DiskError: the disk is full or read-only; finished episodes are kept.
        """
        from aime.envs import ParallelEnvironment

        steps = self._checked_steps()  # nothing that is wrong may cost the start of the environments
        if self.workers > 1 or self.worker is not None or self.resume:
            return self._collect_parts()
        threads = self.threads or len(os.sched_getaffinity(0))
        with (
            hold_output(self.path, overwrite=self.overwrite) as lock,
            ParallelEnvironment(
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
            ) as environment,
        ):
            self._record(environment, make_policy(self.policy), steps, lock)
        return 0

    def _checked_steps(self) -> int:
        """Steps of an episode at most, after all settings have been checked."""
        check_ranges(self)
        try:
            for name, value in (("domain", self.domain), ("task", self.task)):
                check_name(name, value)
            make_policy(self.policy)
        except ValueError as error:
            raise OptionError(str(error)) from error
        if self.worker is not None and self.worker >= self.workers:
            raise OptionError(f"worker: expected 0..{self.workers - 1} of --workers, found {self.worker}")
        if self.overwrite and (self.resume or self.worker is not None):
            raise OptionError("overwrite: expected it without --resume and --worker, found both")
        return self.steps or FULL_EPISODE // self.action_repeat

    def _collect_parts(self) -> int:
        from rich.console import Console

        envs = min(self.num_envs or ENVIRONMENTS_OF_A_PART, self.part_episodes)
        plan = Plan(self.path.absolute(), self.episodes, self.part_episodes, self.workers)
        settings = {name: getattr(self, name) for name in SETTINGS_OF_EPISODES} | {"num_envs": envs}
        # the tasks of an array run side by side: whichever comes first makes the directory
        with contextlib.nullcontext() if self.worker is not None else hold_output(self.path, overwrite=True):
            if self.path.exists() and not self.overwrite:
                raise FileExistsError(f"{printable(self.path)} exists already; remove it or ask to overwrite")
            prepare(plan, settings, resume=self.resume or self.worker is not None, overwrite=self.overwrite)
            mine = range(plan.parts) if self.worker is None else plan.of_worker(self.worker)
            console, begin, before, missing = Console(), time.perf_counter(), plan.played(mine), plan.unfinished(mine)
            kept, progress = sum(map(plan.size, mine)) - sum(map(plan.size, missing)), _progress_bar(console)
            bar = progress.add_task(f"{self.domain} {self.task}", total=sum(map(plan.size, mine)), episodes=0)
            with progress:
                at_once = self.workers if self.worker is None else 1
                for stored in play(plan, missing, lambda part: self._part(plan, part, envs), at_once=at_once):
                    progress.update(bar, completed=stored + kept, episodes=stored + kept)
            seconds = time.perf_counter() - begin
            played = f"{plan.played(mine) - before} episodes played in {seconds:.1f} s"
            if self.worker is None:
                join_parts(plan, body_masks=self.masks, split_seed=self.split_seed)
                text = f"{printable(self.path)}: {self.episodes} episodes of {plan.parts} parts joined, {played}"
            else:
                text = f"{printable(plan.directory)}: parts {', '.join(map(str, mine)) or 'none'}, {played}"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
        return 0

    def _part(self, plan: Plan, part: int, envs: int) -> list[str]:
        """Arguments of the collection that is a part of this one; its environments' seeds follow the part before."""
        threads = self.threads or max(
            1, len(os.sched_getaffinity(0)) // (1 if self.worker is not None else self.workers)
        )
        given = {name: getattr(self, name) for name in SETTINGS_OF_EPISODES if name != "part_episodes"}
        given |= {"episodes": plan.size(part), "seed": self.seed + part * envs, "num_envs": min(envs, plan.size(part))}
        given |= {"threads": threads, "out": plan.file(part), "overwrite": True}
        arguments = ["collect"]
        for name, value in given.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                arguments.append(f"--{flag}" if value else f"--no-{flag}")
            elif value is not None:
                arguments += [f"--{flag}", str(value)]
        return arguments

    def _record(self, environment: ParallelEnvironment, policy: Policy, steps: int, lock: Lock) -> None:
        from rich.console import Console

        console, begin, frames = Console(), time.perf_counter(), 0
        bodies, body_of_geom = bodies_of(environment) if self.masks else ((), None)
        writer = EpisodeWriter(
            self.path,
            self._spec(environment, policy, bodies),
            body_masks=self.masks,
            split_seed=self.split_seed,
            overwrite=self.overwrite,
            lock=lock,
        )
        progress = _progress_bar(console)
        rounds = -(-self.episodes // environment.num_envs)
        bar = progress.add_task(f"{self.domain} {self.task}", total=rounds * environment.num_envs * steps, episodes=0)
        recorder = Recorder(
            environment,
            policy,
            steps=steps,
            seed=self.seed,
            body_of_geom=body_of_geom,
            on_step=lambda _: progress.advance(bar, environment.num_envs),
        )
        try:
            with progress, writer:
                for episode in recorder.episodes(self.episodes):
                    # the threads choose their GL display when they first draw
                    writer.spec = dataclasses.replace(writer.spec, renderer_details=environment.renderer_details)
                    writer.append(episode)
                    frames += len(episode.actions)
                    progress.update(bar, episodes=len(writer))
        except KeyboardInterrupt:
            console.print(
                f"interrupted: {len(writer)} whole episodes are in {printable(writer.partial)}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
            raise
        for number, reason in recorder.faults:
            console.print(f"episode {number} was dropped, its physics failed: {reason}", markup=False)
        seconds = time.perf_counter() - begin
        console.print(
            f"{printable(self.path)}: {len(writer)} episodes, {frames:,} frames in {seconds:.1f} s "
            f"({frames / seconds:.0f} frames/s), {writer.path.stat().st_size / 1e6:.1f} MB",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _spec(self, environment: ParallelEnvironment, policy: Policy, bodies: tuple[str, ...]) -> EpisodeSpec:
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
            bodies=bodies,
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
