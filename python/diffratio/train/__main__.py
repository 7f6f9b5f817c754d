"""`accelerate launch -m diffratio.train ...`: the same command in several processes."""

import sys

from ..cli import run

run("train", sys.argv[1:])
