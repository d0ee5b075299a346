"""Generation from the command line: a plan, one call of the model, and files with metadata.

Wrong options are refused while the plan is made, before Keras is imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentddpm.choices import SAMPLER_OPTIONS
from latentddpm.clip.prompts import for_each_image, for_each_prompt, read_count, read_texts
from latentddpm.conditions.conditions import Conditions
from latentddpm.data.pictures.given import open_given, own_size
from latentddpm.data.pictures.stored import read_stored
from latentddpm.errors import UserError
from latentddpm.generation.autoguidance import WeakerModel, engine_of_both, read_weaker
from latentddpm.generation.controls import (
    ControlFiles,
    add_controls,
    check_controls,
    control_metadata,
    engine_with_controls,
    read_controls,
    remembered_controls,
)
from latentddpm.generation.devices import ALONE, devices, engine_of, jit_of, precision_of
from latentddpm.generation.frames import Frames, ToWrite, check_frames, decoded
from latentddpm.generation.loras import (
    Lora,
    load_model,
    lora_defaults,
    read_loras,
    remembered_loras,
)
from latentddpm.generation.notes import notes_on
from latentddpm.generation.output import (
    check_out,
    check_writable,
    note_of_names,
    strip_file,
    targets,
    write_picture,
)
from latentddpm.generation.provenance import (
    common_metadata,
    comparison,
    grid_metadata,
    image_metadata,
    input_file,
    model_name,
    picture_files,
    pictures_metadata,
    read_generation_metadata,
    regions_metadata,
    remembered_labels,
    remembered_regions,
    remembered_settings,
)
from latentddpm.pipeline.control.control import check_alone
from latentddpm.pipeline.model_facts import facts_of
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.pipeline.regions.region import Region, read_regions, region_of_words
from latentddpm.pipeline.seeds import image_seeds
from latentddpm.pipeline.settings import FIELDS, GenerationSettings
from latentddpm.pipeline.start.init_image import InitImage, first_step, read_init_image
from latentddpm.utils.console import activity, say
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.pixels import BESIDE
from latentddpm.utils.pixels import grid as make_grid
from latentddpm.utils.startup import import_keras
from latentddpm.utils.timing import collect, timed

DEFAULT_MODEL = "emoji-128"


@dataclass(frozen=True)
class Plan:
    """Plan of a generation: all that is decided before Keras is imported.

    Attributes:
        folder: of the model.
        engine: that computes its networks.
        precision: that they compute in; "auto" where the device decides.
        loras: files to apply to the model.
        weaker: model that guidance leads away from; None without autoguidance.
        settings: of all images.
        pixels: format of the images.
        start: picture that the images start from; None for noise.
        regions: parts of all images that are told something else.
        prompts: one for each image.
        negative_prompts: one for each image; None for that of the settings.
        told: values of the model's conditions, for each image.
        seeds: one for each image.
        seed: of the first image as given; None where it was drawn.
        targets: file of each image, or the file of the grid, if its name is free.
        frames: number of them in a strip beside each file; None for no strip.
        animate: file of the animation; None for none.
        replace: whether files with these names are replaced.
        rows: of the grid, one for each prompt; 0 for one file per image.
        metadata: common to all files.
        notes: sentences to say before the model is loaded.
        conditions: of the model.
        controls: ControlNets with their pictures, each uint8 (H, W, 3).
    """

    folder: ModelFolder
    engine: str
    precision: str
    loras: list[Lora]
    weaker: WeakerModel | None
    settings: GenerationSettings
    pixels: PixelFormat
    start: InitImage | None
    regions: list[Region]
    prompts: list[str]
    negative_prompts: list[str] | None
    told: list[dict[str, Any]]
    seeds: list[int]
    seed: int | None
    targets: list[Path]
    frames: int | None
    animate: Path | None
    replace: bool
    rows: int
    metadata: dict[str, Any]
    notes: list[str]
    conditions: Conditions
    controls: list[tuple[ControlFiles, np.ndarray]]

    @property
    def labels(self) -> list[dict[str, str]]:
        """Texts of the conditions of words and numbers, by name, for each image."""
        return [self.conditions.texts(row) for row in self.told]


def generate_images(
    *,
    batch_size: int,
    quiet: bool,
    timing: bool,
    tile: str = "auto",
    strategy: str = "auto",
    engine: str | None = None,
    cache: bool = True,
    jit: str | None = None,
    **options: Any,
) -> list[Path]:
    """Generate images and write them as PNG files, with metadata to make them again.

    Args:
        batch_size: images denoised together.
        quiet: say nothing.
        timing: print the time of each stage on stderr.
        tile: see `LatentDiffusion.generate`; the images do not depend on it.
        strategy: name of a strategy, see `distribution.strategy.make_strategy`. With several
            processes each generates and writes its share of the images.
        engine: see `devices.engine_of`.
        jit: see `devices.jit_of`.
        cache: see `LatentDiffusion.load`; of no effect with LoRA files or several devices.
        options: see `plan_images`.

    Returns:
        The files that this process wrote.

    Raises:
        UserError: see `plan_images`; or options that do not go with the strategy.
    """
    with collect() as spent:
        read_count("batch_size", batch_size)
        plan = plan_images({**options, "tile": tile, "engine": engine, "strategy": strategy})
        compiles = jit_of(jit, plan.engine)
        for note in plan.notes:
            say(note, quiet)
        source = options["source"]
        # Read now: the file may be replaced.
        before = _read_pixels(source, plan.pixels) if source else None
        with timed(f"import {'Keras' if plan.engine == 'keras' else 'ONNX Runtime'}"):
            if plan.engine == "keras":
                import_keras()
        with devices(plan.engine, strategy) as processes:
            together = "--grid" if plan.rows else "--animate" if plan.animate else ""
            if processes.count > 1 and (together or plan.seed is None):
                own = f"no {together}: each writes its own"
                need = own if together else "--seed, the same in all"
                raise UserError(
                    f"--strategy multi-worker: {processes.count} processes need {need}"
                )
            name = model_name(plan.folder)
            with timed("load model"), activity(f"loading {name}", quiet):
                masked = plan.regions and "text_encoder" in plan.folder.parts
                cache = cache and strategy in ALONE and not masked and not plan.controls
                how = {"cache": cache, "jit": compiles}
                model = load_model(
                    plan.folder.path, plan.loras, plan.engine, plan.precision, **how
                )
                guided = {}
                if weaker := plan.weaker:
                    guide = load_model(weaker.folder.path, [], plan.engine, plan.precision, **how)
                    guided = {"autoguidance": guide, "autoguidance_scale": weaker.scale}
                controls = add_controls(model, plan.controls, compiles)
            share = processes.share(len(plan.prompts))
            share = slice(share.start, share.stop)
            last = model.make_sampler(plan.settings).num_steps
            steps = range(first_step(plan.start, last, plan.settings.start_step), last)
            frames = Frames(plan.frames, plan.animate, steps)
            written: dict[Path, np.ndarray] = {}
            if plan.prompts[share]:
                images = model.generate(
                    plan.prompts[share],
                    negative_prompt=plan.negative_prompts and plan.negative_prompts[share],
                    conditions=plan.told[share],
                    seed=plan.seeds[share],
                    settings=plan.settings,
                    regions=plan.regions,
                    tile=tile,
                    batch_size=batch_size,
                    callback=frames,
                    progress=not quiet and processes.is_chief,
                    **guided,
                    controls=controls,
                    **(vars(plan.start) if plan.start else {}),
                )
                if model.precision != "float32":
                    plan.metadata["precision"] = model.precision
                records = _records(plan, share, model.loras, bool(plan.rows))
                with timed("write"):
                    files = plan.targets if plan.rows else plan.targets[share]
                    pictures = [_grid(plan, images)] if plan.rows else images
                    written = _write(plan, zip(files, pictures, records, strict=True), quiet)
                if plan.frames or plan.animate:
                    several = len(plan.prompts) > 1
                    together = _records(plan, share, model.loras, several)[0]
                    with timed("frames"):
                        way = frames.pictures(partial(decoded, model, tile), quiet)
                        images = plan.pixels.to_rgb(images)
                        shown = frames.shown(way, images, list(written), records, together)
                        written |= _write(plan, shown, quiet)
            processes.barrier()
    if source and written:
        kind = source.suffix.lower()
        alike = [path for path in written if path.suffix.lower() == kind]
        again = [_read_pixels(path, plan.pixels) for path in alike]
        again.sort(key=lambda pixels: pixels.shape != before.shape)  # a strip is beside its image
        if again:
            say(comparison(source, before, again[0]), quiet)
    if timing:
        for name, seconds in spent.items():
            print(f"{seconds:8.2f} s  {name}", file=sys.stderr)
    return list(written)


def plan_images(options: dict[str, Any]) -> Plan:
    """Plan of a generation, from the options of `latentddpm generate`.

    An option that is not given comes from the metadata of `source`, a PNG made by latentddpm,
    else from the model's defaults.

    Args:
        options: by their names on the command line, sampler options among them; None for an
            option that is not given.

    Raises:
        UserError: options that contradict each other or that the model does not accept; files
            that are missing, or differ from those that `source` was made with.
    """
    source, out = options["source"], options["out"]
    remembered = read_generation_metadata(source) if source else {}
    prompts = options["prompts"] or tuple(remembered.get("prompts", ())) or ("",)
    grid = options["grid"] or remembered.get("grid", False)
    seed, strength, num_images, frames = (
        remembered.get(name) if options[name] is None else options[name]
        for name in ("seed", "strength", "num_images", "frames")
    )
    animate = options["animate"]
    num_images = read_count("num_images", 1 if num_images is None else num_images)
    files = {
        name: input_file(name, options[name], source, remembered)
        for name in ("init_image", "mask")
    }
    given_regions = options.get("regions") or remembered_regions(source, remembered)
    model = options["model"] or remembered.get("model") or DEFAULT_MODEL
    folder = read_model_folder(model, verify=False)
    if remembered and folder.digest != remembered.get("model_digest"):
        raise UserError(
            f"{source}: made by model {remembered.get('model_digest')}, "
            f"{folder.path} is {folder.digest}; give its own with --model"
        )
    loras = read_loras(options["loras"], folder.path) or remembered_loras(
        source, remembered.get("loras") or [], folder.path
    )
    own = remembered.get("precision", source and "float32")
    precision = precision_of(options["precision"], own)
    own = remembered.get("engine", source and "keras")
    masked = bool(given_regions) and "text_encoder" in folder.parts
    engine, note = engine_of(
        folder, options["engine"], own, options["strategy"], precision, masked
    )
    controls = read_controls(
        options.get("controls") or (), options.get("control_images") or ()
    ) or remembered_controls(source, remembered.get("controls") or [])
    if controls:
        check_alone(given_regions)
        engine, note = engine_with_controls(options["engine"]), None
    pixels = folder.pixels
    suffix = ".png" if grid else pixels.suffix
    facts = facts_of(folder).with_defaults(lora_defaults(loras))
    facts = facts.with_defaults(remembered_settings(remembered))
    weaker = read_weaker(options.get("autoguidance"), source, remembered, folder)
    if weaker is not None:
        engine = engine_of_both(engine, options["engine"], weaker, precision)
    negatives = read_texts(
        "negative_prompt", options["negative_prompt"] or remembered.get("negative_prompts")
    )
    distinct = set(for_each_prompt(negatives, prompts))
    several = len(distinct) > 1
    given = {name: options.get(name) for name in FIELDS}
    of_all = negatives[0] if options["negative_prompt"] else None
    given["negative_prompt"] = "" if several else of_all
    given["condition_scales"] = dict(given["condition_scales"] or {}) or None
    own = {name: options[name] for name in SAMPLER_OPTIONS if options.get(name) is not None}
    settings = facts.settings(**{**given, "sampler_options": own})
    facts.check_prompts(prompts, negatives)
    pictures = facts.conditions.parse_files(options.get("pictures") or ())
    pictures = picture_files(pictures, source, remembered)
    for name, file in pictures.items():
        own_size(name, open_given(name, file, pixels))  # refused now where it cannot be read
    labels = facts.conditions.parse(options.get("labels") or ())
    labels = labels or remembered_labels(facts, remembered) or [{}]
    told = facts.conditions.rows([{**row, **pictures} for row in labels])
    prompts = tuple(prompts) * (len(told) if len(prompts) == 1 else 1)
    told = for_each_prompt(told, prompts, "--label")
    each = for_each_image(prompts, num_images)
    seeds = image_seeds(seed, len(each))
    check_out(out, 1 if grid else len(each), suffix)
    facts.check_tile(options["tile"])
    start = read_init_image(files["init_image"], files["mask"], strength, settings.size, pixels)
    regions = [region_of_words(*one, facts) for one in given_regions]
    regions = read_regions(regions, facts, settings.size, files["init_image"], pixels)
    controls = check_controls(controls, folder, facts.downsample_factor, settings.size)
    first = first_step(start, settings.num_steps, settings.start_step)
    check_frames(frames, animate, settings.num_steps - first)
    if (frames or animate) and pixels.spatial_dims != 2:
        raise UserError(f"--frames, --animate: show images, and {folder.path} draws signals")
    same = out is not None and source is not None and out.exists() and out.samefile(source)
    if same and "frames" in remembered:
        raise UserError(f"--out {out}: a strip, which is made beside its image; name another file")
    texts = [*distinct, settings.negative_prompt]
    noted = notes_on(facts, settings, start, prompts, texts, told, regions)
    notes = [*filter(None, [note]), *noted]
    if folder.first_stage == "none" and options["tile"] != "auto":
        notes.append("--tile: of no effect, since this model has no autoencoder")
    if weaker is None and not settings.is_guided and settings.guidance_interval != [0.0, 1.0]:
        notes.append("--guidance-interval: of no effect without guidance")
    names = [
        text or facts.conditions.to_text(row)
        for text, row in zip(each, for_each_image(told, num_images), strict=True)
    ]
    wanted, replace = targets(out, names, seeds, grid, suffix), options["overwrite"] or same
    strips = map(strip_file, wanted) if frames else ()
    common = common_metadata(
        folder, settings, start, num_images=num_images, files=files, order=options
    )
    files |= pictures
    read = [*files.values(), *(mask for mask, _ in given_regions)]
    read += [one.image for one, _ in controls]
    check_writable([*wanted, *strips], read, replace)
    if animate:
        check_writable([animate], read, replace, "--animate")
    return Plan(
        folder,
        engine,
        precision,
        loras,
        weaker,
        settings,
        pixels,
        start,
        regions,
        each,
        for_each_image(negatives, num_images) if several else None,
        for_each_image(told, num_images),
        seeds,
        seed,
        wanted,
        frames,
        animate,
        replace,
        len(prompts) if grid else 0,
        {
            **common,
            **pictures_metadata(pictures),
            "engine": engine,
            **regions_metadata(given_regions),
            **({"autoguidance": weaker.to_json()} if weaker else {}),
            **control_metadata(controls),
        },
        notes,
        facts.conditions,
        controls,
    )


def _read_pixels(path: Path, pixels: PixelFormat) -> np.ndarray:
    """Values of an image, (H, W, C), or of a signal, (L, C)."""
    if path.suffix.lower() in BESIDE:
        values = read_stored(path).values
        return values[..., 0] if pixels.spatial_dims == 1 and values.ndim == 3 else values
    with Image.open(path) as image:
        known = image.mode in ("L", "RGBA") or image.mode.startswith("I;16")
        values = np.asarray(image if known else image.convert("RGB"))
    return values if values.ndim == 3 else values[..., None]


def _grid(plan: Plan, images: np.ndarray) -> np.ndarray:
    """Picture of all images, 8-bit RGB."""
    return make_grid(np.split(plan.pixels.to_rgb(images), plan.rows))


def _records(
    plan: Plan, share: slice, loras: list[dict[str, Any]], together: bool
) -> list[dict[str, Any]]:
    """Metadata of each image of a process's share; or one, of all images `together`."""
    common, negatives = plan.metadata, plan.negative_prompts
    labels = plan.labels
    if together:
        first = slice(None, None, common["num_images"])
        rows = plan.prompts[first], negatives and negatives[first]
        return [grid_metadata(common, loras, *rows, plan.seeds[0], labels[first])]
    return [
        image_metadata(common, loras, plan.prompts[k], negatives and negatives[k], seed, labels[k])
        for k, seed in enumerate(plan.seeds)
    ][share]


def _write(plan: Plan, pictures: Iterable[ToWrite], quiet: bool) -> dict[Path, np.ndarray]:
    """Write pictures, and say which of them got another name; return the pixels by file."""
    wanted, written = [], {}
    for file, pixels, metadata in pictures:
        wanted.append(file)
        written[write_picture(file, pixels, metadata, plan.replace, plan.pixels)] = pixels
    if note := note_of_names(wanted, list(written)):
        say(note, quiet)
    return written
