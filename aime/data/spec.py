"""What a set of episodes is: shapes, task, and everything needed to produce the same episodes again."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

#: entries of qpos and of qvel that each kind of MuJoCo joint owns
JOINT_SIZES: Mapping[str, tuple[int, int]] = {"hinge": (1, 1), "slide": (1, 1), "ball": (4, 3), "free": (7, 6)}

LARGEST = 65536  # of any size in a spec: far above what is used, far below what a machine could not hold
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


def check_name(field: str, value: object) -> None:
    """Raise ValueError unless the value may become part of a file's name: what a file says decides where runs go."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{field}: expected a name of letters, digits, _, - and . (not first), found {value!r}")


def _check_texts(field: str, values: Sequence[object]) -> None:
    for value in values:
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError(f"{field}: expected printable text, found {value!r}")


def _check_size(field: str, value: object, least: int = 1) -> None:
    if type(value) is not int or not least <= value <= LARGEST:
        raise ValueError(f"{field}: expected a whole number from {least} to {LARGEST}, found {value!r}")


@dataclass(frozen=True)
class JointSpec:
    """One joint, in qpos order."""

    name: str
    kind: str
    """hinge, slide, ball or free"""
    limited: bool = False
    """Whether the model bounds its range; an unlimited hinge can turn round: only its sine and cosine are known."""

    def __post_init__(self) -> None:
        _check_texts("joint name", [self.name])
        if type(self.limited) is not bool:
            raise ValueError(f"joint {self.name!r}: expected limited to be true or false, found {self.limited!r}")
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
    bodies: tuple[str, ...] = ()
    """Names of the moving bodies in the order of their ids (`Window.body_ids` is i + 1 where bodies[i] is seen); empty
    where ids are not stored."""
    policy: str = ""
    """Name of the policy that chose the actions."""
    policy_parameters: tuple[str, ...] = ()
    """Names of the per-episode policy parameters, in the order in which the file stores them."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of the software that made the episodes (aime, mujoco, dm_control, numpy, ...)."""

    def __post_init__(self) -> None:
        if len(self.image_shape) != 3:
            raise ValueError(f"image_shape: expected (C, H, W) of positive sizes, found {self.image_shape}")
        for size in self.image_shape:
            _check_size("image_shape", size)
        _check_size("action_size", self.action_size)
        _check_size("action_repeat", self.action_repeat)
        _check_size("camera", self.camera, least=-1)
        if self.samples is not None:
            _check_size("samples", self.samples)
        for name in ("domain", "task"):
            if getattr(self, name) != "":
                check_name(name, getattr(self, name))
        for name in ("renderer", "renderer_details", "quality", "policy"):
            _check_texts(name, [getattr(self, name)])
        _check_texts("policy_parameters", self.policy_parameters)
        _check_texts("bodies", self.bodies)
        if len(self.bodies) > 255:
            raise ValueError(f"bodies: expected at most 255 (ids are bytes), found {len(self.bodies)}")
        _check_texts("versions", [*self.versions, *self.versions.values()])
        step = self.control_timestep
        if step is not None and (type(step) not in (int, float) or not 0 < step < math.inf):
            raise ValueError(f"control_timestep: expected a positive number of seconds, found {step!r}")
        self._check_bounds()

    def _check_bounds(self) -> None:
        for name in ("action_minimum", "action_maximum"):
            bound = getattr(self, name)
            if bound and len(bound) != self.action_size:
                raise ValueError(f"{name}: expected {self.action_size} entries (action_size), found {len(bound)}")
            if not all(type(value) in (int, float) and not math.isnan(value) for value in bound):
                raise ValueError(f"{name}: expected numbers, found {bound}")
        if any(low > high for low, high in zip(self.action_minimum, self.action_maximum, strict=False)):
            raise ValueError(
                f"action_minimum: expected none above action_maximum, found {self.action_minimum} and "
                f"{self.action_maximum}"
            )

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
        """Inverse of `to_json`. Fields of a later schema that this version does not know are ignored.

        Raises:
            ValueError: the text is not such JSON; the message names the field.
        """
        try:
            values = json.loads(text)
        except RecursionError as error:
            raise ValueError("expected the JSON of a spec, found one nested too deep") from error
        if not isinstance(values, dict):
            raise ValueError(f"expected a JSON object, found {type(values).__name__}")  # noqa: TRY004 - of the text
        if values.get("renderer") and "renderer_details" not in values:
            # files from before the ray caster: all drawn by GL, and `renderer` told on which display
            values |= {"renderer": "gl", "renderer_details": values["renderer"]}
        known = {f.name for f in fields(cls)}
        values = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key in known
        }
        for key in ("image_shape", "action_minimum", "action_maximum", "joints", "bodies", "policy_parameters"):
            if not isinstance(values.setdefault(key, ()), tuple):
                raise ValueError(f"{key}: expected a list, found {values[key]!r}")  # noqa: TRY004 - of the text
        if not isinstance(values.setdefault("versions", {}), dict):
            raise ValueError(f"versions: expected an object, found {values['versions']!r}")  # noqa: TRY004
        values["joints"] = tuple(_joint(joint) for joint in values["joints"])
        values.setdefault("action_size", None)  # refused with its name, as any other wrong size
        return cls(**values)


def _joint(values: Any) -> JointSpec:
    try:
        return JointSpec(**values)
    except TypeError as error:
        raise ValueError(f"joints: expected name, kind and limited, found {values!r}") from error
