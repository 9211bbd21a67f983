"""`python -m tessella` is the command `tessella`.

Imports beside it: cli.
"""

import sys

from tessella.cli import main

sys.exit(main())
