"""DeepMind Control Suite tasks, stepped and rendered in batches by C++.

`ParallelEnvironment` is the native face: numpy arrays with a leading environment axis. MuJoCo, dm_control and the
compiled extension are imported when the first environment is made, so `import aime.envs` works without them.

Other faces of the same environments: `GymnasiumVectorEnvironment`, `GymnasiumEnvironment` and `DmEnvironment`, imported
when they are asked for. Where Gymnasium is installed, importing this package registers the tasks with it, as
`aime/cartpole-swingup-v0` and so on.
"""

import importlib
from typing import TYPE_CHECKING, Any

from aime.envs.faces import registration
from aime.envs.parallel_environment import ParallelEnvironment
from aime.envs.raycaster import RayCaster
from aime.envs.time_step import EnvironmentState, FinalObservation, Joint, StepType, TimeStep

if TYPE_CHECKING:
    from aime.envs.faces.dm import DmEnvironment
    from aime.envs.faces.single import GymnasiumEnvironment
    from aime.envs.faces.vector import GymnasiumVectorEnvironment

__all__ = [
    "DmEnvironment",
    "EnvironmentState",
    "FinalObservation",
    "GymnasiumEnvironment",
    "GymnasiumVectorEnvironment",
    "Joint",
    "ParallelEnvironment",
    "RayCaster",
    "StepType",
    "TimeStep",
]

#: face -> (module, what it needs)
_FACES = {
    "DmEnvironment": ("aime.envs.faces.dm", "dm_env"),
    "GymnasiumEnvironment": ("aime.envs.faces.single", "gymnasium>=1.1"),
    "GymnasiumVectorEnvironment": ("aime.envs.faces.vector", "gymnasium>=1.1"),
}


def __getattr__(name: str) -> Any:
    if name not in _FACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, requirement = _FACES[name]
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ImportError(f"{name} needs {requirement} ({error}): pip install '{requirement}'") from error


registration.register()
