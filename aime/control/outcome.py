"""What came of a run: final episodes, what imagination promised beside what happened, and the page that shows it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aime.control.agent import Agent
from aime.control.collecting import Round, play_round
from aime.control.config import ControlConfig
from aime.control.imagination import imagine
from aime.control.loop import EVALUATION_SEEDS
from aime.control.progress import PHASES, Progress
from aime.control.worlds import absorb, see
from aime.envs import ParallelEnvironment
from aime.evaluation.report.images import data_uri, enlarge, side_by_side
from aime.evaluation.report.style import STYLE
from aime.evaluation.report.svg import Series, legend, line_chart
from aime.evaluation.run_directory import device_name, installed_versions
from aime.files import write_text

LONGEST_FILM = 100  # pictures: of longer episodes every second, third, ... is shown
FILM_SIDE = 64


@dataclass(frozen=True)
class Outcome:
    """Final episodes of an agent.

    Attributes:
        played: the episodes, with films.
        promised: (P, N) sum of the rewards that imagination promised for the next ``horizon`` actions.
        happened: (P, N) what these actions brought.
        horizon: actions between two promises.
        action_repeat: control steps for which an action was held.
    """

    played: Round
    promised: NDArray[np.float64]
    happened: NDArray[np.float64]
    horizon: int
    action_repeat: int

    @property
    def correlation(self) -> float | None:
        """Between promises and what happened; None where one of them never varied."""
        if self.promised.std() < 1e-9 or self.happened.std() < 1e-9:
            return None
        return float(np.corrcoef(self.promised.ravel(), self.happened.ravel())[0, 1])


def final_episodes(agent: Agent, config: ControlConfig, episodes: int) -> Outcome:
    """Play new episodes without exploration, film them and note what imagination promises.

    Args:
        agent: acts; RuntimeError where the physics failed in every episode.
        config: of its run.
        episodes: how many, all at once.
    """
    horizon, generator = config.actor_critic.horizon, torch.Generator().manual_seed(config.seed)
    promises: list[Tensor] = []
    count = 0

    @torch.no_grad()
    def act(observation: Tensor, state: Any) -> tuple[Tensor, Any]:
        nonlocal count
        belief, memory = see(agent.world, observation, state, mean=True, generator=None)
        if count % horizon == 0:
            dream = imagine(agent.world, agent.actor, agent.reward, agent.continues, belief, horizon, generator)
            promises.append(dream.rewards.sum(1))  # (N,)
        count += 1
        action = agent.actor.scaled(agent.actor(belief.features).mean)  # (N, A)
        return action, absorb(agent.world, belief, action, memory)

    agent.eval()
    side = FILM_SIDE if config.states else config.image_size
    with ParallelEnvironment(
        config.domain,
        config.task,
        num_envs=episodes,
        num_threads=min(torch.get_num_threads(), episodes),
        action_repeat=config.action_repeat,
        seed=config.seed,
        pixels=(side, side),
        renderer="raycast",
        time_limit=config.time_limit,
    ) as environment:
        seeds = [2 * EVALUATION_SEEDS - 1 - env for env in range(episodes)]
        played = play_round(environment, act, seeds, states=config.states, keep_films=True)
    if not played.episodes:
        raise RuntimeError(f"the physics failed in every final episode: {played.faults[0]}")
    shortest = min(len(episode.rewards) for episode in played.episodes)
    whole = max(shortest // horizon, 1)
    happened = np.stack([episode.rewards[: whole * horizon] for episode in played.episodes], 1)  # (P H, N)
    sums = np.add.reduceat(happened, np.arange(0, len(happened), horizon))  # (P, N)
    kept = [env for env in range(episodes) if not any(f"seed {seeds[env]}:" in fault for fault in played.faults)]
    promised = torch.stack(promises[:whole]).numpy()[:, kept]
    return Outcome(played, promised.astype(np.float64), sums.astype(np.float64), horizon, config.action_repeat)


def command(config: ControlConfig, minutes: float) -> str:
    """The command line of a run: task, minutes, seed, and of the options that decide how it goes those that differ."""
    options: dict[str, Any] = {name: getattr(config, name) for name in ("domain", "task", "observations")}
    usual = ControlConfig(**options)
    options |= {"minutes": f"{minutes:g}", "seed": config.seed}
    names = ("num_envs", "action_repeat", "train_ratio", "time_limit", "preset", "batch_size")
    options |= {name: getattr(config, name) for name in names if getattr(config, name) != getattr(usual, name)}
    if config.replay_bytes != usual.replay_bytes:
        options["replay_gigabytes"] = config.replay_bytes / (1 << 30)
    of_learner = ("gradient", "entropy", "discount", "adversary")
    learner, its_usual = config.actor_critic, usual.actor_critic
    changed = [name for name in of_learner if getattr(learner, name) != getattr(its_usual, name)]
    options |= {name: getattr(learner, name) for name in changed}
    return " ".join(["aime control", *(f"--{name.replace('_', '-')} {value}" for name, value in options.items())])


def record(
    config: ControlConfig, progress: Progress, outcome: Outcome, minutes: float, device: torch.device | None = None
) -> dict[str, Any]:
    """The run, on a device (None: the CPU), as plain values for JSON."""
    returns, frames = outcome.played.returns, max(progress.frames, 1)
    error = float(returns.std(ddof=1) / np.sqrt(len(returns))) if len(returns) > 1 else None
    return {
        "benchmark": "control",
        "command": command(config, minutes),
        "task": f"{config.domain}-{config.task}",
        "observations": config.observations,
        "seed": config.seed,
        "minutes": progress.seconds / 60,
        "cpu_seconds": progress.cpu_seconds,
        "frames": progress.frames,
        "updates": progress.updates,
        "return": float(returns.mean()),
        "standard_error": error,
        "returns": [round(float(value), 2) for value in returns],
        "promise_correlation": outcome.correlation,
        "seconds_per_1000_frames": {name: 1e3 * progress.phases[name] / frames for name in PHASES},
        "cpu_seconds_per_1000_frames": {name: 1e3 * progress.cpu_phases[name] / frames for name in PHASES},
        "curve": progress.curve,
        "config": config.to_dict(),
        "device": device_name(device or torch.device("cpu")),
        "versions": installed_versions({}),
    }


def write_report(path: Path, facts: dict[str, Any], outcome: Outcome) -> None:
    """Write the page: return curve, films of best, median and worst episode, promises beside what happened."""
    title = f"Control of {facts['task']} from {facts['observations']}"
    head = (
        f"<p>Return {facts['return']:.1f} over {len(facts['returns'])} episodes without exploration, after "
        f"{facts['frames']:,} environment frames, {facts['updates']:,} updates, {facts['minutes']:.1f} minutes "
        f"({facts['cpu_seconds']:.0f} CPU seconds).</p>"
    )
    wall, cpu = (
        ", ".join(f"{name.replace('_', '-')} {value:.2f}" for name, value in facts[key].items())
        for key in ("seconds_per_1000_frames", "cpu_seconds_per_1000_frames")
    )
    split = f"Seconds per 1,000 environment frames: {wall}; CPU seconds: {cpu}."
    sections = [
        ("Return", _curve(facts["curve"]) + f"<p>{escape(split)}</p>"),
        ("Episodes", _films(outcome)),
        ("What imagination promised, and what happened", _promises(outcome)),
    ]
    body = "".join(f"<section><h2>{escape(name)}</h2>{content}</section>" for name, content in sections)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{head}{body}</main></body></html>\n"
    )
    write_text(path, page)


def _curve(curve: list[dict[str, float]]) -> str:
    if not curve:
        return '<p class="none">no evaluation yet</p>'
    frames = [row["frames"] for row in curve]
    lines = [
        Series("evaluated", frames, [row["evaluation/return"] for row in curve], "s1", markers=True),
        Series("while exploring", frames, [row["return"] for row in curve], "s3", dashed=True),
    ]
    names = legend([(line.name, line.color, line.dashed) for line in lines])
    return names + line_chart(lines, "Return of an episode", "environment frames", "return")


def _films(outcome: Outcome) -> str:
    order = np.argsort(-outcome.played.returns, kind="stable")
    chosen = [int(order[0]), int(order[len(order) // 2]), int(order[-1])]
    films = [outcome.played.films[episode] for episode in chosen]
    longest = max(map(len, films))
    stride = -(-longest // LONGEST_FILM)
    held = [np.concatenate([film, film[-1:].repeat(longest - len(film), 0)])[::stride] for film in films]
    source = data_uri(enlarge(side_by_side(held), 2), ".gif", 25.0)
    said = ", ".join(
        f"{name} {outcome.played.returns[episode]:.1f}"
        for name, episode in zip(("best", "median", "worst"), chosen, strict=True)
    )
    return f'<img alt="three episodes" src="{source}"><p>{escape(said)}; every {stride}th frame.</p>'


def _promises(outcome: Outcome) -> str:
    order = np.argsort(-outcome.played.returns, kind="stable")
    middle = int(order[len(order) // 2])
    times = [outcome.horizon * outcome.action_repeat * k for k in range(len(outcome.promised))]
    lines = [
        Series("promised", times, outcome.promised[:, middle], "s5", dashed=True),
        Series("happened", times, outcome.happened[:, middle], "s4"),
    ]
    correlation = outcome.correlation
    said = "" if correlation is None else f" Over all episodes they correlate by {correlation:.2f}."
    note = (
        f"<p>Sum of the rewards of the next {outcome.horizon} actions, along the median episode: as the actor, "
        f"sampling, imagined it from the frames before, and as the acting mean got it.{said}</p>"
    )
    names = legend([(line.name, line.color, line.dashed) for line in lines])
    return note + names + line_chart(lines, "Reward of the next actions", "environment frames", "reward")
