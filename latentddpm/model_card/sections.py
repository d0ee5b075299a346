"""Sections of a card, in Markdown: each a function of the product and its runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from latentddpm import __version__
from latentddpm.hub.address import DATASET, is_address, parse_address
from latentddpm.model_card.facts import DIFFUSION, DataFacts, RunFacts, curve_rows
from latentddpm.model_card.limits import limits
from latentddpm.model_card.product import CONTROL, LORA_KIND, MODEL, Product
from latentddpm.utils.files import size_text

HERE = "MODEL"
"""Word that stands in the commands for the place of the product, until it has an address."""
BASE = "BASE"
"""Word for the model that a LoRA or a ControlNet belongs to."""
SAMPLES = "samples.png"
PROMPT = "a prompt like its captions"


def front_matter(product: Product, runs: Sequence[RunFacts], license_id: str) -> str:
    """Front matter in YAML, which the Hub reads.

    Args:
        product: as it was read.
        runs: that trained it.
        license_id: of the weights, such as "apache-2.0"; "" where nobody has said it.
    """
    tags = ["latentddpm", "diffusion" if product.draws else "autoencoder", "tensorflow"]
    tags += {LORA_KIND: ["lora"], CONTROL: ["controlnet"]}.get(product.kind, [])
    keys: dict[str, Any] = {"library_name": "keras"}
    if product.draws:
        kind = "text-to-image" if product.text else "unconditional-image-generation"
        keys["pipeline_tag"] = kind
        tags.append(kind)
    if license_id:
        keys["license"] = license_id
    keys["tags"] = tags
    if datasets := list(dict.fromkeys(_datasets(runs))):
        keys["datasets"] = datasets
    if bases := list(dict.fromkeys(_bases(runs))):
        keys["base_model"] = bases
    return f"---\n{_yaml(keys)}---\n"


def _datasets(runs: Iterable[RunFacts]) -> Iterator[str]:
    """Names of data sets of the Hub that runs were trained on."""
    for run in runs:
        if run.data is not None and is_address(run.data.name):
            address = parse_address(run.data.name)
            if address.kind == DATASET:
                yield address.repo_id


def _bases(runs: Iterable[RunFacts]) -> Iterator[str]:
    """Names of models of the Hub that runs began from."""
    for run in runs:
        if is_address(run.start):
            yield parse_address(run.start).repo_id


def heading(product: Product, name: str, has_samples: bool) -> str:
    """Title, a sentence on what it is, and the samples.

    Args:
        product: as it was read.
        name: of the product.
        has_samples: True if `samples.png` lies beside the card.
    """
    size = "×".join(map(str, product.image_size)) if product.image_size else ""
    unit = "samples" if product.image_size and len(product.image_size) == 1 else "pixels"
    of = f" of {size} {unit}" if size else ""
    if product.kind == MODEL and not product.draws:
        what = f"An autoencoder{of}"
    elif product.kind == MODEL:
        led = "A text-to-image diffusion model" if product.text else "A diffusion model"
        what = f"{led}{of}" + (", without an autoencoder" if product.of_pixels else "")
    else:
        what = f"A {product.kind} for a diffusion model" + f" ({product.base})" * bool(
            product.base
        )
    text = f"# {name}\n\n{what}, made with latentddpm {__version__} (Keras 3, TensorFlow).\n"
    shown = "Samples" if product.draws else "Validation images and their reconstructions"
    if has_samples:
        text += (
            f"\n![{shown}]({SAMPLES})\n\nThe last grid of the training: fixed prompts and seeds, "
            "not picked.\n"
            if product.draws
            else f"\n![{shown}]({SAMPLES})\n\nNot picked.\n"
        )
    return text


def usage(product: Product) -> str:
    """Commands and Python that use it.

    Args:
        product: as it was read.
    """
    place = f"`{HERE}` is the folder of this card, or its address on the Hub"
    base = BASE if product.kind != MODEL else HERE
    prompt = f" --prompt {json.dumps(PROMPT)}" if product.text else ""
    labels = "".join(
        f" --{'condition' if one.kind == 'picture' else 'label'} {one.name}=VALUE"
        for one in product.conditions
        if not one.null
    )
    if product.kind == LORA_KIND:
        line = f"latentddpm generate --model {base}{prompt} --lora {HERE}"
    elif product.kind == CONTROL:
        line = f"latentddpm generate --model {base}{prompt} --control {HERE} --control-image FILE"
    elif product.draws:
        line = f"latentddpm generate --model {base}{prompt}{labels}"
    else:
        line = f"latentddpm train-diffusion --data DIR --vae {HERE} --out RUN"
    text = f"## Use\n\n{place}"
    text += f", `{BASE}` the model that it belongs to" if product.kind != MODEL else ""
    text += f".\n\n```sh\npip install latentddpm\n{line}\n```\n"
    if product.kind == MODEL:
        text += f"\n```python\n{_python(product)}\n```\n"
    return text


def _python(product: Product) -> str:
    lines = ["import latentddpm", "", f'model = latentddpm.LatentDiffusion.load("{HERE}")']
    if product.draws:
        prompt = f"{json.dumps(PROMPT)}, " if product.text else ""
        lines.append(f"images = model.generate({prompt}seed=0)  # uint8 (1, H, W, C)")
    else:
        lines.append("mean, logvar = model.autoencoder.encode(images)  # float32 in [-1, 1]")
    return "\n".join(lines)


def data_section(runs: Sequence[RunFacts]) -> str:
    """Section on the images.

    Args:
        runs: that trained it.
    """
    found: dict[DataFacts, list[str]] = {}
    for run in runs:
        if run.data is not None:
            found.setdefault(run.data, []).append(_network(run))
    if not found:
        return "## Data\n\nNot known: no catalog of the images lies in the folder of the run.\n"
    rows = [_data_row(data, networks) for data, networks in found.items()]
    text = "## Data\n\n" + _table(
        ("images", "for", "training", "validation", "shorter side, pixels", "captions"), rows
    )
    unreadable = sum(data.unreadable for data in found)
    if unreadable:
        text += f"\n{unreadable:,} files could not be read and were left out.\n"
    return (
        text + "\nWho made the images, and under which licence, is to be filled in by whoever "
        "publishes this.\n"
    )


def _data_row(data: DataFacts, networks: list[str]) -> tuple[str, ...]:
    low, middle, high = data.sides
    words = [f"column {name}" for name in data.columns[:6] if name != "file_name"]
    words += ["text files"] * data.sidecars
    counts = ("?" if one is None else f"{one:,}" for one in (data.training, data.validation))
    sides = f"{low} to {high}, half below {middle}" if low != high else f"{low}"
    return (
        f"{data.images:,} in `{data.name}` ({data.kind})",
        ", ".join(networks),
        *counts,
        sides,
        ", ".join(words) or "none",
    )


def networks_section(product: Product) -> str:
    """Section on the networks and how they draw.

    Args:
        product: as it was read.
    """
    rows = [
        (
            part.name,
            "" if part.parameters is None else f"{part.parameters:,}",
            size_text(part.bytes),
            f"`{part.digest[:12]}`" if part.digest else "",
        )
        for part in product.parts
    ]
    text = "## Networks\n\n" + _table(("part", "parameters", "file", "digest of weights"), rows)
    for condition in product.conditions:
        text += f"\nCondition `{condition.name}` ({condition.kind}): {condition.describe()}.\n"
    for title, keys in (("Noise schedule", product.schedule), ("Draws with", product.defaults)):
        if keys:
            text += f"\n{title}: {', '.join(f'{key} {value}' for key, value in keys.items())}.\n"
    return text


def training_section(runs: Sequence[RunFacts]) -> str:
    """Section on settings and losses.

    Args:
        runs: that trained it.
    """
    if not runs:
        return "## Training\n\nNot known: this card was written without the folder of a run.\n"
    text = "## Training\n"
    for run in runs:
        text += f"\n### {_network(run).capitalize() if _network(run) != 'UNet' else 'UNet'}\n\n"
        text += _sentence(run)
        if run.start:
            text += (
                f"\nIt began with the weights of `{run.start}`: the licence and the limits that "
                "its card names hold here, too.\n"
            )
        rows = [
            (
                name.replace("_", " "),
                f"{curve.values[0]:.4g} (step {curve.steps[0]:,})",
                f"{curve.values[-1]:.4g} (step {curve.steps[-1]:,})",
                f"{curve.values.min():.4g} to {curve.values.max():.4g}",
            )
            for name, curve in curve_rows(run)
        ]
        if rows:
            text += "\n" + _table(("measure", "first", "last", "range"), rows)
        if changes := run.changes():
            text += "\nSettings that differ from the defaults:\n\n```yaml\n"
            text += _yaml(changes) + "```\n"
    return text


def _sentence(run: RunFacts) -> str:
    batch = run.setting("training", "batch_size")
    words = [f"{run.steps:,} steps" if run.steps else "An unknown number of steps"]
    words += [f"of {batch} images"] if batch else []
    words += [f"= {run.epochs:,.3g} epochs"] if run.epochs else []
    rate, precision = (
        run.setting("training", "learning_rate"),
        run.setting("training", "precision"),
    )
    optimizer = run.setting("training", "optimizer")
    more = [f"{optimizer} at {rate:g}"] if optimizer and rate else []
    more += [str(precision)] if precision else []
    if "examples_per_second" in run.curves:
        speed = run.curves["examples_per_second"].values
        more.append(f"{float(speed[len(speed) // 2 :].mean()):.3g} images a second")
    return f"{' '.join(words)}; {', '.join(more)}.\n" if more else f"{' '.join(words)}.\n"


def limits_section(product: Product, runs: Sequence[RunFacts]) -> str:
    """Section on limits, from the numbers.

    Args:
        product: as it was read.
        runs: that trained it.
    """
    lines = (f"- {line[0].upper()}{line[1:]}\n" for line in limits(product, list(runs)))
    return "## Limits\n\n" + "".join(lines)


def _network(run: RunFacts) -> str:
    return "UNet" if run.command == DIFFUSION else "autoencoder"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in lines)


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, default_flow_style=None)
