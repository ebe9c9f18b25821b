"""The contestants: each opens a task and returns a function that does some work and counts it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.environments.settings import Settings

Advance = Callable[[], int]  # does some work and returns how many control steps or pictures it was
Open = Callable[[str, str, Settings], contextlib.AbstractContextManager[Advance]]
#: Random actions, made before the clock starts and used in turn.
ACTIONS = 64


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Attributes:
        open: begins a task.
        lacks: the command that installs what is missing; empty when nothing is.
        environment: variables of its process.
    """

    open: Open
    lacks: Callable[[], str] = lambda: ""
    environment: tuple[tuple[str, str], ...] = ()


def actions_of(specification: Any, *shape: int) -> np.ndarray:
    """Uniform actions between the bounds of a dm_control action spec, (ACTIONS, *shape, size)."""
    generator = np.random.default_rng(0)
    size = (ACTIONS, *shape, *specification.shape)
    return generator.uniform(specification.minimum, specification.maximum, size)


def needs(package: str, command: str) -> Callable[[], str]:
    """Says the command where the package is missing."""
    return lambda: "" if importlib.util.find_spec(package) else command


# ---------------------------------------------------------------------------------------------- ours


@contextlib.contextmanager
def ours(domain: str, task: str, settings: Settings, **options: Any) -> Iterator[Advance]:
    """ParallelEnvironment: control steps, or pictures where the options ask for them."""
    from aime.envs import ParallelEnvironment

    pictures = bool(options)
    count = settings.pixel_envs if pictures else settings.num_envs
    if pictures:
        options["pixels"] = (settings.size, settings.size)
    repeat, threads = settings.action_repeat, settings.threads
    with ParallelEnvironment(domain, task, count, num_threads=threads, action_repeat=repeat, seed=1, **options) as env:
        generator = np.random.default_rng(0)
        actions = [env.sample_actions(generator) for _ in range(ACTIONS)]
        env.reset()
        turn = 0

        def advance() -> int:
            nonlocal turn
            turn += 1
            env.step(actions[turn % ACTIONS])
            return count if pictures else count * repeat

        yield advance


def without_ray_caster() -> str:
    """The command that brings the ray caster, where this installation has none."""
    try:
        importlib.import_module("aime.envs.raycaster").instruction_sets()
    except (ImportError, AttributeError):
        return f"{sys.executable} -m pip install --no-build-isolation --no-deps -e ."
    return ""


# ---------------------------------------------------------------------------------------------- dm_control


def suite_environment(domain: str, task: str, seed: int) -> Any:
    """A dm_control environment, with dm_control's own choice of GL."""
    from aime.envs.extension import load_suite

    return load_suite().load(domain, task, task_kwargs={"random": seed})


@contextlib.contextmanager
def dm_control(domain: str, task: str, settings: Settings, *, pictures: bool) -> Iterator[Advance]:
    """Suite environments, one after another in one thread."""
    count = settings.pixel_envs if pictures else settings.num_envs
    environments = [suite_environment(domain, task, 1 + index) for index in range(count)]
    actions = actions_of(environments[0].action_spec())
    turn = 0
    for environment in environments:
        environment.reset()
        if pictures:  # makes its GL context, which takes longer than many pictures
            environment.physics.render(settings.size, settings.size, camera_id=0)

    def advance() -> int:
        nonlocal turn
        turn += 1
        environment = environments[turn % count]
        for _ in range(settings.action_repeat):
            if environment.step(actions[turn % ACTIONS]).last():
                environment.reset()
        if not pictures:
            return settings.action_repeat
        environment.physics.render(settings.size, settings.size, camera_id=0)
        return 1

    yield advance
    for environment in environments:
        environment.physics.free()


# ---------------------------------------------------------------------------------------------- Gymnasium


def suite_in_gymnasium(domain: str, task: str, seed: int, repeat: int, size: int) -> Any:
    """A dm_control environment as a `gymnasium.Env`; its picture is the observation where `size` is not 0."""
    import gymnasium

    class Suite(gymnasium.Env[Any, Any]):
        def __init__(self) -> None:
            self.suite = suite_environment(domain, task, seed)
            specification = self.suite.action_spec()
            low, high = (
                np.broadcast_to(bound, specification.shape) for bound in (specification.minimum, specification.maximum)
            )
            self.action_space = gymnasium.spaces.Box(low, high, dtype=np.float64)
            states = {
                name: gymnasium.spaces.Box(-np.inf, np.inf, entry.shape, np.float64)
                for name, entry in self.suite.observation_spec().items()
            }
            picture = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
            self.observation_space = picture if size else gymnasium.spaces.Dict(states)

        def observe(self, time_step: Any) -> Any:
            if size:
                return self.suite.physics.render(size, size, camera_id=0)
            return {name: np.asarray(value, np.float64) for name, value in time_step.observation.items()}

        def reset(self, **_: Any) -> Any:
            return self.observe(self.suite.reset()), {}

        def step(self, action: np.ndarray) -> Any:
            reward = 0.0
            for _ in range(repeat):
                time_step = self.suite.step(action)
                reward += time_step.reward or 0.0
                if time_step.last():
                    break
            return self.observe(time_step), reward, False, time_step.last(), {}

    return Suite()


@contextlib.contextmanager
def asynchronous(domain: str, task: str, settings: Settings, *, pictures: bool) -> Iterator[Advance]:
    """gymnasium.vector.AsyncVectorEnv: one process for each dm_control environment, results in shared memory."""
    from gymnasium.vector import AsyncVectorEnv

    count = settings.pixel_envs if pictures else settings.num_envs
    size = settings.size if pictures else 0
    # Processes start from a server that has imported all but dm_control, whose import opens the GL display: each of
    # them opens its own.
    multiprocessing.set_forkserver_preload(["mujoco", "scipy.sparse", "lxml.etree", "gymnasium", "bench.environments"])
    makers = [
        functools.partial(suite_in_gymnasium, domain, task, 1 + index, settings.action_repeat, size)
        for index in range(count)
    ]
    env = AsyncVectorEnv(makers, context="forkserver")
    try:
        env.reset(seed=1)
        env.action_space.seed(0)
        actions = [env.action_space.sample() for _ in range(ACTIONS)]
        turn = 0

        def advance() -> int:
            nonlocal turn
            turn += 1
            env.step(actions[turn % ACTIONS])
            return count if pictures else count * settings.action_repeat

        yield advance
    finally:
        env.close()


# ---------------------------------------------------------------------------------------------- EnvPool


@contextlib.contextmanager
def envpool(domain: str, task: str, settings: Settings, *, pictures: bool) -> Iterator[Advance]:
    """EnvPool, synchronous: all environments in one call."""
    if pictures:
        ctypes.CDLL("libEGL.so.1", mode=ctypes.RTLD_GLOBAL)  # EnvPool looks its functions up in the process
    library = importlib.import_module("envpool")
    name = "".join(part.capitalize() for part in (domain, *task.split("_"))) + "-v1"
    count = settings.pixel_envs if pictures else settings.num_envs
    size = settings.size
    drawing = {"from_pixels": True, "render_width": size, "render_height": size, "render_camera_id": 0}
    env = library.make_gymnasium(
        name,
        num_envs=count,
        num_threads=settings.threads,
        # Its frame_skip counts physics steps, and its default is those of one control step.
        frame_skip=settings.action_repeat * library.make_spec(name).config.frame_skip,
        max_episode_steps=1000 // settings.action_repeat,
        seed=1,
        **(drawing if pictures else {}),
    )
    env.reset()
    generator = np.random.default_rng(0)
    space = env.action_space
    actions = [generator.uniform(space.low, space.high, (count, *space.shape)) for _ in range(ACTIONS)]
    turn = 0

    def advance() -> int:
        nonlocal turn
        turn += 1
        env.step(actions[turn % ACTIONS])
        return count if pictures else count * settings.action_repeat

    yield advance
    env.close()


# ---------------------------------------------------------------------------------------------- MuJoCo alone


def starts_of(environment: Any, count: int) -> tuple[np.ndarray, int]:
    """Full physics states of the beginnings of `count` episodes, and their signature."""
    mujoco = importlib.import_module("mujoco")
    model, signature = environment.physics.model.ptr, mujoco.mjtState.mjSTATE_FULLPHYSICS
    starts = np.empty((count, mujoco.mj_stateSize(model, signature)))
    for start in starts:
        environment.reset()
        mujoco.mj_getState(model, environment.physics.data.ptr, start, signature)
    return starts, int(signature)


@contextlib.contextmanager
def rollout(domain: str, task: str, settings: Settings) -> Iterator[Advance]:
    """mujoco.rollout on as many threads: physics alone, and every state written down."""
    mujoco = importlib.import_module("mujoco")
    module = importlib.import_module("mujoco.rollout")
    environment = suite_environment(domain, task, 1)
    model = environment.physics.model.ptr
    starts, _ = starts_of(environment, settings.num_envs)
    control_steps = 20
    substeps = environment._n_sub_steps
    generator = np.random.default_rng(0)
    actions = generator.uniform(-1, 1, (settings.num_envs, control_steps, model.nu)).repeat(substeps, axis=1)
    data = [mujoco.MjData(model) for _ in range(settings.threads)]
    with module.Rollout(nthread=settings.threads) as runner:

        def advance() -> int:
            states, _ = runner.rollout(model, data, starts, actions)
            starts[:] = states[:, -1]  # go on from there: fallen bodies have more contacts than fresh ones
            return settings.num_envs * control_steps

        yield advance


@functools.cache
def floor_library() -> Any:
    """mj_step.cpp, compiled against the installed MuJoCo into build/, and loaded."""
    mujoco = importlib.import_module("mujoco")
    package = Path(str(mujoco.__file__)).parent
    library = next(iter([*package.glob("libmujoco.so*"), *package.glob("libmujoco*.dylib")]))
    source = Path(__file__).with_name("mj_step.cpp")
    target = source.parents[2] / "build" / f"mj_step-{mujoco.__version__}.so"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        target.parent.mkdir(parents=True, exist_ok=True)
        flags = ["-std=c++17", "-O3", "-shared", "-fPIC", "-pthread", f"-I{package / 'include'}"]
        command = [*compiler().split(), *flags, str(source), str(library), f"-Wl,-rpath,{package}", "-o", str(target)]
        subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(target))
    loaded.floor_make.restype = ctypes.c_void_p
    loaded.floor_make.argtypes = [ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
    loaded.floor_make.argtypes += [ctypes.c_uint]
    loaded.floor_run.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    loaded.floor_free.argtypes = [ctypes.c_void_p]
    return loaded


def compiler() -> str:
    """The C++ compiler; empty where there is none."""
    return os.environ.get("CXX") or next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "")


@contextlib.contextmanager
def mj_step(domain: str, task: str, settings: Settings) -> Iterator[Advance]:
    """mj_step alone, called from C++ threads: the floor."""
    environment = suite_environment(domain, task, 1)
    starts, signature = starts_of(environment, settings.num_envs)
    library = floor_library()
    address = environment.physics.model.ptr._address
    handle = library.floor_make(
        address, settings.num_envs, settings.threads, starts.ctypes.data, starts.shape[1], signature
    )
    repeat, calls = settings.action_repeat, 20
    steps = environment._n_sub_steps * repeat

    def advance() -> int:
        library.floor_run(handle, calls, steps)
        return settings.num_envs * calls * repeat

    yield advance
    library.floor_free(handle)


ENVPOOL = needs("envpool", "pip install envpool")
GYMNASIUM = needs("gymnasium", "pip install 'gymnasium>=1.1'")
STATES: dict[str, Contestant] = {
    "ours": Contestant(ours),
    "EnvPool": Contestant(functools.partial(envpool, pictures=False), ENVPOOL),
    "AsyncVectorEnv": Contestant(functools.partial(asynchronous, pictures=False), GYMNASIUM, (("MUJOCO_GL", "off"),)),
    "dm_control": Contestant(functools.partial(dm_control, pictures=False)),
    "mujoco.rollout": Contestant(rollout),
    "mj_step": Contestant(mj_step, lambda: "" if compiler() else "apt-get install g++"),
}
PICTURES: dict[str, Contestant] = {
    "ours, exact": Contestant(functools.partial(ours, quality="exact")),
    "ours, high": Contestant(functools.partial(ours, quality="high")),
    "ours, fast": Contestant(functools.partial(ours, quality="fast")),
    "ours, raycast": Contestant(functools.partial(ours, renderer="raycast"), without_ray_caster),
    "EnvPool": Contestant(functools.partial(envpool, pictures=True), ENVPOOL),
    "AsyncVectorEnv": Contestant(functools.partial(asynchronous, pictures=True), GYMNASIUM),
    "dm_control": Contestant(functools.partial(dm_control, pictures=True)),
}
KINDS: dict[str, dict[str, Contestant]] = {"control_steps": STATES, "pictures": PICTURES}
