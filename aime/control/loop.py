"""The control loop: collect a round of episodes, train on the replay, evaluate, save; until the time is over.

Every round is a pure function of the checkpoint before it and of the seed: episodes begin with seeds made of the run's
and the round's number, and so do all random numbers. So a run that was killed and resumed plays the same episodes and
takes the same steps as one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aime.control.collecting import Acting, Round, agent_acts, play_round, random_acts
from aime.control.config import ControlConfig
from aime.control.imagination import Belief
from aime.control.progress import PHASES, DeviceStopwatch, Progress, Stopwatch
from aime.control.replay import ReplayBatch, on_device
from aime.control.run import Run, begin
from aime.control.saving import checkpoint_at, read_checkpoint, write_checkpoint
from aime.files import read_json, require_writable, write_json
from aime.ranges import OptionError
from aime.threads import threads
from aime.training.config import CudaGraph
from aime.training.metric_log import JSONLines
from aime.training.preemption import Preemption
from aime.training.rehearsal import sent

EVALUATION_SEEDS = 1 << 30  # far from those of collecting
STOPPING = "stopping after this step: whole rounds are kept"


def control(
    config: ControlConfig,
    minutes: float,
    directory: Path | None = None,
    *,
    resume: bool = False,
    device: torch.device | None = None,
    cuda_graph: CudaGraph = "auto",
    rounds: int | None = None,
    show: Callable[[str], None] = print,
    clock: Callable[[], float] = time.perf_counter,
) -> Run:
    """Train an agent for so many minutes, those of earlier sessions included; returns the run, to be closed.

    Args:
        config: what to train.
        minutes: of wall-clock time.
        directory: of checkpoint, replay, metrics and agent; None keeps nothing.
        resume: go on from the checkpoint in the directory.
        device: as of `begin`; a run may be resumed on another one.
        cuda_graph: as of `begin`.
        rounds: end after so many rounds, too.
        show: is given the progress line after every round.
        clock: seconds.

    Raises:
        OptionError: a directory with a run, without ``resume``; or ``resume`` without one.
        DataError, DiskError: an episode could not be stored: a reward that is NaN, say, or a full disk. The checkpoint
            and the episodes before it are kept, and `resume` goes on from there.
    """
    saved = None if directory is None else checkpoint_at(directory / "checkpoint")
    check_directory(config, directory, saved, resume)
    run = begin(config, directory, device, cuda_graph)
    if directory is not None and not resume:
        write_json(directory / "config.json", config.to_dict())
    try:
        if resume and saved is not None:
            restore(run, saved)
        else:
            run.replay.truncate(0)
        with contextlib.ExitStack() as open_files, Preemption(STOPPING) as stop:
            log = open_log(run, resume)
            if log is not None:
                open_files.callback(log.close)
            while run.progress.seconds < 60 * minutes and (rounds is None or run.progress.rounds < rounds):
                record = play_and_train(run, minutes, clock, lambda: stop.requested is not None)
                if record is None:
                    run.stopped_by = None if stop.requested is None else stop.requested.name
                    show(stopped_line(run.progress.rounds))
                    break
                save(run)
                if log is not None:
                    log.write(run.progress.rounds, record)
                show(progress_line(run, record, minutes))
    except BaseException:
        run.close()
        raise
    return run


def stopped_line(rounds: int) -> str:
    """What is left to do after a stop."""
    if rounds == 0:
        return "stopped in the first round, before there was a checkpoint: the same command begins anew"
    return f"stopped; round {rounds} is the last that is kept: the same command with --resume goes on after it"


def open_log(run: Run, resume: bool) -> JSONLines | None:
    """metrics.jsonl, without the lines after the round that a resumed run goes on from."""
    if run.directory is None:
        return None
    return JSONLines(run.directory / "metrics.jsonl", run.progress.rounds if resume else None)


def check_directory(config: ControlConfig, directory: Path | None, saved: Path | None, resume: bool) -> None:
    """Refuse to write over a run, or to resume what is none or another; OptionError."""
    if directory is None:
        return
    require_writable(directory)
    if resume and saved is None:
        raise OptionError(f"{directory}: expected a checkpoint to resume from, found none")
    if not resume and saved is not None:
        raise OptionError(f"{directory} holds a run already: expected --resume, or another directory")
    if resume:
        before = read_json(directory / "config.json")
        defaults = ControlConfig().to_dict()  # of what was no option yet when the run began
        different = [name for name, value in config.to_dict().items() if before.get(name, defaults[name]) != value]
        if different:
            raise OptionError(f"{directory}: expected the options of its run, found another {', '.join(different)}")


def play_and_train(
    run: Run, minutes: float, clock: Callable[[], float], stopped: Callable[[], bool]
) -> dict[str, float] | None:
    """One round: collect, train, evaluate. None where it was stopped: the next session plays it again."""
    config, progress = run.config, run.progress
    watch = Stopwatch(clock) if run.source is None else DeviceStopwatch(clock)
    number = progress.rounds
    torch.manual_seed(round_seed(config, number, 0))  # for whatever takes no generator
    generator = torch.Generator().manual_seed(round_seed(config, number, 1))
    if run.source is not None:
        run.source.manual_seed(round_seed(config, number, 2))
    collected = collect(run, number, generator)
    watch.lap("collect")
    if number + 1 == config.prefill_rounds:
        run.learner.begin(run.replay)
    trained = train(run, collected.steps, minutes, generator, stopped, watch)
    if trained is None:
        return None
    record = {f"train/{name}": value for name, value in trained.items()}
    record["return"] = float(collected.returns.mean())
    progress.rounds += 1
    progress.frames += collected.steps * config.action_repeat
    if number + 1 >= config.prefill_rounds and progress.rounds % config.evaluate_every == 0:
        watch.lap("model")
        result = evaluate(run)
        watch.lap("evaluate")
        record |= {"evaluation/return": float(result.returns.mean()), "evaluation/least": float(result.returns.min())}
    watch.settle()
    for name in PHASES:
        progress.phases[name] += watch.wall[name]
        progress.cpu_phases[name] += watch.cpu[name]
        record[f"seconds_per_1000_frames/{name}"] = 1e3 * watch.wall[name] / (collected.steps * config.action_repeat)
    wall, cpu = watch.total
    progress.seconds += wall
    progress.cpu_seconds += cpu
    record |= {"frames": progress.frames, "updates": progress.updates, "seconds": progress.seconds}
    record |= {"cpu_seconds": progress.cpu_seconds, "replay_steps": run.replay.steps, "faults": len(collected.faults)}
    if "evaluation/return" in record:
        names = ("frames", "updates", "seconds", "cpu_seconds", "return", "evaluation/return")
        progress.curve.append({name: float(record[name]) for name in names})
    return record


def round_seed(config: ControlConfig, number: int, stream: int) -> int:
    """Seed of a stream of random numbers of a round."""
    return int(np.random.SeedSequence([config.seed, number, stream]).generate_state(1)[0])


def collect(run: Run, number: int, generator: torch.Generator) -> Round:
    """Play the round's episodes and store them; RuntimeError where the physics failed in every one."""
    config, count = run.config, run.config.num_envs
    seeds = [config.seed * 1_000_003 % (1 << 28) + number * count + env for env in range(count)]
    act = agent_acts(run.agent, explore=True, generator=run.source or generator, acting=acting(run))
    if number < config.prefill_rounds or run.progress.updates < config.model_first:
        act = random_acts(run.environment.action_minimum.tolist(), run.environment.action_maximum.tolist(), generator)
    run.agent.eval()
    played = play_round(run.environment, act, seeds, states=config.states)
    if not played.episodes:
        raise RuntimeError(f"the physics failed in every episode of a round: {played.faults[0]}")
    for episode in played.episodes:
        run.replay.append(episode)
    return played


def acting(run: Run) -> Acting | None:
    """What acts in the agent's place."""
    return None if run.graphs is None else run.graphs.acting


def train(
    run: Run,
    steps: int,
    minutes: float,
    generator: torch.Generator,
    stopped: Callable[[], bool],
    watch: Stopwatch,
) -> dict[str, float] | None:
    """Steps of world model, actor and critic, as many as the train ratio gives for ``steps`` new ones.

    Returns:
        means of the metrics; None where it was stopped.
    """
    config, progress = run.config, run.progress
    totals: dict[str, Tensor] = {}
    updates = 0 if progress.rounds + 1 < config.prefill_rounds else update_count(config, steps)
    fraction = min(progress.seconds / (60 * minutes), 1.0)
    done = progress.updates
    for k in range(updates):
        if stopped():
            return None
        key, recent = (config.seed, done + k), round(config.recent * config.batch_size)
        batch = run.replay.sample(
            config.batch_size,
            config.sequence_length,
            key,
            recent=recent,
            newest=2 * config.num_envs,
            consecutive=config.consecutive,
        )
        batch = on_device(batch, run.device)
        learnt = run.learner.learn(batch, done + k, run.source or generator)
        watch.lap("model")
        add(totals, learnt.metrics)
        if done + k < config.model_first:
            continue
        chosen = torch.randperm(len(learnt.start.latent), generator=generator)[: config.actor_critic.starts]
        add(totals, imagine_and_learn(run, learnt.start, chosen, batch, fraction, generator))
        watch.lap("actor_critic")
    progress.updates += updates
    return {name: float(value) / updates for name, value in totals.items()}


def imagine_and_learn(
    run: Run, start: Belief, chosen: Tensor, batch: ReplayBatch, fraction: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """One step of actor and critic from the chosen rows (N,) of a batch's beliefs, and on its rewards."""
    rows = start.rows(sent(chosen, run.device))
    replayed = (start.features.unflatten(0, batch.rewards.shape), batch.rewards, batch.continues)  # (B, T, F)
    if run.graphs is not None:
        return run.graphs.actor_critic.learn(rows, replayed, fraction)
    agent = run.agent
    with threads(1):  # a hundred rows: several would wait for each other
        return run.actor_critic.learn(
            agent.world, agent.reward, agent.continues, rows, replayed, fraction, run.source or generator
        )


def add(totals: dict[str, Tensor], metrics: dict[str, Tensor]) -> None:
    """Sum up metrics of a step."""
    for name, value in metrics.items():
        totals[name] = totals.get(name, torch.zeros(())) + value.detach().float()


def update_count(config: ControlConfig, steps: int) -> int:
    """Steps of training for so many new frames of the agent."""
    return max(round(config.train_ratio * steps / (config.batch_size * config.sequence_length)), 1)


def evaluate(run: Run, *, keep_films: bool = False) -> Round:
    """One episode in each environment without exploration; always the same ones."""
    run.agent.eval()
    generator = torch.Generator().manual_seed(run.config.seed)
    seeds = [EVALUATION_SEEDS + env for env in range(run.config.num_envs)]
    act = agent_acts(run.agent, explore=False, generator=generator, acting=acting(run))
    return play_round(run.environment, act, seeds, states=run.config.states, keep_films=keep_films)


def optimizers(run: Run) -> dict[str, torch.optim.Optimizer]:
    """All of them, by name."""
    return {**run.learner.optimizers(), **run.actor_critic.optimizers()}


def modules(run: Run) -> dict[str, torch.nn.Module]:
    """What a checkpoint holds: the agent, the scale of returns, the adversary."""
    held: dict[str, torch.nn.Module] = {"agent": run.agent, "scale": run.actor_critic.scale}
    return held if run.actor_critic.adversary is None else {**held, "adversary": run.actor_critic.adversary}


def save(run: Run) -> None:
    """Checkpoint, and the agent: the last, and the best by evaluated return."""
    progress, root = run.progress, run.directory
    latest = progress.curve[-1]["evaluation/return"] if progress.curve else None
    better = latest is not None and (progress.best is None or latest > progress.best)
    if better:
        progress.best = latest
    if root is None:
        return
    values = {"progress": dataclasses.asdict(progress), "episodes": run.replay.count}
    write_checkpoint(root / "checkpoint", modules(run), optimizers(run), run.learner.tensors(), values)
    if better:
        run.agent.save_pretrained(root / "agent")


def restore(run: Run, saved: Path) -> None:
    """Put a run back to a checkpoint, the replay included."""
    extra, values = read_checkpoint(saved, modules(run), optimizers(run))
    run.learner.load_tensors(extra)
    run.progress = Progress(**values["progress"])
    run.replay.truncate(int(values["episodes"]))


def progress_line(run: Run, record: dict[str, Any], minutes: float) -> str:
    """Round, frames, returns, frames a second and the time left."""
    progress = run.progress
    left = max(60 * minutes - progress.seconds, 0)
    rate = progress.frames / max(progress.seconds, 1e-9)
    figures = [f"round {progress.rounds}", f"{progress.frames:,} frames", f"return {record['return']:.1f}"]
    if "evaluation/return" in record:
        figures.append(f"evaluated {record['evaluation/return']:.1f}")
    split = "/".join(f"{record.get(f'seconds_per_1000_frames/{name}', 0.0):.2f}" for name in PHASES)
    figures += [f"{rate:.0f} frames/s", f"s/1,000 frames {split}", f"ETA {int(left // 60)}:{int(left % 60):02d}"]
    return "  ".join(figures)
