"""Table of the rules of a recipe, with their reasons, for the documentation.

The numbers are those of `rules`, `settings` and `budget`, so the table cannot go stale.
"""

from __future__ import annotations

from typing import NamedTuple

from latentddpm.recipe import budget, facts, rules, settings
from latentddpm.recipe.goal import QUALITIES, START_LEAST, START_PASSES
from latentddpm.recipe.rules import BATCHES, PIXELS_SIDE, READY, SMALL_SET, UNETS
from latentddpm.utils.timing import clock


class Rule(NamedTuple):
    """Rule: what it decides, how, and the reason or measurement."""

    decides: str
    how: str
    reason: str


def _each(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _pairs(values: dict[str, tuple[object, object]]) -> str:
    return ", ".join(f"{name} {cpu} (GPU {gpu})" for name, (cpu, gpu) in values.items())


_PSNR = {name: one.psnr for name, one in QUALITIES.items() if one.psnr is not None}

RULES = (
    Rule(
        "first stage",
        f"images of at most {PIXELS_SIDE} pixels (the median of the shorter sides): none",
        "pixels are as few as latents, and no autoencoder has to be trained",
    ),
    Rule(
        "",
        f"else the autoencoder of {READY}, if it reaches {_each(_PSNR)} dB (PSNR) on "
        "32 of the images, which are 8-bit pictures",
        "it takes no training: 28.9 dB on emoji it had not seen, 24.5 dB on 100 of Tux Paint's "
        "stamps; 24 dB is soft, and things are recognised",
    ),
    Rule(
        "",
        f"else, in less than {clock(rules.SHORT_SECONDS)} on a processor: none, at {PIXELS_SIDE} "
        "pixels",
        "small-64-vae takes 3.5 hours on two cores with AVX2; minutes give a blur",
    ),
    Rule("", "else one of its own", "best trains its own: what it loses, no UNet brings back"),
    Rule(
        "resolution",
        f"that of the first stage; of its own at most "
        f"{_pairs({name: one.side for name, one in QUALITIES.items()})}, and no more than the "
        "images have",
        "four times the pixels take four times the time",
    ),
    Rule(
        "",
        f"where the UNet of {READY} is trained on, {rules.READY_SIDES[-1]} if the time is too "
        f"short for enough examples at {rules.READY_SIDES[0]}, or, without a time, for the "
        f"quality {rules.QUICKEST} on a processor; not if the reconstruction is below "
        f"{rules.READY_LEAST:g} dB there",
        "3.4 times as many examples in the time; Tux Paint's stamps reach 19.9 dB at 64 pixels: "
        "letters, fruits and animals can be told",
    ),
    Rule(
        "autoencoder",
        "latents of 16 positions a side (32 from 256 pixels on), 4 channels; 32 channels wide "
        "(best on a GPU 64)",
        "the shapes of small-64-vae and emoji-128, whose latents a small UNet learned",
    ),
    Rule(
        "UNet",
        f"where the autoencoder of {READY} serves, {rules.CAPTIONED:.0%} of the images have a "
        f"caption, {facts.COMMON_PERCENTILE} % of these at most {rules.READY_TOKENS} tokens, "
        "and no setting names sizes: that of the same model, trained on with its text encoder; "
        "--init none begins anew",
        "on Tux Paint's stamps, after the same time at 64 pixels beside each other, its loss was "
        "0.78 and that of a new UNet (medium) 0.95",
    ),
    Rule(
        "",
        f"else without a time {_pairs({name: one.sizes for name, one in QUALITIES.items()})}; "
        "with one the largest of them, or smaller, that sees enough examples in it",
        "measured steps decide: more examples help more than a wider network until then",
    ),
    Rule(
        "",
        ", ".join(
            f"{name}: {one['channels']} channels, {one['num_res_blocks']} block"
            + "s" * (one["num_res_blocks"] > 1)
            for name, one in UNETS.items()
        ),
        "medium is that of small-64-diffusion, large that of emoji-128, huge the default",
    ),
    Rule(
        "examples",
        "passes over the images: "
        f"{_each({name: one.passes for name, one in QUALITIES.items()})}; at least "
        f"{_each({name: f'{one.least:,}' for name, one in QUALITIES.items()})}, at most "
        f"{_each({name: f'{one.most:,}' for name, one in QUALITIES.items()})}",
        "emoji-128 saw 1,561,600 examples, each image 265 times",
    ),
    Rule(
        "",
        f"a UNet that is trained on, in a limited time: enough are 1/{START_PASSES} of the "
        f"passes, and at least 1/{START_LEAST} of the examples",
        "it knows how things look, and learns which",
    ),
    Rule(
        "time",
        f"{budget.AUTOENCODER_SHARE:.0%} of the steps' time for an autoencoder of its own; "
        f"{budget.KEPT_BACK:.0%} is kept back; least {budget.LEAST_STEPS} steps of each",
        "emoji-128: 45 of 226 seconds; more here, as a blurred first stage blurs all that follows",
    ),
    Rule(
        "batch",
        f"{_pairs(BATCHES)}, in parts of at least {rules.LEAST_AT_A_TIME} where memory is short: "
        f"at most {rules.MEMORY_SHARE:.0%} of what is free",
        "parts change no result; a process that takes too much is killed",
    ),
    Rule(
        "learning rate",
        f"{rules.learning_rate('small'):g}, huge {rules.learning_rate('huge'):g}; of {READY}, "
        f"trained on, {rules.learning_rate(None, READY):g}, of another model "
        f"{rules.learning_rate(None):g}; 3 % warm-up, then a cosine to 0",
        "those of the configurations that ship; half of it for weights that are good already",
    ),
    Rule(
        "EMA",
        "over the last twentieth of the steps",
        "emoji-128: 0.999 over 12,200 steps, a twelfth; a short run has no steps to lose",
    ),
    Rule(
        "precision",
        "auto: bfloat16 where the machine is faster in it",
        "1.3 to 1.6 times on a processor with the instructions, 0.1 without",
    ),
    Rule(
        "text",
        f"as many tokens as {facts.TOKENS_PERCENTILE} % of the captions have, in an encoder "
        f"of its own, 2 layers of 128; {READY} trained on keeps its {rules.READY_TOKENS}",
        "it learns the words of the captions, in no extra time",
    ),
    Rule(
        "flip",
        "never",
        "nothing tells a mirrored letter from a mirrored cat; --set diffusion.data.flip=true",
    ),
    Rule(
        f"sets of at most {SMALL_SET}",
        f"augmentation of {rules.AUGMENTED:.0%} of the examples, with {rules.MOST_VARIANTS[0]} to "
        f"{rules.MOST_VARIANTS[1]} changed copies of an image, about {rules.VARIANTS:,} in all; "
        "dropout 0.1 in the UNet (else 0, large and huge 0.05)",
        "they put off learning by heart, and the network is told of the changes; each copy has to "
        "be encoded",
    ),
    Rule(
        "validation",
        f"a twentieth of the images, a tenth of fewer than {rules.FEW_VALIDATION}; "
        f"{budget.VALIDATIONS} times in a run, fewer where that takes more than "
        f"{budget.GRIDS_SHARE:.0%} of its time",
        "fewer than ten images tell little",
    ),
    Rule(
        "checkpoints",
        f"every {settings.CHECKPOINT_SECONDS:.0f} seconds",
        "so much is computed again after a crash",
    ),
)
"""Rules in the order in which they are followed; one without a name goes on with that before."""
