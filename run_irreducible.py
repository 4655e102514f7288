"""Reference models under the name of the original repository: ``python run_irreducible.py experiment=NAME``."""

import sys

from reducr.cli import main

if __name__ == "__main__":
    main(["irreducible", *sys.argv[1:]])
