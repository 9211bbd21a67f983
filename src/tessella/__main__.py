"""`python -m tessella` is the command `tessella`."""

import sys

from tessella.cli import main

sys.exit(main())
