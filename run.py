"""Target training under the name of the original repository: ``python run.py experiment=NAME``."""

import sys

from reducr.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
