"""`python -m lbagent`."""

from lbagent.cli import run

run()
