"""Command line: options → configuration → one call.

    data      doctor, pack, encode
    whole     train
    train     train-vae, train-diffusion
    generate  generate, serve
    evaluate  evaluate
    models    info, merge, convert, export
    help/     configs, help
    push      push

These modules hold no algorithms and import neither Keras nor TensorFlow, so `--help` and the
shell's completion answer at once; a command imports what it needs when it runs. Results go to
stdout, everything else to stderr. Exit codes: see `usage`.
"""

from __future__ import annotations

import click

from latentddpm import __version__
from latentddpm.cli import data, evaluate, generate, models, push, serve, train, whole
from latentddpm.cli.help import shipped
from latentddpm.cli.help.completion import SHELLS, print_completion
from latentddpm.cli.usage import Commands


@click.group(
    "latentddpm",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
@click.option(
    "--completion",
    type=click.Choice(SHELLS),
    is_eager=True,
    expose_value=False,
    callback=print_completion,
    help="Print a shell's completion script; exit.",
)
def main() -> None:
    """Train and run latent diffusion models in Keras 3.

    \b
    From your images to your model:
      latentddpm train --data DIR --out RUN
      latentddpm generate --prompt "red apple" --model RUN

    \b
    Or step by step:
      latentddpm train-vae --data DIR --config small-64-vae --out runs/vae
      latentddpm train-diffusion --data DIR --config small-64-diffusion \\
          --vae runs/vae --out runs/ldm
    """


GROUPS = {
    "Data": (data.doctor, data.pack, data.encode),
    "Train": (whole.train, train.train_vae, train.train_diffusion),
    "Generate and evaluate": (generate.generate, serve.serve, evaluate.evaluate),
    "Models and runs": (models.info, models.merge, models.convert, models.export, push.push),
    "Help": (shipped.configs, shipped.show_page),
}
"""Title in `--help` → its commands."""

for title, commands in GROUPS.items():
    main.add_group(title, commands)
