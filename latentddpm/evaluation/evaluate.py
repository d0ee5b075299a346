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
from latentddpm.config import DataConfig
from latentddpm.config_file import parse_config
from latentddpm.data.dataset import SPLITS, open_dataset
from latentddpm.errors import UserError, check_choice
from latentddpm.evaluation.sweep import parse_sweep, settings_of
from latentddpm.generation.loras import Lora, apply_loras, read_loras
from latentddpm.pipeline.model_facts import facts_of
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.pipeline.settings import GenerationSettings
from latentddpm.utils.files import write_json
from latentddpm.utils.startup import import_keras

PARTS = ("nll", "latents", "autoencoder", "generator")
"""Parts of an evaluation, in the order they are measured; `nll` is `bound` in the results."""
RESULTS = "evaluation.json"
COMPARED = "training"
"""Split that generated images are compared with; validation images give the floor."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Plan of an evaluation: all that is decided before Keras is imported.

    Attributes:
        parts: some of `PARTS`.
        folder: of the model.
        loras: files to apply to the model.
        data: settings of split and captions.
        split: whose images are used: "all", "training" or "validation".
        size: (height, width) of the images, in pixels.
        settings: to generate images with, in the part `generator`.
        options: all options of `latentddpm evaluate`, by their names.
    """

    parts: frozenset[str]
    folder: ModelFolder
    loras: list[Lora]
    data: DataConfig
    split: str
    size: tuple[int, int]
    settings: list[GenerationSettings]
    options: dict[str, Any]

    @property
    def draws(self) -> bool:
        """True where the whole model is needed, not its autoencoder alone."""
        return bool(self.parts & {"nll", "generator"})


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
    loras = read_loras(options["loras"])
    folder = read_model_folder(options["model"])
    size = _size(folder, options["resolution"])
    data = parse_config(
        DataConfig,
        {
            "validation_fraction": options["validation_fraction"],
            "validation_by": options["validation_by"],
            "caption_templates": list(options["caption_templates"]),
        },
        source="",
    )
    settings = []
    if parts & {"nll", "generator"}:
        facts = facts_of(folder)
        facts.check_size(*size)
        if generator:
            given = {"height": size[0], "width": size[1]}
            for name in ("num_steps", "sampler", "timestep_spacing", "guidance_scale"):
                given[name] = options[name]
            settings = settings_of(facts, parse_sweep(options["sweep"]), **given)
    split = split or (COMPARED if generator else "all")
    return EvaluationPlan(parts, folder, loras, data, split, size, settings, options)


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
    import_keras()
    from latentddpm.evaluation.images import spread_images
    from latentddpm.models.archive import weights_digest

    networks = _Networks(plan)
    options, out = plan.options, plan.options["out"]
    with tempfile.TemporaryDirectory() as scratch:
        catalog = (out or Path(scratch)) / "catalog"
        dataset = open_dataset(options["data"], catalog, plan.data, quiet=quiet)
        images = spread_images(dataset, dataset.split(plan.split), plan.size, options["limit"])
        extractor, perceptual = networks.extractor, networks.perceptual
        conditions = {
            "model": str(options["model"]),
            "model_digest": plan.folder.digest,
            "loras": networks.model.loras if networks.model else [],
            "data": options["data"],
            "split": plan.split,
            "images": len(images),
            "height": plan.size[0],
            "width": plan.size[1],
            "extractor": extractor and {"label": extractor.label, "digest": extractor.digest},
            "perceptual": perceptual
            and {"label": perceptual.label, "digest": weights_digest(perceptual)},
        }
        results = {"latentddpm": __version__, **conditions}
        tell(_heading(conditions))
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


def _size(folder: ModelFolder, resolution: int | None) -> tuple[int, int]:
    if resolution is not None:
        return resolution, resolution
    if folder.image_size is None:
        raise UserError(f"{folder.path}: names no image size; give --resolution")
    return folder.image_size


def _heading(conditions: dict[str, Any]) -> str:
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
    for kind in ("extractor", "perceptual"):
        if conditions[kind]:
            label, digest = conditions[kind]["label"], conditions[kind]["digest"][:12]
            lines.append(f"{kind}: {label}, weights {digest}")
    return "\n".join(lines)
