"""Plan of a generation: the options judged, and all files of it found, before Keras is imported.

options, metadata of a PNG, the model's defaults ─► settings, what is told, pictures, targets
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentddpm.choices import SAMPLER_OPTIONS
from latentddpm.clip.prompts import for_each_image, for_each_prompt, read_count, read_texts
from latentddpm.conditions.conditions import Conditions
from latentddpm.data.pictures.given import open_given, own_size
from latentddpm.errors import UserError
from latentddpm.generation.autoguidance import WeakerModel, engine_of_both, read_weaker
from latentddpm.generation.controls import (
    ControlFiles,
    check_controls,
    control_metadata,
    engine_with_controls,
    read_controls,
    remembered_controls,
)
from latentddpm.generation.devices import engine_of, precision_of
from latentddpm.generation.embeddings import (
    EmbeddingFile,
    embeddings_metadata,
    engine_with_embeddings,
    read_embeddings,
    remembered_embeddings,
)
from latentddpm.generation.frames import check_frames
from latentddpm.generation.loras import (
    Lora,
    lora_defaults,
    read_loras,
    remembered_loras,
)
from latentddpm.generation.notes import notes_on
from latentddpm.generation.output import (
    check_out,
    check_writable,
    strip_file,
    targets,
)
from latentddpm.generation.provenance import (
    common_metadata,
    input_file,
    picture_files,
    pictures_metadata,
    read_generation_metadata,
    regions_metadata,
    remembered_labels,
    remembered_place,
    remembered_regions,
    remembered_settings,
)
from latentddpm.pipeline.control.control import check_alone
from latentddpm.pipeline.model_facts import facts_of
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.pipeline.regions.region import Region, read_regions, region_of_words
from latentddpm.pipeline.seeds import image_seeds
from latentddpm.pipeline.settings import FIELDS, GenerationSettings, ModelFacts
from latentddpm.pipeline.start.init_image import InitImage, first_step, read_init_image
from latentddpm.utils.images.pixel_format import PixelFormat

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
        embeddings: textual inversions, whose words the prompts may have.
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
    embeddings: list[EmbeddingFile]

    @property
    def labels(self) -> list[dict[str, str]]:
        """Texts of the conditions of words and numbers, by name, for each image."""
        return [self.conditions.texts(row) for row in self.told]


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
    if source and not options["model"]:
        model = remembered_place(source, model, "--model")
    folder = read_model_folder(model, verify=False)
    if remembered and folder.digest != remembered.get("model_digest"):
        raise UserError(
            f"{source}: made by model {remembered.get('model_digest')}, "
            f"{folder.path} is {folder.digest}; give its own with --model"
        )
    loras = read_loras(options["loras"], folder.path) or remembered_loras(
        source, remembered.get("loras") or [], folder.path
    )
    masked = bool(given_regions) and "text_encoder" in folder.parts
    engine, precision, note = _engine(folder, options, remembered, masked)
    controls = read_controls(
        options.get("controls") or (), options.get("control_images") or ()
    ) or remembered_controls(source, remembered.get("controls") or [])
    if controls:
        check_alone(given_regions)
        engine, note = engine_with_controls(options["engine"]), None
    embeddings = read_embeddings(options.get("embeddings") or (), folder) or remembered_embeddings(
        source, remembered.get("embeddings") or [], folder
    )
    if embeddings:
        engine, note = engine_with_embeddings(options["engine"]), None
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
    of_all = negatives[0] if options["negative_prompt"] else None
    settings = _settings(facts, options, "" if several else of_all)
    facts.check_prompts(prompts, negatives)
    told, pictures = _told(facts, options, remembered, pixels)
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
    words = [one.word for one in embeddings]
    noted = notes_on(facts, settings, start, prompts, texts, told, regions, words)
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
            **embeddings_metadata(embeddings),
        },
        notes,
        facts.conditions,
        controls,
        embeddings,
    )


def _engine(
    folder: ModelFolder, options: dict[str, Any], remembered: dict[str, Any], masked: bool
) -> tuple[str, str, str | None]:
    """Engine and precision of a plan, and a note on the engine."""
    known = bool(options["source"])
    precision = precision_of(
        options["precision"], remembered.get("precision", "float32" if known else None)
    )
    own = remembered.get("engine", "keras" if known else None)
    engine, note = engine_of(
        folder, options["engine"], own, options["strategy"], precision, masked
    )
    return engine, precision, note


def _settings(
    facts: ModelFacts, options: dict[str, Any], negative_prompt: str | None
) -> GenerationSettings:
    """Settings of a plan; a negative prompt of None is the default one."""
    given = {name: options.get(name) for name in FIELDS}
    given["negative_prompt"] = negative_prompt
    given["condition_scales"] = dict(given["condition_scales"] or {}) or None
    own = {name: options[name] for name in SAMPLER_OPTIONS if options.get(name) is not None}
    return facts.settings(**{**given, "sampler_options": own})


def _told(
    facts: ModelFacts, options: dict[str, Any], remembered: dict[str, Any], pixels: PixelFormat
) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """Values of the model's conditions for each row of images, and the files among them."""
    known = facts.conditions
    files = known.parse_files(options.get("pictures") or ())
    files = picture_files(files, options["source"], remembered)
    for name, file in files.items():
        own_size(name, open_given(name, file, pixels))  # refused now where it cannot be read
    labels = known.parse(options.get("labels") or ()) or remembered_labels(facts, remembered)
    return known.rows([{**row, **files} for row in labels or [{}]]), files
