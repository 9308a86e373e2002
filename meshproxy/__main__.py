"""`python -m meshproxy`: the command, where it is not installed."""

import sys

from meshproxy.cli import main

sys.exit(main())
