"""Evaluation of a generator: generated images compared with training images, with a floor.

For each choice of settings the features of generated images are compared with those of the
training images, by Fréchet and kernel distance, precision and recall, density and coverage. Most
of these numbers depend on the number of images, and none says by itself what is good. So
validation images, which were not trained on, are measured in the same way and number: the floor.
A generator whose images are as good and as diverse as the data reaches the floor; distances below
it are a sign of copies. Where there are fewer validation images than generated ones, that many
generated ones are measured too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentddpm.errors import UserError
from latentddpm.evaluation.clip_towers import ClipTowers
from latentddpm.evaluation.extractors import Extractor
from latentddpm.evaluation.features import FEATURES, Images, kept_features
from latentddpm.evaluation.generated_images import GeneratedImages, prompts_of, spread_rows
from latentddpm.evaluation.images import ImageSet, spread_images
from latentddpm.evaluation.metrics.by_class import class_table, compare_classes
from latentddpm.evaluation.metrics.clip_score import clip_scores
from latentddpm.evaluation.metrics.frechet import Statistics, frechet_distance
from latentddpm.evaluation.metrics.kernel import kernel_distance
from latentddpm.evaluation.metrics.nearest import nearest, share_nearer
from latentddpm.evaluation.metrics.pairwise import check_count
from latentddpm.evaluation.metrics.precision_recall import (
    LEAST,
    density_coverage,
    precision_recall,
)
from latentddpm.evaluation.sweep import plot_sweep
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.settings import GenerationSettings
from latentddpm.utils import signals
from latentddpm.utils.figures import new_figure
from latentddpm.utils.pixels import grid, save_png

GENERATED = "generated"
NEAREST, SWEEP = "nearest.png", "sweep.png"
SHOWN, NEIGHBOURS = 8, 5  # rows of the picture, and training images in a row


@dataclass(frozen=True)
class Measures:
    """Measures of one set of images, compared with the training images.

    Attributes:
        count: number of images.
        frechet: see `metrics.frechet`.
        kernel: kernel distance, see `metrics.kernel`.
        kernel_error: half of its 95 % confidence interval.
        precision: see `metrics.precision_recall`.
        recall: see `metrics.precision_recall`.
        density: see `metrics.precision_recall`.
        coverage: see `metrics.precision_recall`.
        near: share of images nearer to a training image than all but 5 % of the validation
            images, see `metrics.nearest`; None with too few validation images.
        clip: mean CLIP score of images with their captions, see `metrics.clip_score`; None
            without CLIP.
        clip_error: standard error of that mean; None without CLIP.
    """

    count: int
    frechet: float
    kernel: float
    kernel_error: float
    precision: float
    recall: float
    density: float
    coverage: float
    near: float | None
    clip: float | None = None
    clip_error: float | None = None


class References:
    """Reference features that generated images are compared with.

    Args:
        training: features of training images, (M, d).
        validation: features of validation images, (H, d); None for none.

    Attributes:
        floor: True where there are enough validation images to be measured themselves.
    """

    def __init__(self, training: np.ndarray, validation: np.ndarray | None) -> None:
        self.training, self.validation = training, validation
        self.floor = validation is not None and len(validation) >= LEAST
        self._statistics = Statistics().add(training)
        self._fresh = self._distances(validation) if self.floor else None

    def measure(self, features: np.ndarray, scores: np.ndarray | None = None) -> Measures:
        """Compare a set of images with the training images.

        Args:
            features: of the set, (N, d).
            scores: CLIP scores of the images, (N,), NaN for one without a caption; None without
                CLIP.

        Returns:
            Their measures.
        """
        kernel = kernel_distance(self.training, features)
        low, high = kernel.interval
        near = None
        if self._fresh is not None:
            near = share_nearer(self._distances(features), self._fresh)
        return Measures(
            len(features),
            frechet_distance(self._statistics, Statistics().add(features)),
            kernel.value,
            (high - low) / 2,
            *precision_recall(self.training, features),
            *density_coverage(self.training, features),
            near,
            *(() if scores is None else _mean_and_error(scores[np.isfinite(scores)])),
        )

    def _distances(self, features: np.ndarray) -> np.ndarray:
        return nearest(features, self.training, 1)[0][:, 0]


def _mean_and_error(values: np.ndarray) -> tuple[float | None, float | None]:
    """Mean and its standard error; None for fewer than two values."""
    if len(values) < 2:
        return None, None
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


@signals.listening()
def evaluate_generator(
    model: LatentDiffusion,
    settings: Sequence[GenerationSettings],
    training: ImageSet,
    extractor: Extractor,
    out: Path,
    *,
    num_images: int,
    towers: ClipTowers | None = None,
    seed: int = 0,
    batch_size: int = 16,
    quiet: bool = False,
    tell: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Generate images with each choice of settings, and compare them with the training images.

    Args:
        model: to generate with.
        settings: made by `model.settings`, at the size of `training`.
        training: training images of a data set, or some of them, with the model's conditions.
        extractor: of the features.
        out: folder for images, features and pictures; the next call reads images and features
            again.
        num_images: to generate with each choice, at least `LEAST`; prompts and conditions are
            those of images spread over the training images, image k has `seed` + k.
        towers: CLIP, to score images with their captions; None for no CLIP score.
        seed: of the first image.
        batch_size: images denoised together.
        quiet: show no progress.
        tell: takes the lines of the table, as soon as they are ready.

    Returns:
        The numbers of the tables, for JSON.

    Raises:
        UserError: settings that the model does not accept, too few images, none with a caption,
            or several choices without matplotlib for their plot.
        signals.Stopped: a signal came; the finished images are kept.
    """
    if num_images < LEAST:
        raise UserError(f"--num-images: {num_images}, expected at least {LEAST}")
    for setting in settings:
        model.make_sampler(setting)
    check_count("density and coverage", len(training), LEAST)
    if towers is not None and model.text_encoder is None:
        raise UserError("--clip: this model is unconditional: no image has words to be held to")
    if len(settings) > 1:
        new_figure(1, 1)  # a missing matplotlib is an error now, not after hours of drawing
    dataset = training.dataset
    rows, prompts = spread_rows(dataset.training, num_images), [""] * num_images
    told = training.told(rows)
    if model.text_encoder is not None:
        prompts = prompts_of(dataset.captions, rows)
        if not any(prompts):
            raise UserError(f"{training.catalog.source.place}: no image has a caption to draw")
    validation = spread_images(dataset, dataset.validation, training.size, num_images)

    known = References(
        kept_features(extractor, training, out / FEATURES, "training images", quiet),
        kept_features(extractor, validation, out / FEATURES, "validation images", quiet)
        if len(validation)
        else None,
    )
    scores = None
    if known.floor and towers is not None:
        own = validation.captions()
        scores = clip_scores(towers, validation, own, "CLIP of validation images", quiet)
    floor = known.measure(known.validation, scores) if known.floor else None
    report: dict[str, Any] = {
        "frechet": extractor.frechet_name,
        "kernel": extractor.kernel_name,
        "clip": towers and {"label": towers.label, "digest": towers.digest},
        "training_images": len(training),
        "seed": seed,
        "floor": floor and asdict(floor),
        "settings": [],
    }
    tell(heading(report))
    if floor:
        tell(table_row(None, floor))
    lowest = np.inf
    for number, setting in enumerate(settings, 1):
        images = GeneratedImages(out / GENERATED, model, setting, prompts, seed, told)
        # All settings take about as long as this one, by their steps.
        steps = sum(each.num_steps for each in settings[number - 1 :]) / setting.num_steps
        label = f"{number}/{len(settings)} {setting}"
        images.draw(batch_size, quiet, label, steps if number == 1 else None)
        features = kept_features(extractor, images, out / FEATURES, "drawn images", quiet)
        if towers is not None:
            scores = clip_scores(towers, images, prompts, "CLIP", quiet)
        counts = {num_images, floor.count if floor else num_images}
        for count in sorted(counts, reverse=True):
            measures = known.measure(features[:count], None if towers is None else scores[:count])
            report["settings"].append({**setting.to_json(), **asdict(measures)})
            tell(table_row(setting, measures))
        if name := training.class_name:
            words = ([one.get(name) for one in those] for those in (training.told(), told))
            classes = compare_classes(known.training, next(words), features, next(words))
            report["settings"][-len(counts)]["classes"] = classes
            tell(class_table(name, classes))
        if measures.frechet < lowest:
            lowest = measures.frechet
            save_png(out / NEAREST, beside_nearest(images, training, features, known.training))
    if len(settings) > 1:
        plot_sweep(out / SWEEP, report)
    return report


def beside_nearest(
    images: Images, training: Images, features: np.ndarray, training_features: np.ndarray
) -> np.ndarray:
    """Picture of the images that are nearest to training images, each beside its nearest ones.

    Args:
        images: generated images, N of them.
        training: training images, M of them.
        features: of the generated images, (N, d).
        training_features: of the training images, (M, d).

    Returns:
        uint8 (H', W', 3), a row for each of up to `SHOWN` images.
    """
    distances, numbers = nearest(features, training_features, NEIGHBOURS)
    closest = np.argsort(distances[:, 0], kind="stable")[:SHOWN]
    return grid(
        [
            np.concatenate([images.read(closest[k : k + 1]), training.read(numbers[closest[k]])])
            for k in range(len(closest))
        ]
    )


# --- The table -----------------------------------------------------------------------------


def heading(report: dict[str, Any]) -> str:
    """Heading of the table: the conditions of its numbers, and the names of its columns.

    Args:
        report: returned by `evaluate_generator`, without its settings.
    """
    clip = report["clip"]
    words = [f"CLIP       score by {clip['label']}, weights {clip['digest'][:12]}"] if clip else []
    floor = [
        "validation images that were not trained on, as if they had been generated",
        "near       share nearer to a training image than all but 5 % of the validation images",
    ]
    if not report["floor"]:
        floor = [f"validation fewer than {LEAST} images: no numbers to compare with, no near"]
    return "\n".join(
        [
            *words,
            f"Fréchet    {report['frechet']}",
            f"kernel     {report['kernel']}, ± 95 % confidence",
            f"against    {report['training_images']} training images; seed {report['seed']}",
            *floor,
            "",
            f"{'sampler':16}{'steps':>6} {'spacing':9}{'guidance':>9}{'n':>7}{'Fréchet':>10}"
            f"{'kernel':>11} {'±':9}{'precision':>10}{'recall':>8}{'density':>9}"
            f"{'coverage':>10}{'near':>7}{'  CLIP ± error' if clip else ''}",
        ]
    )


def table_row(setting: GenerationSettings | None, measures: Measures) -> str:
    """Line of the table.

    Args:
        setting: of the images; None for validation images.
        measures: of the images.
    """
    name = f"{'validation':41}"
    if setting is not None:
        name = (
            f"{setting.sampler:16}{setting.num_steps:>6} {setting.timestep_spacing:9}"
            f"{setting.guidance_scale:>9g}"
        )
    near = "-" if measures.near is None else f"{measures.near:.1%}"
    clip = "" if measures.clip is None else f"{measures.clip:>6.2f} ± {measures.clip_error:<5.2g}"
    return (
        f"{name}{measures.count:>7}{measures.frechet:>10.4g}{measures.kernel:>11.3g} "
        f"{measures.kernel_error:<9.2g}{measures.precision:>10.3f}{measures.recall:>8.3f}"
        f"{measures.density:>9.3f}{measures.coverage:>10.3f}{near:>7}{clip}"
    )
