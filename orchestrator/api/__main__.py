"""Lets `python -m layersweep` be the command."""

import sys

from layersweep.cli import main

sys.exit(main())
