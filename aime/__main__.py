"""`python -m aime` is the `aime` command."""

import sys

from aime.cli import main

if __name__ == "__main__":
    sys.exit(main())
