"""`aime play`: whole episodes of a trained run, with a confidence interval and a film."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from aime.control.episodes import frames_of, observations_of
from aime.control.imaginable import Head, WorldModelImaginable
from aime.control.planner import make_planner
from aime.control.planning import PlanningPolicy, Policy
from aime.control.playing import Played, play
from aime.control.rewards import choose_reward
from aime.data import EpisodeSource, EpisodeSpec, open_source
from aime.devices import choose_device
from aime.envs import ParallelEnvironment
from aime.evaluation.run_directory import RunDirectory, device_name, installed_versions
from aime.files import read_json, require_writable, write_json
from aime.ranges import SEED, OptionError, Range, check_ranges
from aime.terminal import printable

FILM_SUFFIXES = (".gif", ".mp4")
LONGEST_FILM = 250  # pictures: longer episodes are shown with every second, third, ... picture
FILM_SIDE = 64  # pixels, of a player that sees none
FILMED = 20  # episodes of which pictures are kept
GAMMA = 1 - 1 / 333


@dataclass
class Play:
    """Play whole episodes with a trained run: its agent, or a planner over its world model."""

    run_path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory with an agent or with exported weights of a world model."""
    planner: Literal["none", "mppi", "icem"] = "none"
    """none: the run's agent acts. mppi, icem: each action is planned with the run's world model."""
    episodes: Annotated[int, Range(1, 100_000)] = 10
    """Whole episodes."""
    data: Path | None = None
    """Episode file that the model was trained on. Default: data.h5 in the run directory, or the file run.json names."""
    domain: str | None = None
    """Domain to play. Default: that of the data, or of the run."""
    task: str | None = None
    """Task to play, likewise."""
    action_repeat: Annotated[int, Range(1, 1000)] | None = None
    """Control steps for which an action is held. Default: that of the data, or 2."""
    horizon: Annotated[int, Range(1, 1000)] = 12
    """Actions of a plan."""
    samples: Annotated[int, Range(2, 10**6)] = 128
    """Action sequences of a planner's round."""
    iterations: Annotated[int, Range(1, 1000)] = 3
    """Rounds of a planner."""
    budget_ms: Annotated[float, Range(above=0)] | None = None
    """Milliseconds of a search at most: rounds that would go beyond are left out, so results depend on the machine."""
    discount: Annotated[float, Range(above=0, to=1)] = GAMMA
    """Of the rewards along a plan."""
    reward: Literal["auto", "own"] = "auto"
    """auto: fit a reward head to the data, and take it where it foresees held-out rewards better than the model's own.
    own: the model's, unchecked, which needs no data."""
    num_envs: Annotated[int, Range(0, 4096)] = 0
    """Episodes at once; 0 takes up to four."""
    seed: Annotated[int, SEED] = 1000
    """Seed of the episodes and the planner; training collects from other ones."""
    out: Path | None = None
    """JSON file of the results. Default: play.json in the run directory."""
    film: Path | None = None
    """Film of best, median and worst of the first 20 episodes, .gif or .mp4 (needs PyAV). Default: RUN/play.gif."""
    device: str = "cpu"
    """Where an agent runs: cpu, cuda, or auto, which is a GPU where there is one; a planner computes on the CPU."""

    def run(self) -> int:
        """Play, write the JSON and the film, print the return."""
        check_ranges(self)
        root = self._root()
        out, film = self.out or root / "play.json", self.film or root / "play.gif"
        if film.suffix not in FILM_SUFFIXES:
            raise OptionError(f"film: expected a path that ends in {' or '.join(FILM_SUFFIXES)}, found {film.name!r}")
        for path in (out, film):
            require_writable(path.parent)
        source = self._source(root)
        player, spec = self._player(root), None if source is None else source.spec
        domain, task = self._task(root, player.config, spec)
        with self._environment(domain, task, player, spec) as environment:
            _check_actions(root, player, environment)
            policy, facts = (player, {}) if self.planner == "none" else self._planning(player, source, environment)
            view = observations_of if _sees_states(player) else frames_of
            played = play(environment, policy, view, self.episodes, keep_films=FILMED, on_step=_progress(environment))
        record = {
            "benchmark": "play",
            "run": root.name,
            "task": f"{domain}-{task}",
            "planner": self.planner,
            "seed": self.seed,
            "action_repeat": environment.action_repeat,
            **facts,
            **played.record(),
            "device": device_name(choose_device(self.device if self.planner == "none" else "cpu")),
            "versions": installed_versions({}),
        }
        if isinstance(policy, PlanningPolicy):
            record["decision"] = policy.decisions.summary()
        write_json(out, record)
        write_film(film, played)
        _print_summary(record, played, out, film)
        return 0

    def _root(self) -> Path:
        if not self.run_path.is_dir():
            return RunDirectory.find(self.run_path).root  # says what is missing, with near names
        return self.run_path.parent if self.run_path.name == "weights" else self.run_path

    def _source(self, root: Path) -> EpisodeSource | None:
        """The episodes that the model was trained on, where they are still to be found."""
        if self.data is not None:
            return open_source(self.data)
        run = read_json(root / "run.json") if (root / "run.json").is_file() else {}
        for path in (root / "data.h5", *([Path(run["data"])] if isinstance(run.get("data"), str) else [])):
            if path.is_file():
                return open_source(path)
        return None

    def _task(self, root: Path, config: Any, spec: EpisodeSpec | None) -> tuple[str, str]:
        """Domain and task: as given, or of the agent, or of the data, or of run.json."""
        run = read_json(root / "run.json") if (root / "run.json").is_file() else {}
        named = str(run.get("task") or "").partition("-")
        own = getattr(config, "domain", ""), getattr(config, "task", "")  # an agent's; a world model has none
        domain = self.domain or own[0] or (spec.domain if spec is not None else "") or named[0]
        task = self.task or own[1] or (spec.task if spec is not None else "") or named[2]
        if not domain or not task:
            raise OptionError(f"{printable(root)} does not tell its task: expected --domain and --task")
        return domain, task

    def _player(self, root: Path) -> Any:
        """The run's agent, or, to plan with, the world model of a run without one."""
        directory = root / "agent"
        if directory.is_dir():
            device = choose_device(self.device) if self.planner == "none" else torch.device("cpu")
            agent = importlib.import_module("aime.control.agent").Agent.from_pretrained(directory, device=device)
            if self.planner != "none" and _sees_states(agent):
                raise OptionError(f"planner: expected none, the agent in {printable(directory)} has no model of frames")
            return agent
        if self.planner == "none":
            raise FileNotFoundError(
                f"{root}: expected an agent in {directory}, found none: a world model is played with --planner mppi or "
                "--planner icem"
            )
        return RunDirectory.find(root).load_model(torch.device("cpu"))

    def _environment(self, domain: str, task: str, player: Any, spec: EpisodeSpec | None) -> ParallelEnvironment:
        """Environments that draw what the model was trained on."""
        side = int(player.config.image_size) or FILM_SIDE
        repeat = getattr(player.config, "action_repeat", None) or (2 if spec is None else spec.action_repeat)
        renderer: Any = (spec.renderer if spec is not None else "") or "raycast"
        quality: Any = (spec.quality if spec is not None else "") or "high"
        return ParallelEnvironment(
            domain,
            task,
            num_envs=self.num_envs or min(self.episodes, 4),
            action_repeat=self.action_repeat or repeat,
            seed=self.seed,
            pixels=(side, side),
            camera=spec.camera if spec is not None else 0,
            renderer=renderer,
            quality=quality if renderer == "gl" else "exact",
            samples=spec.samples if spec is not None and renderer == "raycast" else None,
        )

    def _planning(
        self, model: Any, source: EpisodeSource | None, environment: ParallelEnvironment
    ) -> tuple[Policy, dict[str, Any]]:
        """The planner over the model, and what is worth knowing of it. An agent lends its heads and its critic."""
        head: Head | None = None
        facts: dict[str, Any] = {"reward": {"head": "own", "own_r2": None, "fitted_r2": None}}
        if _is_agent(model):
            facts["reward"]["head"] = "agent"
            print("reward, continuation and value beyond the horizon: the agent's heads")
        elif self.reward == "auto" and source is not None:
            _say("fitting a reward head")
            choice = choose_reward(model, source)
            head = choice.head
            facts["reward"] = {
                "head": "own" if head is None else "fitted",
                "own_r2": choice.own_r2,
                "fitted_r2": choice.fitted_r2,
            }
            print(choice.sentence())
        else:
            print("reward: the model's own head, not checked against any data")
        assert self.planner != "none"
        planner = make_planner(
            self.planner,
            environment.action_size,
            horizon=self.horizon,
            samples=self.samples,
            iterations=self.iterations,
            budget_ms=self.budget_ms,
        )
        facts["settings"] = {
            name: getattr(self, name) for name in ("horizon", "samples", "iterations", "budget_ms", "discount")
        }
        if _is_agent(model):
            world = WorldModelImaginable(model.world, model.reward, continues=model.continues, value=model.critic)
        else:
            world = WorldModelImaginable(model, head)
        policy = PlanningPolicy(
            world,
            planner,
            environment.action_minimum,
            environment.action_maximum,
            discount=self.discount,
            seed=self.seed,
        )
        return policy, facts


def _is_agent(player: Any) -> bool:
    return hasattr(player, "act")


def _sees_states(player: Any) -> bool:
    """Whether a player observes the task's numbers instead of frames."""
    return getattr(player.config, "observations", "pixels") == "states"


def _check_actions(root: Path, player: Any, environment: ParallelEnvironment) -> None:
    """Refuse a model or an agent of another task's actions before anything is played."""
    found, wanted = int(player.config.action_size), environment.action_size
    if found != wanted:
        raise ValueError(
            f"{printable(root)}: expected {wanted} action entries, as {environment.domain} {environment.task} takes, "
            f"found a model or an agent of {found}"
        )


def write_film(path: Path, played: Played) -> None:
    """Best, median and worst of the episodes whose pictures were kept, side by side (fewer where fewer were played)."""
    from aime.evaluation.report.images import enlarge, side_by_side, write_video

    order = np.argsort(-played.returns[: len(played.films)], kind="stable")
    chosen = list(dict.fromkeys([int(order[0]), int(order[len(order) // 2]), int(order[-1])]))
    films = [played.films[episode] for episode in chosen]
    longest = max(map(len, films))
    stride = -(-longest // LONGEST_FILM)
    panels = [_held(film, longest)[::stride] for film in films]
    write_video(path, enlarge(side_by_side(panels), 3), 25.0)


def _held(film: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
    """A film with its last picture held up to a length."""
    return np.concatenate([film, film[-1:].repeat(length - len(film), 0)])


def _print_summary(record: dict[str, Any], played: Played, out: Path, film: Path) -> None:
    interval = played.interval
    spread = "" if interval is None else f", 95 % interval {interval[0]:.1f} to {interval[1]:.1f}"
    rows = f"{len(played.returns)} episode{'s' if len(played.returns) > 1 else ''}"
    print(f"{printable(record['task'])}: return {played.mean:.1f}{spread} ({rows}, {played.seconds:.0f} s)")
    decision = record.get("decision")
    if decision:
        print(
            f"a decision: {decision['ms_median']:.0f} ms (95 %: {decision['ms_p95']:.0f} ms; CPU "
            f"{decision['cpu_ms_median']:.0f} ms), {decision['iterations']:.1f} rounds"
        )
    for fault in played.faults:
        print(f"fault    {printable(fault)}")
    print(f"results  {printable(out)}")
    print(f"film     {printable(film)} (best, median and worst of the first {len(played.films)} episodes)")


def _progress(environment: ParallelEnvironment) -> Any:
    """One line on a terminal, rewritten at every 10th step; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None

    def show(step: int, returns: NDArray[np.float64]) -> None:
        if step % 10 == 0:
            text = f"{environment.domain} {environment.task}: step {step}, mean return {returns.mean():.1f}"
            print(f"\r{text}", end="", file=sys.stderr, flush=True)

    return show


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr, flush=True)
