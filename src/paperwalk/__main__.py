"""``python -m paperwalk``: the command line."""

import sys

from paperwalk.train.cli import main

if __name__ == "__main__":
    sys.exit(main())
