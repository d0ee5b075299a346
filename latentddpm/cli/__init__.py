"""Command line: options → configuration → one call.

    data      doctor, pack, encode
    train     train-vae, train-diffusion
    generate  generate
    evaluate  evaluate
    models    info, merge, convert, export

These modules hold no algorithms and import neither Keras nor TensorFlow, so `--help` answers at
once; a command imports what it needs when it runs. Results go to stdout, everything else to
stderr. Exit codes: see `usage`.
"""

from __future__ import annotations

import click

from latentddpm import __version__
from latentddpm.cli import data, evaluate, generate, models, train
from latentddpm.cli.usage import Commands


@click.group(
    "latentddpm",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__)
def main() -> None:
    """Train and run latent diffusion models in Keras 3.

    \b
    From your images to your model:
      latentddpm train-vae       --data DIR --config configs/small-64-vae.yaml --out runs/vae
      latentddpm train-diffusion --data DIR --vae runs/vae --config ... --out runs/ldm
      latentddpm generate        --prompt "red apple" --model runs/ldm
    """


for one in (
    *(data.doctor, data.pack, data.encode),
    *(train.train_vae, train.train_diffusion),
    *(generate.generate, evaluate.evaluate),
    *(models.info, models.merge, models.convert, models.export),
):
    main.add_command(one)
