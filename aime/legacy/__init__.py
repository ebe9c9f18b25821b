"""Old code runs: `import aime.legacy` makes the import paths of the original AIME's documents importable.

    import aime.legacy
    from VRNN.dpgmm_stickbreaking_prior_vrnn import DPGMMVariationalRecurrentAutoencoder
    from src.training import DMCVBDataset
    from multi_task_learning import RGB

`python -m aime.legacy old_script.py [arguments]` runs a script so, unchanged. Nothing is global without this import;
`aime.legacy.remove()` takes it back. What there is stands in one table, `aime.legacy.names.MODULES`.
"""

from aime.legacy.finder import install, remove

__all__ = ["install", "remove"]

install()
