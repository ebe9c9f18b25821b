"""`aime control`: train an agent that learns in imagination."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch

from aime.command import INTERRUPTED
from aime.control.actor_critic import ActorCriticConfig
from aime.control.agent import Agent
from aime.control.config import ControlConfig
from aime.control.loop import control
from aime.control.outcome import final_episodes, record, write_report
from aime.control.run import Run
from aime.devices import choose_device
from aime.files import write_json
from aime.ranges import SEED, SHARE, Range, check_ranges
from aime.terminal import printable
from aime.training.config import CudaGraph


@dataclass
class Control:
    """Train an agent of a Control Suite task, online, with a world model in whose imagination it learns to act."""

    domain: str = "cartpole"
    """Domain of the Control Suite."""
    task: str = "swingup"
    """Task of that domain."""
    minutes: Annotated[float, Range(above=0, to=1e6)] = 90.0
    """Wall-clock minutes, those of sessions before a --resume included."""
    observations: Literal["pixels", "states"] = "pixels"
    """pixels: frames of the ray caster, this project's world model. states: dm_control's observations, a small one."""
    out: Path | None = None
    """Run directory. Default: runs/control-DOMAIN-TASK-OBSERVATIONS."""
    resume: bool = False
    """Go on from the directory's checkpoint; the run goes on as if it had never stopped."""
    seed: Annotated[int, SEED] = 1
    """Of environments, networks and all draws."""
    num_envs: Annotated[int, Range(0, 4096)] = 0
    """Environments at once; 0: 16 for pixels, 4 for states."""
    action_repeat: Annotated[int, Range(1, 1000)] = 2
    """Control steps for which an action is held. Imagination looks 15 actions ahead; cartpole from pixels wants 4."""
    train_ratio: Annotated[int, Range(0, 100_000)] = 0
    """Frames trained on for each frame collected; 0: 32."""
    time_limit: Annotated[float, Range(above=0)] | None = None
    """Seconds of an episode; the task's own by default."""
    gradient: Literal["dynamics", "reinforce"] = "dynamics"
    """What moves the actor: the gradient of returns through the world model, or the score function."""
    entropy: Annotated[float, Range(0, 1e3)] = 3e-4
    """Weight of the actor's entropy."""
    discount: Annotated[float, SHARE] = 1 - 1 / 333
    """Of rewards, a step."""
    adversary: Annotated[float, Range(0, 1e3)] = 0.0
    """Weight of the adversary's bonus at the start (AGAC); needs --gradient reinforce. Not shown to help: off."""
    preset: Literal["laptop", "tier1", "tier2"] = "laptop"
    """Sizes and learning rate of the pixels' world model. Others than laptop are for a GPU; not shown to help."""
    batch_size: Annotated[int, Range(0, 65536)] = 0
    """Windows of a batch; 0: 32 for pixels, 8 for states."""
    replay_gigabytes: Annotated[float, Range(0.01, 1e5)] = 2.0
    """Memory of the replay; the oldest episodes are dropped beyond it."""
    device: str = "auto"
    """Where the agent acts and learns: cpu, cuda, or auto, which is the GPU where there is one."""
    cuda_graph: CudaGraph = "auto"
    """Acting and all steps of training as CUDA graphs: auto, wherever the device is a GPU."""
    final_episodes: Annotated[int, Range(1, 4096)] = 10
    """Episodes of the final evaluation and the report."""
    threads: Annotated[int, Range(0, 1024)] = 0
    """Threads of torch and of the environments; 0 leaves torch's own number."""

    def run(self) -> int:
        """Train, play the final episodes, write control.json and report.html; 130 where Ctrl-C ended the training."""
        check_ranges(self)
        device = choose_device(self.device)
        if self.threads:
            torch.set_num_threads(self.threads)
        names = ("gradient", "entropy", "discount", "adversary")
        config = ControlConfig(
            domain=self.domain,
            task=self.task,
            observations=self.observations,
            seed=self.seed,
            num_envs=self.num_envs,
            action_repeat=self.action_repeat,
            train_ratio=self.train_ratio,
            time_limit=self.time_limit,
            preset=self.preset,
            batch_size=self.batch_size,
            replay_bytes=round(self.replay_gigabytes * (1 << 30)),
            actor_critic=ActorCriticConfig(**{name: getattr(self, name) for name in names}),
        )
        out = self.out or Path("runs") / f"control-{self.domain}-{self.task}-{self.observations}"
        run = control(
            config, self.minutes, out, resume=self.resume, device=device, cuda_graph=self.cuda_graph, show=_show
        )
        run.close()
        if run.progress.rounds:
            self._finish(run, out)
        return INTERRUPTED if run.stopped_by == "SIGINT" else 0

    def _finish(self, run: Run, out: Path) -> None:
        """Final episodes of the best agent, by the returns of its evaluations, and what is written of them."""
        if not (out / "agent" / "agent.json").is_file():
            run.agent.save_pretrained(out / "agent")  # stopped before the first evaluation
        agent = Agent.from_pretrained(out / "agent", action_size=run.environment.action_size)
        outcome = final_episodes(agent, run.config, self.final_episodes)
        facts = record(run.config, run.progress, outcome, self.minutes, run.device)
        write_json(out / "control.json", facts)
        write_report(out / "report.html", facts, outcome)
        name = printable(facts["task"])
        print(f"{name}: return {facts['return']:.1f} over {len(facts['returns'])} episodes")
        print(f"agent    {printable(out / 'agent')}\nresults  {printable(out / 'control.json')}")
        print(f"report   {printable(out / 'report.html')}")


def _show(line: str) -> None:
    """One line, rewritten on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
    else:
        print(line, file=sys.stderr, flush=True)
