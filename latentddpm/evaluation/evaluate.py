"""Evaluation of a model, as the command `evaluate` does it: a plan, then a report of each part.

    plan ─► networks and images ─► a report of each part

Each part is one function that returns a `Report`. The results are a dictionary, written to
`evaluation.json` after each part.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentddpm import __version__
from latentddpm.data.dataset import open_dataset
from latentddpm.data.places.places import shown
from latentddpm.evaluation.plan import PARTS, EvaluationPlan
from latentddpm.generation.loras import load_model
from latentddpm.utils.console import activity
from latentddpm.utils.files import write_json
from latentddpm.utils.startup import import_keras

RESULTS = "evaluation.json"


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
        from latentddpm.data.conditions.rows import read_conditions
        from latentddpm.evaluation.images import spread_images
        from latentddpm.models.archive import weights_digest

        with activity(f"loading {plan.folder.path}", quiet):
            networks = _Networks(plan)
        told = read_conditions(plan.folder.conditions, plan.conditions, dataset.catalog)
        images = spread_images(dataset, selection, plan.size, options["limit"], told)
        extractor, perceptual = networks.extractor, networks.perceptual
        conditions = {
            "model": str(options["model"]),
            "model_digest": plan.folder.digest,
            **({} if networks.precision == "float32" else {"precision": networks.precision}),
            "loras": networks.model.loras if networks.model else [],
            "data": shown(options["data"]),
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
        from latentddpm.models.precision import settle_precision

        def load(function: Callable[[Any], Any], name: str) -> Any:
            return function(plan.options[name]) if plan.options[name] else None

        self.plan = plan
        self.precision, self.model = settle_precision(plan.precision, plan.engine), None
        if plan.draws:
            self.model = load_model(plan.folder.path, plan.loras, plan.engine, self.precision)
            self.model.facts.check_size(*plan.size)
            self.autoencoder = self.model.autoencoder
        else:
            vae = plan.folder.file("vae")
            self.autoencoder = load_archive(vae, Autoencoder, precision=self.precision)
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
            from latentddpm.evaluation.denoiser.likelihood import evaluate_bound

            timesteps = options["nll_timesteps"]
            report = evaluate_bound(
                self.model, images, num_timesteps=timesteps, seed=options["seed"], **common
            )
        elif part == "denoise":
            from latentddpm.evaluation.denoiser.denoising import evaluate_denoising

            report = evaluate_denoising(self.model, images, seed=options["seed"], **common)
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
    if "precision" in conditions:
        lines.append(f"precision: {conditions['precision']}")
    if conditions["split"] != "all":
        fraction, by = conditions["validation_fraction"], conditions["validation_by"]
        lines.append(f"validation images: {fraction:.3g} of all, by {by} (from {data_from})")
    for kind in ("extractor", "perceptual"):
        if conditions[kind]:
            label, digest = conditions[kind]["label"], conditions[kind]["digest"][:12]
            lines.append(f"{kind}: {label}, weights {digest}")
    return "\n".join(lines)
