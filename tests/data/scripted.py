"""Episodes whose every value tells where it came from, so that any misalignment is visible."""

from __future__ import annotations

import numpy as np

from aime.data import Episode, EpisodeSpec, JointSpec

SPEC = EpisodeSpec(
    image_shape=(3, 12, 10),
    action_size=2,
    domain="scripted",
    task="count",
    action_repeat=2,
    joints=(JointSpec("slider", "slide"), JointSpec("root", "free"), JointSpec("hinge", "hinge")),
    bodies=("cart", "pole"),
    policy="smooth",
    policy_parameters=("correlation_steps", "amplitude"),
    action_minimum=(0.0, -2.0),
    action_maximum=(255.0, 100.0),
    versions={"mujoco": "3.17.0"},
)


def scripted_episode(number: int, length: int, spec: EpisodeSpec = SPEC) -> Episode:
    """Frame t is filled with t, and action t, reward t and physics t carry t and the episode's number."""
    t = np.arange(length)
    channels, height, width = spec.image_shape
    frames = np.broadcast_to(t[:, None, None, None] % 256, (length, channels, height, width)).astype(np.uint8)
    masks = (np.arange(height * width).reshape(height, width)[None] + t[:, None, None]) % 3 == 0
    return Episode(
        observations=np.ascontiguousarray(frames),
        actions=np.stack([t, np.full(length, number)], axis=1).astype(np.float32),
        rewards=(t + 0.5).astype(np.float32),
        continues=(t < length - 1).astype(np.float32),
        physics=np.tile((t + 1 / 3)[:, None], (1, spec.physics_size)),
        body_masks=masks,
        body_ids=np.where(masks, 1 + t[:, None, None] % 2, 0).astype(np.uint8),
        seed=1000 + number,
        reset_index=number,
        policy_parameters=(float(number), 0.5),
    )
