"""`python -m latentddpm`: the command line, where its script is not on the path."""

from latentddpm.cli import main

main(prog_name="latentddpm")
