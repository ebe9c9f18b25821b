"""The environments as other libraries expect them: Gymnasium's two interfaces and dm_env's.

Each face is a thin layer over `aime.envs.ParallelEnvironment` and adds no numbers of its own. Gymnasium is optional:
`pip install 'aime[gymnasium]'`; its modules are imported when a face is used.
"""
