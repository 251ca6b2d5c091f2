"""`python -m evalspec`: the same command."""

import sys

from evalspec.cli import main

sys.exit(main())
