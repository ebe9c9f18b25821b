"""The sections of README.md and docs/ that `scripts/update_readme.py` writes."""
