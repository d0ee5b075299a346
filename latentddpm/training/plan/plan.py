"""Plan of a run: settings judged and completed, its data opened, before any network is built.

    options ─► settings are judged ─► data is opened ─► open settings follow from it ─► Plan

What can be judged without Keras is judged here, so the command line refuses it at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.conditions.control import CONTROL
from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.config_file import as_config
from latentddpm.data.conditions.control import ControlPictures, plan_control
from latentddpm.data.conditions.loss_masks import LossMasks, plan_masks
from latentddpm.data.dataset import Dataset, open_dataset
from latentddpm.data.places.places import Data, shown
from latentddpm.data.places.weighted import weight_lines, weights_fact
from latentddpm.errors import UserError
from latentddpm.training.conditions import (
    inherit_conditions,
    pictures_folder,
    plan_conditions,
    second_of,
    second_pictures,
)
from latentddpm.training.plan import resolve
from latentddpm.training.plan.augment import augment_notes
from latentddpm.training.plan.pixels import judge_pixels
from latentddpm.training.plan.settle import (
    complete_diffusion,
    complete_vae,
    settle_diffusion,
    settle_vae,
)
from latentddpm.training.plan.sources import Sources
from latentddpm.training.plan.words import (
    captions_note,
    captions_of,
    check_captions,
    check_token_captions,
    with_token_captions,
)
from latentddpm.training.run.contract import Contract
from latentddpm.training.run.resume import (
    check_best,
    check_resume,
    check_run,
    data_facts,
    earlier_settings,
)
from latentddpm.training.run.run import Run
from latentddpm.training.run.wandb_log import import_wandb
from latentddpm.training.subject.prior import plan_prior, prior_note
from latentddpm.utils import signals
from latentddpm.utils.console import activity
from latentddpm.utils.images.pixel_format import PixelFormat

if TYPE_CHECKING:
    import tensorflow as tf

    from latentddpm.data.conditions.source import ConditionSource

Config = AutoencoderRun | DiffusionRun
MASKS = "masks"
"""Folder of what is kept about masks."""


@dataclass(frozen=True)
class Plan:
    """Plan of a run.

    Attributes:
        run: its complete settings, its folder, and how it goes on.
        dataset: opened.
        facts: about the data, for the contract of the run.
        judged: the contract of the run was compared with that of its newest checkpoint. It is
            not where `facts` lack a digest of networks that are not loaded yet.
        sources: finished models that a `train-diffusion` run uses; None for `train-vae`.
        latents: folder of the latents cache; None for `train-vae`, and for a run on pixels.
        notes: lines for people, before the first step.
        conditions: sources of what the network is told beside text.
        control: pictures that a ControlNet sees; None where none is trained.
        masks: of the loss; None where it counts everywhere.
        prior: images of the subject's class; None where they are drawn, or where there are none.
    """

    run: Run
    dataset: Dataset
    facts: Mapping[str, int | str]
    judged: bool
    sources: Sources | None = None
    latents: Path | None = None
    notes: list[str] = field(default_factory=list)
    conditions: Sequence[ConditionSource] = ()
    control: ControlPictures | None = None
    masks: LossMasks | None = None
    prior: Dataset | None = None

    def agreed(self, **late: str) -> Contract:
        """Contract of the run, compared with that of its newest checkpoint.

        Args:
            late: facts about networks that the plan could not know.

        Raises:
            UserError: see `training.run.resume.check_resume`.
        """
        if self.judged:
            return Contract.of(self.run.config, self.facts)
        return check_resume(self.run, {**self.facts, **late})


@signals.listening()
def plan_vae(
    config: AutoencoderRun | dict[str, Any] | str | Path,
    data: Data,
    out: str | Path,
    *,
    catalog: str | Path | None = None,
    strict: bool = False,
    resume: bool = False,
    allow_changes: bool = False,
    quiet: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> Plan:
    """Plan of a `train-vae` run; arguments as of `training.autoencoder.train_vae`.

    Raises:
        UserError: unusable settings, data or model folder, or a run folder that holds a run (or,
            with `resume`, a finished or another one).
        OSError: the run folder cannot be written.
    """
    given = as_config(AutoencoderRun, config)
    out = Path(out)
    started = _started(given, out, resume)
    config, base = settle_vae(started)
    why = _why(started, config, "init")
    run = Run(config, out, resume, allow_changes, quiet, strategy)
    dataset = _open(run, data, catalog or out / "catalog", strict)
    run = _with(run, complete_vae(config, dataset))
    config = run.config
    dataset.pixels = PixelFormat.of(config.data)
    pixels = _judge_pixels(given, config, dataset, resume)
    check_best(config.training, len(dataset.validation))
    facts = {"init": base.digest} if base is not None else {}
    facts |= weights_fact(dataset.catalog)
    if config.data.validation_by == "caption":
        facts["captions"] = dataset.catalog.row_digest
    facts = data_facts(dataset.catalog, **facts)
    judged = config.perceptual.source == "none"
    if judged:
        check_resume(run, facts)
    notes = _notes(given, config, why) + pixels + _data_notes(dataset)
    if config.data.mask.given:
        notes.append("masks      are no images; the loss of an autoencoder counts everywhere")
    return Plan(run, dataset, facts, judged, notes=notes)


@signals.listening()
def plan_diffusion(
    config: DiffusionRun | dict[str, Any] | str | Path,
    data: Data,
    vae: str | Path | None,
    out: str | Path,
    *,
    latents: str | Path | None = None,
    catalog: str | Path | None = None,
    strict: bool = False,
    resume: bool = False,
    allow_changes: bool = False,
    quiet: bool = False,
    strategy: tf.distribute.Strategy | None = None,
) -> Plan:
    """Plan of a `train-diffusion` run; arguments as of `training.diffusion.train_diffusion`.

    Raises:
        UserError: unusable settings, data or model folder, no captions for a text-conditioned
            model, or a run folder that holds a run (or, with `resume`, a finished or another one).
        OSError: the run folder cannot be written.
    """
    given = as_config(DiffusionRun, config)
    out = Path(out)
    started = _started(given, out, resume)
    config, sources = settle_diffusion(started, vae)
    config = inherit_conditions(config, sources.base)
    first_stage = sources.first_stage
    latents = first_stage.latents_folder(out, Path(latents) if latents else None)
    if latents is not None:
        _check_folder("--latents", latents)
    why = _why(started, config, "init" if sources.base else "autoencoder")
    factor = first_stage.downsample_factor
    run = Run(config, out, resume, allow_changes, quiet, strategy, factor)
    dataset = _open(run, data, catalog or (latents or out) / "catalog", strict)
    captioned = captions_of(dataset)
    if config.text.new_token and not captioned:
        run = _with(run, with_token_captions(config))
        dataset = _open(run, data, catalog or (latents or out) / "catalog", strict)
        config, captioned = run.config, True
    run = _with(run, complete_diffusion(config, sources, dataset, captioned))
    config = run.config
    dataset.pixels = PixelFormat.of(config.data)
    pixels = _judge_pixels(given, config, dataset, resume)
    check_captions(config, dataset, captioned)
    check_token_captions(config, dataset)
    check_best(config.training, len(dataset.validation))
    facts = {"autoencoder": first_stage.digest}
    conditions = plan_conditions(
        config, dataset, sources.base, first_stage, pictures_folder(out, latents)
    )
    facts |= second_pictures(conditions)
    control = plan_control(config, dataset, pictures_folder(out, latents) / CONTROL)
    if control is not None and control.digest:
        facts["pictures of control"] = control.digest
    masks = plan_masks(config.data, dataset.catalog, factor, pictures_folder(out, latents) / MASKS)
    if masks is not None:
        facts["masks"] = masks.digest
    facts |= weights_fact(dataset.catalog)
    told = config.conditions or config.control.column or config.data.mask.column
    if config.text.source != "none" or config.data.validation_by == "caption" or told:
        facts["captions"] = dataset.catalog.row_digest
    if sources.base is not None:
        facts["init"] = sources.base.digest
    prior = plan_prior(run)
    if prior is not None:
        facts |= {
            "images of prior": prior.catalog.digest,
            "captions of prior": prior.catalog.row_digest,
        }
    facts = data_facts(dataset.catalog, **facts)
    judged = sources.base is not None or config.text.source == "none" or config.text.trained
    if judged:
        check_resume(run, facts)
    if config.text.source == "scratch" and resolve.is_open(started.text.source):
        why["text.source"] = "the data has captions"
    notes = _notes(given, config, why) + pixels + captions_note(given, config, dataset, captioned)
    asked = [one.condition for one in conditions if one.condition.asked]
    notes += [f"condition  {one.name}: {one.describe()}" for one in asked]
    notes += augment_notes(config.data.augment)
    if control is not None:
        notes.append(f"ControlNet {control.condition.describe()}")
    notes += _data_notes(dataset, masks) + prior_note(run, prior)
    beside = (conditions, control, masks, prior)
    return Plan(run, dataset, facts, judged, sources, latents, notes, *beside)


def check_out(folder: Path) -> None:
    """Refuse a run folder that cannot be made or written.

    Args:
        folder: of the run.

    Raises:
        UserError: it is a file, or below one.
        OSError: there is no permission.
    """
    _check_folder("--out", folder)
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "cannot be written: no permission", str(place))


def _check_folder(option: str, folder: Path) -> None:
    for path in (folder, *folder.absolute().parents):
        if path.is_dir():
            return
        if path.exists() or path.is_symlink():
            raise UserError(f"{option} {folder}: {path} is a file; name a folder")


def _started(config: Config, out: Path, resume: bool) -> Any:
    """Settings with those that the run in a folder was started with, where they are open."""
    check_out(out)
    check_run(out, resume)
    if config.training.wandb:
        import_wandb()
    return resolve.fill(config, earlier_settings(out)) if resume else config


def _open(run: Run, data: Data, catalog: str | Path, strict: bool) -> Dataset:
    with activity(f"reading the list of images of {shown(data)}", run.silent):
        return open_dataset(
            *(data, catalog, run.config.data, run.processes),
            strict=strict,
            quiet=run.silent,
            second=second_of(run.config),
        )


def _judge_pixels(given: Config, config: Config, dataset: Dataset, resume: bool) -> list[str]:
    """Lines about the pixel format; a run that goes on keeps that of its start, unjudged."""
    return [] if resume else judge_pixels(given, config, dataset.catalog)


def _with(run: Run, config: Config) -> Run:
    """Run with other settings."""
    return replace(run, config=config)


def _why(started: Config, settled: Config, model: str) -> dict[str, str]:
    """Origin of the resolution, by the first of two configurations that has it."""
    whose = "data" if settled.data.resolution is None else model
    if started.data.resolution is not None:
        whose = "run that goes on"
    return {"data.resolution": f"that of the {whose}"}


def _data_notes(dataset: Dataset, masks: LossMasks | None = None) -> list[str]:
    """Lines about places, weights, tags and masks; empty for one place without any."""
    tags = dataset.config.tags
    lines = [*weight_lines(dataset.training, dataset.catalog)]
    lines += [f"tags       {tags}"] if tags.drawn else []
    return [*lines, *([] if masks is None else masks.lines())]


def _notes(given: Config, config: Config, why: Mapping[str, str]) -> list[str]:
    found = resolve.chosen(given, config, why)
    notes = [f"settings   {found}"] if found else []
    was, now = given.training.precision, config.training.precision
    if resolve.is_open(was) and not resolve.is_open(now):
        notes.append(f"precision  {now}: the run began with it")
    return notes
