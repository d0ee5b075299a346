"""Plan of an evaluation: all that is decided before Keras is imported.

options ─► parts, images, settings of split and captions, settings to generate with
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentddpm.choices import PROJECTIONS
from latentddpm.config import COMMANDS, AutoencoderRun, ConditionConfig, DataConfig, DiffusionRun
from latentddpm.config_file import load_config, parse_config
from latentddpm.data.captions import Templates
from latentddpm.data.dataset import SPLITS
from latentddpm.data.places.places import open_places
from latentddpm.engines.networks import choose_engine
from latentddpm.errors import UserError, check_choice, nearest
from latentddpm.evaluation.metrics.precision_recall import LEAST
from latentddpm.evaluation.sweep import parse_sweep, settings_of
from latentddpm.generation.devices import precision_of
from latentddpm.generation.loras import Lora, lora_defaults, read_loras
from latentddpm.pipeline.model_facts import facts_of
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.pipeline.settings import GenerationSettings

PARTS = ("nll", "denoise", "latents", "autoencoder", "generator")
"""Parts of an evaluation, in the order they are measured; `nll` is `bound` in the results."""
OF_THE_DENOISER = frozenset({"nll", "denoise", "generator"})
"""Parts that need the whole model, not its autoencoder alone."""
COMPARED = "training"
"""Split that generated images are compared with; validation images give the floor."""
KEPT = ("validation_fraction", "validation_by", "caption_templates")
"""Settings of `data:` that decide what a run was trained on; options of the same names."""
FEATURES = {
    "extractor": ("inception", "hed"),
    "perceptual": ("imagenet", "hed"),
}
"""Names that the options take beside files."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Plan of an evaluation: all that is decided before Keras is imported.

    Attributes:
        parts: some of `PARTS`.
        folder: of the model.
        loras: files to apply to the model.
        data: settings of split and captions.
        data_from: where they are from, for people.
        conditions: settings of the model's conditions, which say where the data has them.
        split: whose images are used: "all", "training" or "validation".
        size: (height, width) of the images, in pixels.
        settings: to generate images with, in the part `generator`.
        engine: that computes the networks.
        precision: that they compute in; "auto" where the device decides.
        options: all options of `latentddpm evaluate`, by their names.
    """

    parts: frozenset[str]
    folder: ModelFolder
    loras: list[Lora]
    data: DataConfig
    data_from: str
    conditions: dict[str, ConditionConfig]
    split: str
    size: tuple[int, int]
    settings: list[GenerationSettings]
    engine: str
    precision: str
    options: dict[str, Any]

    @property
    def draws(self) -> bool:
        """True where the whole model is needed, not its autoencoder alone."""
        return bool(self.parts & OF_THE_DENOISER) or self.folder.first_stage == "none"


def plan_evaluation(parts: frozenset[str], options: dict[str, Any]) -> EvaluationPlan:
    """Plan of an evaluation, from the options of `latentddpm evaluate`.

    Args:
        parts: some of `PARTS`.
        options: by their names on the command line.

    Raises:
        UserError: options that contradict each other, or that the model does not accept.
    """
    generator, out, split = "generator" in parts, options["out"], options["split"]
    if generator and (out is None or options["extractor"] is None):
        raise UserError("--generator: needs --extractor, and --out, where its images are kept")
    if split is not None:
        check_choice("--split", split, SPLITS)
    if generator and split not in (None, COMPARED):
        raise UserError(f"--split {split}: --generator compares with the {COMPARED} images")
    if "latents" in parts and out is None:
        raise UserError("--latents: leaves pictures; name a folder with --out")
    if out is not None and out.is_file():
        raise UserError(f"--out {out}: is a file; name a folder")
    if generator and options["num_images"] < LEAST:
        raise UserError(f"--num-images: {options['num_images']}, expected at least {LEAST}")
    check_choice("--projection", options["projection"], PROJECTIONS)
    _check_files(options)
    open_places(options["data"])
    precision = precision_of(options["precision"])
    folder = read_model_folder(options["model"])
    loras = read_loras(options["loras"], folder.path)
    if folder.pixels.spatial_dims == 1:
        raise UserError(
            f"{folder.path}: a model of signals; what is measured here are features and bounds of "
            "images: expected a model of images (the loss of validation signals is in log.jsonl)"
        )
    if "autoencoder" in parts and folder.first_stage == "none":
        raise UserError(
            "--autoencoder: this model diffuses pixels and has no autoencoder; expected --nll, "
            "--denoise, --latents or --generator"
        )
    for part in PARTS:
        if part in parts & OF_THE_DENOISER and "unet" not in folder.parts:
            raise UserError(
                f"--{part}: {folder.path} holds an autoencoder alone, and no network that "
                "denoises; expected --autoencoder or --latents"
            )
    if "nll" in parts and (folder.schedule or {}).get("kind") == "flow":
        raise UserError(
            "--nll: the bound is that of DDPM's steps, and this model was trained by flow "
            "matching; expected another part, such as --denoise"
        )
    engine = _engine(parts, folder, options["engine"], precision)
    size = _size(folder, options["resolution"])
    data, data_from = _data_settings(folder, options)
    conditions = _condition_settings(folder, parts)
    settings = []
    if parts & OF_THE_DENOISER:
        facts = facts_of(folder).with_defaults(lora_defaults(loras))
        facts.check_size(*size)
        if generator:
            given = {"height": size[0], "width": size[1]}
            for name in ("num_steps", "sampler", "timestep_spacing", "guidance_scale"):
                given[name] = options[name]
            settings = settings_of(facts, parse_sweep(options["sweep"]), **given)
    if split is None:
        split = COMPARED if generator else "validation" if "denoise" in parts else "all"
    return EvaluationPlan(
        parts,
        folder,
        loras,
        data,
        data_from,
        conditions,
        split,
        size,
        settings,
        engine,
        precision,
        options,
    )


def _engine(parts: frozenset[str], folder: ModelFolder, given: str | None, precision: str) -> str:
    """Engine that draws; every part but the generator's needs the networks of Keras layers."""
    others = [part for part in PARTS if part in parts - {"generator"}]
    if given == "onnx" and others:
        raise UserError(f"--engine onnx: draws and no more; --{others[0]} needs --engine keras")
    return choose_engine("keras" if others else given or "auto", folder, precision)


def _data_settings(folder: ModelFolder, options: dict[str, Any]) -> tuple[DataConfig, str]:
    """Settings of split and captions, from options and from the run that made the model.

    Returns:
        The settings, and where those that were not given are from, for people.
    """
    known, origin = {}, "the defaults: this model names no run"
    path = _config_of(folder)
    given = {name: options[name] for name in KEPT if options[name] not in (None, ())}
    given = {name: list(v) if isinstance(v, tuple) else v for name, v in given.items()}
    if given.keys() >= {"validation_fraction", "validation_by"}:
        origin = "the options"
    if path is not None:
        try:
            run = _settings_of_run(path)
        except UserError as error:
            if origin != "the options":
                raise UserError(
                    f"{error}; or give --validation-fraction and --validation-by"
                ) from None
        else:
            known = {name: getattr(run.data, name) for name in (*KEPT, "captions", "mask")}
            origin = origin if origin == "the options" else str(path)
    data = parse_config(DataConfig, {**known, **given}, source="")
    Templates(data.caption_templates)  # a malformed one is an error now
    return data, origin


def _condition_settings(folder: ModelFolder, parts: frozenset[str]) -> dict[str, ConditionConfig]:
    """Settings of the conditions that the parts need, from the run that made the model."""
    needs = next((part for part in PARTS if part in parts & OF_THE_DENOISER), None)
    if needs is None or not folder.conditions:
        return {}
    names, vectors = folder.conditions.names, [one.name for one in folder.conditions.vectors]
    if others := [one for one in names if one not in vectors]:
        raise UserError(
            f"--{needs}: {folder.path} is told {others[0]}, a picture, which evaluate does not "
            "make; expected conditions of words and numbers"
        )
    path = _config_of(folder)
    if path is None:
        raise UserError(
            f"--{needs}: {folder.path} is told {', '.join(names)}, and which columns have it says "
            "the config.yaml beside a run's model; name the model in its run"
        )
    return _settings_of_run(path).conditions


def _config_of(folder: ModelFolder) -> Path | None:
    """File of the settings of the run that made a model; None where there is none."""
    path = folder.path.parent / "config.yaml"
    return path if folder.path.name == "model" and path.is_file() else None


def _settings_of_run(path: Path) -> AutoencoderRun | DiffusionRun:
    """Settings of a run, from its `config.yaml`."""
    problems = []
    for kind in COMMANDS.values():
        try:
            return load_config(kind, path)
        except UserError as error:
            problems.append(error)
    raise problems[0]


def _check_files(options: dict[str, Any]) -> None:
    """Refuse names of networks that are neither known nor files."""
    clip = options["clip"]
    if clip is not None and not clip.is_dir():
        raise UserError(f"--clip {clip}: no such folder of a CLIPModel")
    for option, known in FEATURES.items():
        name = options[option]
        if name is None or name in known:
            continue
        path = Path(name.removeprefix("inception:"))
        if path.is_file():
            continue
        if option == "perceptual":
            raise UserError(
                f"--perceptual {name!r}: neither 'imagenet' nor 'hed', and no such file"
            )
        is_file = path.suffix or path.name != name
        hint = ": no such file" if is_file else f" is not known{nearest(name, known)}"
        raise UserError(
            f"--extractor {name!r}{hint}; choose 'inception', 'inception:FILE', 'hed' or a "
            ".keras file"
        )


def _size(folder: ModelFolder, resolution: int | None) -> tuple[int, int]:
    if resolution is not None:
        return resolution, resolution
    if folder.image_size is None:
        raise UserError(f"{folder.path}: names no image size; give --resolution")
    return folder.image_size
