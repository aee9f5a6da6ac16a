"""`python -m cl_zoo`: the command line, for `torchrun` too."""

from __future__ import annotations

from cl_zoo.cli.main import main

if __name__ == "__main__":
    main()
