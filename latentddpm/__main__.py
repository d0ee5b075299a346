"""Command line as `python -m latentddpm`, for where its script is not on the path."""

from latentddpm.cli import main

main(prog_name="latentddpm")
