"""Evaluation of a model, as the command `evaluate` does it: a plan, then a report of each part.

    options ─► plan: wrong options are refused ─► networks and images ─► a report of each part

Each part is one function that returns a `Report`. The results are a dictionary, written to
`evaluation.json` after each part.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentddpm import __version__
from latentddpm.choices import PROJECTIONS
from latentddpm.config import COMMANDS, DataConfig
from latentddpm.config_file import load_config, parse_config
from latentddpm.data.captions import Templates
from latentddpm.data.dataset import SPLITS, open_dataset
from latentddpm.data.sources.open import open_source
from latentddpm.errors import UserError, check_choice, nearest
from latentddpm.evaluation.metrics.precision_recall import LEAST
from latentddpm.evaluation.sweep import parse_sweep, settings_of
from latentddpm.generation.loras import Lora, apply_loras, read_loras
from latentddpm.pipeline.model_facts import facts_of
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.pipeline.settings import GenerationSettings
from latentddpm.utils.console import activity
from latentddpm.utils.files import write_json
from latentddpm.utils.startup import import_keras

PARTS = ("nll", "latents", "autoencoder", "generator")
"""Parts of an evaluation, in the order they are measured; `nll` is `bound` in the results."""
RESULTS = "evaluation.json"
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
        split: whose images are used: "all", "training" or "validation".
        size: (height, width) of the images, in pixels.
        settings: to generate images with, in the part `generator`.
        options: all options of `latentddpm evaluate`, by their names.
    """

    parts: frozenset[str]
    folder: ModelFolder
    loras: list[Lora]
    data: DataConfig
    data_from: str
    split: str
    size: tuple[int, int]
    settings: list[GenerationSettings]
    options: dict[str, Any]

    @property
    def draws(self) -> bool:
        """True where the whole model is needed, not its autoencoder alone."""
        return bool(self.parts & {"nll", "generator"}) or self.folder.first_stage == "none"


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
    open_source(options["data"])
    loras = read_loras(options["loras"])
    folder = read_model_folder(options["model"])
    if folder.pixels.spatial_dims == 1:
        raise UserError(
            f"{folder.path}: a model of signals; what is measured here are features and bounds of "
            "images: expected a model of images (the loss of validation signals is in log.jsonl)"
        )
    if "autoencoder" in parts and folder.first_stage == "none":
        raise UserError(
            "--autoencoder: this model diffuses pixels and has no autoencoder; expected --nll, "
            "--latents or --generator"
        )
    if "nll" in parts and (folder.schedule or {}).get("kind") == "flow":
        raise UserError(
            "--nll: the bound is that of DDPM's steps, and this model was trained by flow "
            "matching; expected another part, such as --generator"
        )
    size = _size(folder, options["resolution"])
    data, data_from = _data_settings(folder, options)
    settings = []
    if parts & {"nll", "generator"}:
        facts = facts_of(folder)
        facts.check_size(*size)
        if "nll" in parts and facts.schedule != "ddpm":
            raise UserError(
                "--nll: the bound is a sum over the steps of a ddpm schedule, and this model's "
                f"is {facts.schedule}; choose --generator"
            )
        if generator:
            given = {"height": size[0], "width": size[1]}
            for name in ("num_steps", "sampler", "timestep_spacing", "guidance_scale"):
                given[name] = options[name]
            settings = settings_of(facts, parse_sweep(options["sweep"]), **given)
    split = split or (COMPARED if generator else "all")
    return EvaluationPlan(parts, folder, loras, data, data_from, split, size, settings, options)


def evaluate_model(
    plan: EvaluationPlan, tell: Callable[[str], None], quiet: bool = False
) -> dict[str, Any]:
    """Evaluate a model as planned.

    Args:
        plan: returned by `plan_evaluation`.
        tell: takes the lines of the tables, as soon as they are ready.
        quiet: show no progress.

    Returns:
        The conditions of the evaluation, and the results of each part.

    Raises:
        UserError: images, networks or sizes that do not fit.
        signals.Stopped: a signal came; finished images and features are kept.
    """
    options, out = plan.options, plan.options["out"]
    with tempfile.TemporaryDirectory() as scratch:
        catalog = (out or Path(scratch)) / "catalog"
        dataset = open_dataset(options["data"], catalog, plan.data, quiet=quiet)
        dataset.pixels = pixels = plan.folder.pixels
        selection = dataset.split(plan.split)
        import_keras()
        from latentddpm.evaluation.images import spread_images
        from latentddpm.models.archive import weights_digest

        with activity(f"loading {plan.folder.path}", quiet):
            networks = _Networks(plan)
        images = spread_images(dataset, selection, plan.size, options["limit"])
        extractor, perceptual = networks.extractor, networks.perceptual
        conditions = {
            "model": str(options["model"]),
            "model_digest": plan.folder.digest,
            "loras": networks.model.loras if networks.model else [],
            "data": options["data"],
            "split": plan.split,
            "validation_fraction": plan.data.validation_fraction,
            "validation_by": plan.data.validation_by,
            "caption_templates": plan.data.caption_templates,
            "images": len(images),
            "height": plan.size[0],
            "width": plan.size[1],
            **({} if pixels.is_default else {"pixels": str(pixels), "seen_as": pixels.seen()}),
            "extractor": extractor and {"label": extractor.label, "digest": extractor.digest},
            "perceptual": perceptual
            and {"label": perceptual.label, "digest": weights_digest(perceptual)},
        }
        results = {"latentddpm": __version__, **conditions}
        tell(_heading(conditions, plan.data_from))
        for part in PARTS:
            if part in plan.parts:
                name = "bound" if part == "nll" else part
                tell(f"\n{name}")
                results[name] = networks.measure(part, images, tell, quiet)
                if out is not None:
                    write_json(out / RESULTS, results)
    return results


class _Networks:
    """Networks of an evaluation, and the measurement of each part with them."""

    def __init__(self, plan: EvaluationPlan) -> None:
        from latentddpm.evaluation.clip_towers import load_clip_towers
        from latentddpm.evaluation.extractors import load_extractor
        from latentddpm.interop.vgg import load_perceptual
        from latentddpm.models.archive import load_archive
        from latentddpm.models.autoencoder.autoencoder import Autoencoder
        from latentddpm.pipeline.latent_diffusion import LatentDiffusion

        def load(function: Callable[[Any], Any], name: str) -> Any:
            return function(plan.options[name]) if plan.options[name] else None

        self.plan = plan
        self.model = LatentDiffusion.load(plan.folder.path) if plan.draws else None
        if plan.loras:
            apply_loras(self.model, plan.loras)
        if self.model is not None:
            self.model.facts.check_size(*plan.size)
            self.autoencoder = self.model.autoencoder
        else:
            self.autoencoder = load_archive(plan.folder.file("vae"), Autoencoder)
            self.autoencoder.check_size(*plan.size)
        self.extractor = load(load_extractor, "extractor")
        if self.extractor:
            self.extractor.check_size(*plan.size)
        self.perceptual = load(load_perceptual, "perceptual")
        self.towers = load(load_clip_towers, "clip")
        if seen := plan.folder.pixels.seen():
            for network in filter(None, (self.extractor, self.perceptual, self.towers)):
                network.label = f"{network.label}, {seen}"
            if self.extractor:
                self.extractor.is_inception = False  # what it sees is not what FID means

    def measure(
        self, part: str, images: Any, tell: Callable[[str], None], quiet: bool
    ) -> dict[str, Any]:
        """Results of one part; its table goes to `tell`."""
        options = self.plan.options
        common = {"out": options["out"], "quiet": quiet}
        if part == "generator":
            from latentddpm.evaluation.generator import evaluate_generator

            return evaluate_generator(
                self.model,
                self.plan.settings,
                images,
                self.extractor,
                num_images=options["num_images"],
                towers=self.towers,
                seed=options["seed"],
                batch_size=options["batch_size"],
                tell=tell,
                **common,
            )
        if part == "nll":
            from latentddpm.evaluation.likelihood import evaluate_bound

            timesteps = options["nll_timesteps"]
            report = evaluate_bound(
                self.model, images, num_timesteps=timesteps, seed=options["seed"], **common
            )
        elif part == "latents":
            from latentddpm.evaluation.projection import project_latents

            report = project_latents(
                self.autoencoder,
                images,
                projection=options["projection"],
                group_by=options["group_by"],
                seed=options["seed"],
                **common,
            )
        else:
            from latentddpm.evaluation.autoencoder import evaluate_autoencoder

            report = evaluate_autoencoder(
                self.autoencoder,
                images,
                perceptual=self.perceptual,
                extractor=self.extractor,
                **common,
            )
        tell(report.text)
        return report.values


def _data_settings(folder: ModelFolder, options: dict[str, Any]) -> tuple[DataConfig, str]:
    """Settings of split and captions, from options and from the run that made the model.

    Returns:
        The settings, and where those that were not given are from, for people.
    """
    known, origin = {}, "the defaults: this model names no run"
    path = folder.path.parent / "config.yaml"
    given = {name: options[name] for name in KEPT if options[name] not in (None, ())}
    given = {name: list(v) if isinstance(v, tuple) else v for name, v in given.items()}
    if given.keys() >= {"validation_fraction", "validation_by"}:
        origin = "the options"
    if folder.path.name == "model" and path.is_file():
        try:
            known = _settings_of_run(path)
        except UserError as error:
            if origin != "the options":
                raise UserError(
                    f"{error}; or give --validation-fraction and --validation-by"
                ) from None
        else:
            origin = origin if origin == "the options" else str(path)
    data = parse_config(DataConfig, {**known, **given}, source="")
    Templates(data.caption_templates)  # a malformed one is an error now
    return data, origin


def _settings_of_run(path: Path) -> dict[str, Any]:
    """Settings of `data:` that decide what a run was trained on, from its `config.yaml`."""
    problems = []
    for kind in COMMANDS.values():
        try:
            config = load_config(kind, path)
        except UserError as error:
            problems.append(error)
            continue
        return {name: getattr(config.data, name) for name in KEPT}
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


def _heading(conditions: dict[str, Any], data_from: str) -> str:
    """Lines that name the model, the images and the networks of an evaluation."""
    height, width = conditions["height"], conditions["width"]
    lines = [
        f"{conditions['model']} (digest {conditions['model_digest']})",
        *(
            f"with {lora['file']}:{lora['scale']:g} (SHA-256 {lora['sha256'][:12]})"
            for lora in conditions["loras"]
        ),
        f"on {conditions['images']} images of {conditions['data']} "
        f"(split {conditions['split']}) at {height}×{width}",
    ]
    if "pixels" in conditions:
        lines.append(f"pixels: {conditions['pixels']}; features see {conditions['seen_as']}")
    if conditions["split"] != "all":
        fraction, by = conditions["validation_fraction"], conditions["validation_by"]
        lines.append(f"validation images: {fraction:.3g} of all, by {by} (from {data_from})")
    for kind in ("extractor", "perceptual"):
        if conditions[kind]:
            label, digest = conditions[kind]["label"], conditions[kind]["digest"][:12]
            lines.append(f"{kind}: {label}, weights {digest}")
    return "\n".join(lines)
