"""`python -m mast3r` is the command `mast3r`."""

from __future__ import annotations

import sys

from mast3r.cli import main

if __name__ == "__main__":
    sys.exit(main())
