"""`python -m wisp` is the `wisp` command."""

from wisp.cli import main

main()
