"""Few steps beside many: prompts drawn with a distilled LoRA, and by the model as it is.

    python benchmarks/few_steps.py --lora runs/lcm/lora.safetensors --out few.png [--model NAME]

For each prompt and the same seed there are two pictures: left the model's own settings, right
those of the LoRA. Whether the right one is recognised as well as the left one is for eyes to say.
The last row of prompts holds concepts that emoji-128 was not trained on. Prints the settings, and
the seconds of drawing, as JSON.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from latentddpm.utils.startup import import_keras

PROMPTS = (
    *("red apple", "cat face", "rocket", "pizza", "sunflower", "panda", "grinning face"),
    *("dog face", "star", "snowman", "red heart", "house", "deciduous tree", "automobile"),
    *("banana", "strawberry", "watermelon", "mushroom", "penguin", "tiger face", "frog"),
    *("fish", "turtle", "butterfly", "rose", "cactus", "hamburger", "octopus"),
    *("birthday cake", "guitar", "soccer ball", "basketball", "airplane", "sailboat"),
    *("umbrella", "key", "light bulb", "crown", "ghost", "rainbow"),
)
HELD_OUT = (
    *("broccoli", "bus", "hedgehog", "monkey", "mouse face", "lollipop", "violin"),
    *("volcano", "tropical fish", "green book"),
)
ROWS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="emoji-128")
    parser.add_argument("--lora", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    import_keras()
    from latentddpm.interop.lora import merge_lora
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion
    from latentddpm.utils.images.labels import labelled_grid
    from latentddpm.utils.pixels import save_png

    model = LatentDiffusion.load(options.model)
    prompts = [*PROMPTS, *HELD_OUT]
    seeds = [options.seed] * len(prompts)
    drawn, settings, seconds = [], [], []
    for lora in (None, options.lora):
        if lora is not None:
            merge_lora(model, lora)
        model.generate(prompts[:1], seed=0)  # traces the functions
        start = time.perf_counter()
        drawn.append(model.generate(prompts, seed=seeds))
        seconds.append(round(time.perf_counter() - start, 1))
        settings.append(str(model.settings()))
    pairs = [np.stack(pair) for pair in zip(*drawn, strict=True)]
    columns = [
        labelled_grid(pairs[first : first + ROWS], prompts[first : first + ROWS])
        for first in range(0, len(prompts), ROWS)
    ]
    save_png(options.out, np.concatenate(columns, axis=1), {"settings": settings})
    print(json.dumps({"settings": settings, "seconds": seconds}, indent=2))


if __name__ == "__main__":
    main()
