"""Prior preservation: images of the subject's class in every batch (DreamBooth, Ruiz et al. 2023).

    L = (1/B) [ Σ ℓ(subject) + λ Σ ℓ(class) ],      ⌊B/2⌋ of the B examples are of the class

A model that is trained on a few photos of one dog forgets what other dogs look like. So half of
every batch shows others: images of `prior.data`, or those that the model itself draws from
`prior.prompt` before its training, once, with the seeds that follow `training.seed`.

    OUT/prior/images/  drawn.json  catalog/  latents/
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.data.catalog.split import Selection
from latentddpm.data.dataset import Dataset, open_dataset
from latentddpm.errors import UserError
from latentddpm.generation.output import write_picture
from latentddpm.generation.provenance import common_metadata, image_metadata
from latentddpm.pipeline.model_folder import ModelFolder
from latentddpm.utils import signals
from latentddpm.utils.console import activity
from latentddpm.utils.files import read_json, write_json

if TYPE_CHECKING:
    from latentddpm.clip.tokenizer import CLIPTokenizer
    from latentddpm.data.batches import PriorImages
    from latentddpm.training.plan.first_stage import FirstStage
    from latentddpm.training.run.run import Run

FOLDER = "prior"
"""Folder of these images in a run."""
AT_ONCE = 16
"""Images drawn together; those of a run that was stopped are not drawn again."""


def plan_prior(run: Run) -> Dataset | None:
    """Images of `prior.data`, opened; None where they are drawn, or where there are none.

    Args:
        run: with complete settings.

    Raises:
        UserError: see `data.dataset.open_dataset`; or they have no captions, which the model
            needs.
    """
    prior, text = run.config.prior, run.config.text.source != "none"
    if not prior.data:
        return None
    with activity(f"reading the list of images of {prior.data}", run.silent):
        dataset = _opened(run, prior.data)
    if text and not any(dataset.captions[row] for row in range(len(dataset))):
        raise UserError(
            f"prior.data: {prior.data} has no captions; give all its images the same words with "
            'prior.prompt, such as --set prior.prompt="a dog"'
        )
    return dataset


def prior_note(run: Run, dataset: Dataset | None) -> list[str]:
    """Lines for people about these images; none without them.

    Args:
        run: with complete settings.
        dataset: returned by `plan_prior`.
    """
    prior = run.config.prior
    if not prior.used:
        return []
    told = f'of "{prior.prompt}"' if prior.prompt else "with their captions"
    what = f"{prior.num_images} images {told}, drawn once by {run.config.init}"
    if dataset is not None:
        told = told if run.config.text.source != "none" else "without text"
        what = f"{len(dataset)} images of {prior.data}, {told}"
    size = run.training.batch_size
    share = f"{prior.share(size)} of a batch of {size}"
    return [f"prior      {what}; {share}, weight {prior.weight:g}"]


def drawn_prior(run: Run, dataset: Dataset | None, base: ModelFolder | None) -> Dataset | None:
    """Images of a run's class; those that are not there are drawn.

    Args:
        run: with complete settings.
        dataset: returned by `plan_prior`.
        base: model that the run starts from.

    Returns:
        The images; None for a run without them.

    Raises:
        UserError, signals.Stopped, OSError: see `draw_images` and `data.dataset.open_dataset`.
    """
    if dataset is not None or not run.config.prior.used:
        return dataset
    folder = run.folder / FOLDER / "images"
    if run.is_chief:
        draw_images(run, base, folder)
    run.processes.barrier()
    return _opened(run, folder)


def open_prior(
    run: Run,
    dataset: Dataset | None,
    first_stage: FirstStage,
    tokenizer: CLIPTokenizer | None,
) -> PriorImages | None:
    """Latents and captions of the images of a run's class, ready to be read.

    Args:
        run: with complete settings.
        dataset: returned by `drawn_prior`.
        first_stage: of the run.
        tokenizer: of the captions; None for an unconditional model.

    Raises:
        UserError, OSError: see `data.latents.cache.prepare_latents` and `Dataset.tokens`.
    """
    from latentddpm.data.batches import PriorImages

    if dataset is None:
        return None
    cache = first_stage.latents(dataset, run, run.folder / FOLDER / "latents")
    tokens = None if tokenizer is None else dataset.tokens(tokenizer)
    return PriorImages(Selection(len(dataset)), cache, tokens, run.config.prior.weight)


def draw_images(run: Run, base: ModelFolder, folder: Path) -> None:
    """Draw images of a class with the model that a run starts from, those that are missing.

    Args:
        run: with a prompt of the class.
        base: the model.
        folder: of the images.

    Raises:
        UserError: the folder has images of another prompt, model, size, seed or number.
        signals.Stopped: a signal came; the images so far are kept.
        OSError: the folder cannot be written.
    """
    prior, seed, data = run.config.prior, run.training.seed, run.config.data
    sides = ("length",) if data.spatial_dims == 1 else ("height", "width")
    size = dict.fromkeys(sides, data.resolution)
    facts = {"prompt": prior.prompt, "num_images": prior.num_images, "seed": seed}
    _note_drawn(folder, {**facts, **size, "model": base.digest})
    numbers = range(seed, seed + prior.num_images)
    files = {number: folder / f"{number:08d}{base.pixels.suffix}" for number in numbers}
    missing = [number for number, file in files.items() if not file.exists()]
    if not missing:
        return
    from tqdm import tqdm

    from latentddpm.pipeline.latent_diffusion import LatentDiffusion

    with activity(f"loading {base.path}, which draws {prior.prompt!r}", run.silent):
        model = LatentDiffusion.load(base.path, engine="auto")
    settings = model.settings(**size)
    common = common_metadata(base, settings, None, num_images=1, files={}, order=())
    common["engine"] = model.engine
    with tqdm(total=len(missing), desc="draw", unit="image", disable=run.silent) as bar:
        for k in range(0, len(missing), AT_ONCE):
            seeds = missing[k : k + AT_ONCE]
            with signals.deferred():
                drawn = model.generate([prior.prompt] * len(seeds), seed=seeds, settings=settings)
                for number, pixels in zip(seeds, drawn, strict=True):
                    metadata = image_metadata(common, [], prior.prompt, None, number)
                    write_picture(files[number], pixels, metadata, True, base.pixels)
            bar.update(len(seeds))


def _note_drawn(folder: Path, facts: dict[str, Any]) -> None:
    """Refuse a folder of other images, and note what its images are drawn from."""
    record = folder.parent / "drawn.json"
    known = read_json(record, optional=True)
    other = sorted(key for key in facts if known and known.get(key) != facts[key])
    if other:
        raise UserError(
            f"{folder}: drawn from another {other[0]}; delete {folder.parent} to draw anew"
        )
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json(record, facts)


def _opened(run: Run, place: str | Path) -> Dataset:
    """Images of a place, with the prompt as their caption where there is one."""
    prompt = run.config.prior.prompt.replace("{", "{{").replace("}", "}}")
    data = run.config.data.model_copy(
        update={"caption_templates": [prompt] if prompt else [], "validation_fraction": 0.0}
    )
    folder = run.folder / FOLDER / "catalog"
    return open_dataset(place, folder, data, run.processes, quiet=run.silent)
