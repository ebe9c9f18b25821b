"""DeepMind Control Suite tasks, stepped and rendered in batches by C++.

`ParallelEnvironment` is the native face: numpy arrays with a leading environment axis. MuJoCo, dm_control and the
compiled extension are imported when the first environment is made, so `import aime.envs` works without them.
"""

from aime.envs.parallel_environment import ParallelEnvironment
from aime.envs.time_step import EnvironmentState, Joint, StepType, TimeStep

__all__ = ["EnvironmentState", "Joint", "ParallelEnvironment", "StepType", "TimeStep"]
