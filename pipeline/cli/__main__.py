"""`python -m pipeline.cli`: the same command without the console script."""

from pipeline.cli import main

main()
