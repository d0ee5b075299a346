"""Make four images from Python and save each with its making inside.

python examples/generate.py "red apple"
"""

import sys

import latentddpm
from latentddpm.utils.pixels import grid, save_png


def main(prompt: str = "red apple", out: str = "example.png") -> None:
    model = latentddpm.LatentDiffusion.load("weights/emoji-128")
    images = model.generate(prompt, num_images=4, seed=0, progress=True)  # uint8 (4, 64, 64, 3)
    save_png(out, grid([images]))
    print(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
