"""Train an agent on state observations, in a loop to change: collect, train, evaluate.

python examples/control.py cartpole swingup 20
"""

import sys
from pathlib import Path

import torch

from aime.control.config import ControlConfig
from aime.control.loop import collect, evaluate, round_seed, update_count
from aime.control.run import begin


def main(domain: str, task: str, rounds: int) -> None:
    """So many rounds of four episodes each."""
    config = ControlConfig(domain=domain, task=task, observations="states")
    run = begin(config)
    for number in range(rounds):
        generator = torch.Generator().manual_seed(round_seed(config, number, 1))
        played = collect(run, number, generator)
        if number == 0:
            run.learner.begin(run.replay)
        for _ in range(update_count(config, played.steps)):
            batch = run.replay.sample(config.batch_size, config.sequence_length, (config.seed, run.progress.updates))
            learnt = run.learner.learn(batch, run.progress.updates, generator)  # the world model
            chosen = torch.randperm(len(learnt.start.latent))[: config.actor_critic.starts]
            features = learnt.start.features.unflatten(0, batch.rewards.shape)
            run.actor_critic.learn(  # actor and critic, from 96 of the batch's states
                run.agent.world,
                run.agent.reward,
                run.agent.continues,
                learnt.start.rows(chosen),
                (features, batch.rewards, batch.continues),
                number / rounds,
                generator,
            )
            run.progress.updates += 1
        print(f"round {number}: exploring {played.returns.mean():.1f}, evaluated {evaluate(run).returns.mean():.1f}")
    run.agent.save_pretrained(Path("runs") / f"{domain}-{task}-states" / "agent")
    run.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
