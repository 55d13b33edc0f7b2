"""`python -m mtljax`: the command line without the script that the installation puts on the path."""

import sys

from mtljax.cli import main

sys.exit(main())
