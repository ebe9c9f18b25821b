"""One step of actor and critic on imagined trajectories."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from aime.control.actor import Actor
from aime.control.agac import Adversary, annealed
from aime.control.critic import Critic
from aime.control.heads import ContinueHead, TwoHotHead
from aime.control.imagination import Belief, Dream, LatentWorld, imagine, lambda_returns, reach
from aime.nn import apply_step
from aime.ranges import SHARE, OptionError, Range, check_ranges


@dataclass(frozen=True)
class ActorCriticConfig:
    """Constants on which DreamerV3 and its reproductions agree, and the two that differ here."""

    horizon: Annotated[int, Range(1, 1000)] = 15
    """Imagined actions."""
    discount: Annotated[float, SHARE] = 1 - 1 / 333
    """Of a step."""
    lambda_: Annotated[float, SHARE] = 0.95
    """Of the returns."""
    entropy: Annotated[float, Range(0, 1e3)] = 3e-4
    """Weight of the actor's entropy, beside returns scaled to about 1."""
    saturation: Annotated[float, Range(0, 1e3)] = 0.05
    """Weight of the squares by which raw means are beyond 1.5: at the bounds an actor learns nothing any more."""
    starts: Annotated[int, Range(1, 10**6)] = 96
    """Posterior states of a batch from which the actor is let go, drawn at random."""
    replay_loss: Annotated[float, Range(0, 1e3)] = 0.3
    """Weight of the critic's loss on the replayed rewards."""
    gradient: Literal["dynamics", "reinforce"] = "dynamics"
    """dynamics: the actor follows the gradient of returns through the world model. reinforce: the score function."""
    actor_rate: Annotated[float, Range(above=0, to=1)] = 3e-4
    """Learning rate."""
    critic_rate: Annotated[float, Range(above=0, to=1)] = 1e-3
    """Learning rate."""
    adversary: Annotated[float, Range(0, 1e3)] = 0.0
    """c, weight of the adversary's bonus at the start of the run; 0: none. Not shown to help; needs reinforce."""
    adversary_rate: Annotated[float, Range(above=0, to=1)] = 1e-4
    """Its learning rate."""
    grad_clip: Annotated[float, Range(above=0)] = 10.0
    """Largest norm of a gradient."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.adversary and self.gradient != "reinforce":
            raise OptionError(
                f"adversary: expected gradient reinforce, whose advantage it adds to, found {self.gradient}"
            )


class ReturnScale(nn.Module):
    """Moving average of the range between the 5th and 95th percentile of returns; at least 1.

    Small returns are not blown up, so that noise in the absence of rewards does not drive the actor.
    """

    width: Tensor
    started: Tensor
    shares: Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("width", torch.zeros(()))
        self.register_buffer("started", torch.zeros(()))
        self.register_buffer("shares", torch.tensor([0.05, 0.95]), persistent=False)

    @torch.no_grad()
    def update(self, returns: Tensor) -> Tensor:
        """Take in returns (any shape) and give the scale, ()."""
        low, high = torch.quantile(returns.flatten(), self.shares)
        # without the correction the first hundred steps would divide by a tenth of the range
        self.started.mul_(self.decay).add_(1 - self.decay)
        self.width.mul_(self.decay).add_((1 - self.decay) * (high - low))
        return (self.width / self.started).clamp_min(1.0)


class ActorCritic(nn.Module):
    """Actor, critic and adversary with their optimizers.

    Args:
        actor, critic: what learns, on the device where it is to.
        config: constants.
    """

    def __init__(self, actor: Actor, critic: Critic, config: ActorCriticConfig) -> None:
        super().__init__()
        self.actor, self.critic, self.config = actor, critic, config
        self.scale = ReturnScale().to(actor.middle.device)
        self.adversary = Adversary(actor, config.adversary_rate) if config.adversary else None
        self.actor_optimizer = make_adam(actor.parameters(), config.actor_rate)
        self.critic_optimizer = make_adam(critic.head.parameters(), config.critic_rate)

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """By name, for checkpoints."""
        own: dict[str, torch.optim.Optimizer] = {"actor": self.actor_optimizer, "critic": self.critic_optimizer}
        return own if self.adversary is None else {**own, "adversary": self.adversary.optimizer}

    def learn(
        self,
        world: LatentWorld,
        reward: TwoHotHead,
        continues: ContinueHead,
        start: Belief,
        replayed: tuple[Tensor, Tensor, Tensor],
        fraction: float | Tensor,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """One step of each.

        Args:
            world: whose imagination is used; it gets no gradient.
            reward: head on [h_t, z_t]; likewise.
            continues: likewise.
            start: beliefs (N, ...).
            replayed: features (B, T, F), rewards (B, T) and continues (B, T) of the batch.
            fraction: of the run that is over; a 0-d tensor where a graph is to read it.
            generator: source of randomness.
        """
        config = self.config
        with torch.set_grad_enabled(config.gradient == "dynamics"):
            dream = imagine(world, self.actor, reward, continues, start, config.horizon, generator)
            values = self.critic(dream.features)  # (N, H + 1)
            returns = lambda_returns(
                dream.rewards, dream.continues, values[:, 1:], config.discount, config.lambda_
            )  # (N, H)
        scale = self.scale.update(returns)
        weights = reach(dream.continues.detach(), config.discount)  # (N, H)
        features = dream.features[:, :-1].detach()  # (N, H, F)
        policy = self.actor(features)
        gain, metrics = self._gain(dream, policy, returns, values[:, :-1], fraction, features)
        entropy = policy.entropy()  # (N, H)
        excess = policy.excess()  # (N, H)
        actor_loss = -((gain / scale + config.entropy * entropy - config.saturation * excess) * weights).mean()
        metrics["actor_norm"] = step(self.actor_optimizer, actor_loss, self.actor.parameters(), config.grad_clip)
        if self.adversary is not None:
            metrics["adversary_kl"] = self.adversary.learn(policy, features, weights)
        critic_loss = (self.critic.loss(features, returns.detach()) * weights).mean()
        if config.replay_loss:
            critic_loss = critic_loss + config.replay_loss * self._replay_loss(*replayed)
        critic = self.critic.head.parameters()
        metrics["critic_norm"] = step(self.critic_optimizer, critic_loss, critic, config.grad_clip)
        self.critic.follow()
        found = {"return": returns, "value": values, "reward": dream.rewards, "entropy": entropy, "scale": scale}
        found |= {"saturation": (policy.mean.abs() > 0.9).float()}
        metrics |= {f"imagined_{name}": value.detach().mean() for name, value in found.items()}
        return {**metrics, "critic_loss": critic_loss.detach(), "actor_loss": actor_loss.detach()}

    def _gain(
        self, dream: Dream, policy: Any, returns: Tensor, values: Tensor, fraction: float | Tensor, features: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the actor raises, (N, H): returns through the world model, or log densities times advantages."""
        if self.config.gradient == "dynamics":
            return returns, {}
        advantage, metrics = (returns - values).detach(), {}  # (N, H)
        if self.adversary is not None:
            bonus = self.adversary.bonus(policy.detach(), features, dream.actions)  # (N, H)
            # in the units of the scaled advantage
            weight = annealed(self.config.adversary, fraction)
            advantage = advantage + weight * bonus * self.scale_now
            metrics["adversary_bonus"] = bonus.mean()
        return policy.log_prob(dream.actions) * advantage, metrics

    @property
    def scale_now(self) -> Tensor:
        """() the returns' scale as it was last updated."""
        return (self.scale.width / self.scale.started).clamp_min(1.0)

    def _replay_loss(self, features: Tensor, rewards: Tensor, continues: Tensor) -> Tensor:
        """() the critic's loss on what was really got: lambda returns along the batch's own rewards."""
        config = self.config
        with torch.no_grad():
            values = self.critic(features)  # (B, T)
            returns = lambda_returns(rewards[:, :-1], continues[:, :-1], values[:, 1:], config.discount, config.lambda_)
        return self.critic.loss(features[:, :-1], returns).mean()


def make_adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Adam for `step`; on a CUDA device the fused one, which is told there whether to skip a step."""
    chosen = list(parameters)
    return torch.optim.Adam(chosen, lr=learning_rate, eps=1e-7, fused=chosen[0].is_cuda or None)


def step(
    optimizer: torch.optim.Optimizer, loss: Tensor, parameters: Iterable[nn.Parameter], grad_clip: float
) -> Tensor:
    """One step of these parameters, skipped where the gradient is not finite; returns its norm before clipping."""
    chosen = list(parameters)
    # grad() walks only to these parameters: the world model on the way costs no gradients of its own
    for parameter, gradient in zip(chosen, torch.autograd.grad(loss, chosen), strict=True):
        parameter.grad = gradient
    norm = nn.utils.clip_grad_norm_(chosen, grad_clip)
    apply_step(optimizer, torch.isfinite(norm))
    optimizer.zero_grad(set_to_none=True)
    return norm.detach()
