"""`python -m lbagent`."""

import sys

from lbagent.cli import main

sys.exit(main())
