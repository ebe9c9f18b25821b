"""What a set of episodes is: shapes, task, and everything needed to produce the same episodes again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

#: entries of qpos and of qvel that each kind of MuJoCo joint owns
JOINT_SIZES: Mapping[str, tuple[int, int]] = {"hinge": (1, 1), "slide": (1, 1), "ball": (4, 3), "free": (7, 6)}


@dataclass(frozen=True)
class JointSpec:
    """One joint, in qpos order."""

    name: str
    kind: str
    """hinge, slide, ball or free"""
    limited: bool = False
    """Whether the model bounds its range; an unlimited hinge can turn round: only its sine and cosine are known."""

    def __post_init__(self) -> None:
        if self.kind not in JOINT_SIZES:
            raise ValueError(f"joint {self.name!r}: expected a kind among {sorted(JOINT_SIZES)}, found {self.kind!r}")

    @property
    def qpos_size(self) -> int:
        """Entries of qpos that the joint owns."""
        return JOINT_SIZES[self.kind][0]

    @property
    def qvel_size(self) -> int:
        """Entries of qvel that the joint owns."""
        return JOINT_SIZES[self.kind][1]


@dataclass(frozen=True)
class EpisodeSpec:
    """Description shared by every episode of a source.

    Fields that a foreign format does not record keep their defaults (``""``, ``()`` or ``None``).
    """

    image_shape: tuple[int, int, int]
    """(C, H, W) of the uint8 frames."""
    action_size: int
    """A, entries of an action."""
    domain: str = ""
    task: str = ""
    action_repeat: int = 1
    """Physics control steps per stored step; rewards are summed over them."""
    control_timestep: float | None = None
    """Seconds between two stored frames (action repeat included)."""
    camera: int = 0
    renderer: str = ""
    """What drew the frames: gl or raycast."""
    renderer_details: str = ""
    """The GL displays, or the ray caster's instruction set, on which they were drawn."""
    quality: str = ""
    """Rendering quality of the GL renderer: exact, high or fast."""
    samples: int | None = None
    """Rays a pixel of the ray caster."""
    action_minimum: tuple[float, ...] = ()
    action_maximum: tuple[float, ...] = ()
    joints: tuple[JointSpec, ...] = ()
    """Joints in qpos order; empty where the physics state is not stored."""
    policy: str = ""
    """Name of the policy that chose the actions."""
    policy_parameters: tuple[str, ...] = ()
    """Names of the per-episode policy parameters, in the order in which the file stores them."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the software that made the episodes (aime, mujoco, dm_control, numpy, ...)."""

    def __post_init__(self) -> None:
        if len(self.image_shape) != 3 or min(self.image_shape) < 1:
            raise ValueError(f"image_shape: expected (C, H, W) of positive sizes, found {self.image_shape}")
        if self.action_size < 1:
            raise ValueError(f"action_size: expected at least 1, found {self.action_size}")
        for name in ("action_minimum", "action_maximum"):
            bound = getattr(self, name)
            if bound and len(bound) != self.action_size:
                raise ValueError(f"{name}: expected {self.action_size} entries (action_size), found {len(bound)}")

    @property
    def qpos_size(self) -> int:
        """nq, entries of qpos."""
        return sum(joint.qpos_size for joint in self.joints)

    @property
    def qvel_size(self) -> int:
        """nv, entries of qvel."""
        return sum(joint.qvel_size for joint in self.joints)

    @property
    def physics_size(self) -> int:
        """nq + nv, entries of a stored physics state (qpos, then qvel)."""
        return self.qpos_size + self.qvel_size

    @property
    def qpos_names(self) -> tuple[str, ...]:
        """Joint name of each qpos entry, (nq,)."""
        return tuple(joint.name for joint in self.joints for _ in range(joint.qpos_size))

    @property
    def qpos_kinds(self) -> tuple[str, ...]:
        """Joint kind of each qpos entry, (nq,): ``hinge`` entries are angles in radians."""
        return tuple(joint.kind for joint in self.joints for _ in range(joint.qpos_size))

    @property
    def qvel_names(self) -> tuple[str, ...]:
        """Joint name of each qvel entry, (nv,)."""
        return tuple(joint.name for joint in self.joints for _ in range(joint.qvel_size))

    @property
    def drawn_by(self) -> str:
        """Renderer and its setting in words, such as "gl, quality high"; empty where the source does not tell."""
        parts = [self.renderer, self.quality and f"quality {self.quality}"]
        parts += [f"{self.samples} samples a pixel"] if self.samples else []
        return ", ".join(filter(None, parts)) if self.renderer else ""

    def to_json(self) -> str:
        """The spec as JSON text, as the files store it."""
        return json.dumps(asdict(self) | {"versions": dict(self.versions)}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> EpisodeSpec:
        """Inverse of `to_json`. Fields of a later schema that this version does not know are ignored."""
        values: dict[str, Any] = json.loads(text)
        if values.get("renderer") and "renderer_details" not in values:
            # files from before the ray caster: all drawn by GL, and `renderer` told on which display
            values |= {"renderer": "gl", "renderer_details": values["renderer"]}
        known = {f.name for f in fields(cls)}
        values = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in known
        }
        values["joints"] = tuple(JointSpec(**joint) for joint in values.get("joints", ()))
        return cls(**values)
