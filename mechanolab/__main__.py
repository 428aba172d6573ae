"""`python -m mechanolab` is the command `mechanolab`."""

import sys

from mechanolab.cli import main

sys.exit(main())
