"""`python -m stethoscope`: the command line."""

import sys

from stethoscope.cli import main

sys.exit(main())
