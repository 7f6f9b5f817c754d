"""`python -m diffratio`: the command line where no script is installed."""

from .cli import main

main()
