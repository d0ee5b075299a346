"""Whole run: from a folder of images to a model, stage by stage.

    doctor ─► plan ─► autoencoder ─► latents, UNet ─► model

Each stage is a run of its own that resumes by itself; one that is finished is not repeated. With a
time, the number of the UNet's steps is settled once more after the autoencoder's training, before
its own begins, and a training that is still too slow ends early, with a checkpoint, as a whole
model.
"""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.config_file import load_config, override_settings, parse_config
from latentddpm.data.dataset import open_dataset
from latentddpm.data.doctor.doctor import examine
from latentddpm.data.places.places import Data, shown
from latentddpm.model_card.card import write_card
from latentddpm.pipeline.model_folder import is_model
from latentddpm.recipe import budget, folder
from latentddpm.recipe.facts import data_facts, machine_facts
from latentddpm.recipe.first_stage import Task
from latentddpm.recipe.folder import CATALOG, DIFFUSION, VAE, WrittenPlan
from latentddpm.recipe.goal import Goal
from latentddpm.recipe.plan import plan_run
from latentddpm.recipe.report import doctor_lines, plan_lines
from latentddpm.recipe.rules import OWN
from latentddpm.recipe.settings import CAPTIONS, PARTS, lengths, split_overrides
from latentddpm.training import autoencoder, diffusion
from latentddpm.training.conditions import second_of
from latentddpm.training.plan.plan import check_out, plan_diffusion, plan_vae
from latentddpm.training.run import checkpoint
from latentddpm.training.run.curves import LOG, read_curves
from latentddpm.training.run.run import CHECKPOINTS, CONFIG, TimeUp
from latentddpm.utils.console import activity, say
from latentddpm.utils.files import atomic_folder, atomic_path
from latentddpm.utils.timing import clock

SPEED = "examples_per_second"
NOT_AUGMENTED = ("lora.", "control.", "distill.", "prior.", "data.mask.", "conditions.")
"""Beginnings of settings of trainings that take no augmented images."""


@dataclass(frozen=True)
class Options:
    """Options of a whole run, beside its data, folder and goal.

    Attributes:
        overrides: `vae.section.key=value` and `diffusion.section.key=value`.
        precision: of both trainings; None for that of the settings.
        strategy: from `distribution.strategy.make_strategy`; None for one device.
        strict: refuse data with unreadable images.
        quiet: show no progress and no messages.
    """

    overrides: Sequence[str] = ()
    precision: str | None = None
    strategy: Any = None
    strict: bool = False
    quiet: bool = False


def make_plan(data: Data, out: Path, goal: Goal, options: Options, began: float) -> WrittenPlan:
    """Look at the images, plan the run, print the plan and write it.

    Args:
        data: places of the images; see `data.places.places.as_places`.
        out: folder of the whole run.
        goal: what is asked for.
        options: of the run.
        began: start of the run, as of `time.monotonic`.

    Raises:
        UserError: unusable data or settings, a time too short or too little memory for any plan.
        OSError: the folder cannot be written.
    """
    parts = split_overrides(options.overrides)
    if options.precision is not None:
        for part in parts.values():
            part.insert(0, f"training.precision={options.precision}")
    check_out(out)
    report = examine(data, limit=1, quiet=options.quiet)
    say("\n".join(doctor_lines(report, shown(data))), options.quiet)
    with activity(f"reading the list of images of {shown(data)}", options.quiet):
        # The doctor has named what is left out.
        config = _data_settings(parts[DIFFUSION])
        dataset = open_dataset(
            *(data, out / CATALOG, config.data),
            strict=options.strict,
            quiet=True,
            second=second_of(config),
        )
    augmentable = not any(one.startswith(NOT_AUGMENTED) for one in parts[DIFFUSION])
    facts, machine = data_facts(dataset, augmentable), machine_facts()
    plan = plan_run(Task(dataset, facts, machine, goal, parts, began, options.quiet))
    say("\n".join(plan_lines(plan)), options.quiet)
    return folder.write_plan(out, data, plan, list(options.overrides), options.precision)


def _data_settings(overrides: Sequence[str]) -> DiffusionRun:
    """Settings that say which files are images, and which captions they have."""
    own = [one for one in overrides if one.startswith(("data.", "conditions."))]
    settings = override_settings({"data": {"captions": CAPTIONS}}, own)
    return parse_config(DiffusionRun, settings, "diffusion.")


def follow(plan: WrittenPlan, out: Path, options: Options, began: float) -> Path:
    """Follow a plan to its model; what is finished is not repeated.

    Args:
        plan: in the folder.
        out: folder of the whole run.
        options: of the run.
        began: start of this process's part of the run, as of `time.monotonic`.

    Returns:
        The model folder.

    Raises:
        UserError, OSError, signals.Stopped, Diverged, MemoryError: see
            `training.autoencoder.train_planned` and `training.diffusion.train_planned`.
    """
    return _Run(plan, out, options, began).run()


class _Run:
    """Whole run that follows its plan."""

    def __init__(self, plan: WrittenPlan, out: Path, options: Options, began: float) -> None:
        self.plan, self.out, self.options, self.began = plan, out, options, began
        self.state = folder.read_state(out)
        self.state["spent"] += folder.unfinished_seconds(out, self.state)
        self.state["since"] = time.time() - (time.monotonic() - began)

    def run(self) -> Path:
        model = self.out / "model"
        self._write_state()
        try:
            for part in self.state["corrected"]:
                self._write_corrected(part)  # a kill may have come before
            if self.plan.first_stage == OWN:
                if not is_model(self.out / VAE / "model"):
                    self._train(VAE, self._until(VAE))
                self._settle_again()
            if not is_model(self.out / DIFFUSION / "model"):
                self._train(DIFFUSION, self._until(DIFFUSION))
        finally:
            self.state["spent"], self.state["since"] = self.spent, None
            folder.write_state(self.out, self.state)
        if not is_model(model):
            self._finish(model)
        write_card(model, self.out)
        return model

    @property
    def spent(self) -> float:
        """Seconds of the run so far, in all of its processes."""
        return self.state["spent"] + time.monotonic() - self.began

    # --- Times ---

    def _until(self, part: str) -> float | None:
        """Seconds from now until a training has to end; None for no limit."""
        times, limit = self.plan.times, self.plan.goal.seconds
        if limit is None:
            return None
        if part == VAE:
            own = times.autoencoder
            steps = folder.read_settings(self.out, VAE)["training"]["num_steps"]
            planned = own.compiling + steps * own.step + times.validations * times.check
            return times.before + budget.LATE * planned - self.spent
        left = limit - self.spent - budget.SAVING - times.grid
        if checkpoint.present(self.out / DIFFUSION / CHECKPOINTS):
            return left
        least = times.encoding + times.unet.compiling + budget.LEAST_STEPS * times.unet.step
        return max(left, least)

    def _settle_again(self) -> None:
        """Settle the UNet's steps by how long the autoencoder took; once, before they begin."""
        if self.plan.goal.seconds is None or self.state["settled"]:
            return
        settings = folder.read_settings(self.out, DIFFUSION)
        curves = read_curves(self.out / VAE)
        slower, times = 1.0, self.plan.times
        if SPEED in curves:
            size = folder.read_settings(self.out, VAE)["training"]["batch_size"]
            slower = size / float(curves[SPEED].values.mean()) / times.autoencoder.step
        planned = settings["training"]["num_steps"]
        steps = budget.steps_left(self.plan.goal.seconds, self.spent, times, slower)
        if steps != planned and not self._fixed(DIFFUSION):
            settings["training"] |= lengths(steps, times.unet.step * slower, times.validations)
            own = split_overrides(self.plan.overrides)[DIFFUSION]
            override_settings(settings, own)
            folder.write_settings(self.out, DIFFUSION, settings)
            self._say(
                f"time       {clock(self.spent)} spent, steps took {slower:.2f} of what was "
                f"planned: {steps} steps of the UNet instead of {planned}"
            )
        self.state["settled"] = True
        self._write_state()

    # --- Stages ---

    def _train(self, part: str, until: float | None) -> None:
        """Train the autoencoder or the UNet.

        With a time, the first real steps may correct their number, once; and where the time is up
        the training ends.
        """
        if part in self.state["ended"]:
            until = None
        pace = None
        if until is not None:
            pace = self._pace(part, time.monotonic() + max(until, 0.0))
        try:
            self._train_to(part, pace)
        except TimeUp as error:
            if pace.steps <= error.step:
                self._say(f"time       is up: ends at step {error.step} of {pace.planned}")
                self.state["ended"][part] = error.step
                self._write_state()
            else:
                self._correct(part, pace)
            self._train(part, None if part in self.state["ended"] else self._until(part))

    def _pace(self, part: str, deadline: float) -> budget.Pace:
        """Pace of a training that has to end at a time, as of `time.monotonic`."""
        times, training = self.plan.times, folder.read_settings(self.out, part)["training"]
        quality = self.plan.goal.of_quality
        examples, check, speed = quality.most, times.grid, times.unet
        if part == VAE:
            examples, check, speed = quality.autoencoder_images, times.check, times.autoencoder
        correcting = part not in self.state["corrected"] and not self._fixed(part)
        return budget.Pace(
            training["num_steps"],
            deadline,
            max(examples // training["batch_size"], training["num_steps"]),
            times.validations * check + speed.compiling,
            correcting,
        )

    def _fixed(self, part: str) -> bool:
        """True where the user has set the number of a training's steps."""
        return any(one.startswith(f"{part}.training.num_steps=") for one in self.plan.overrides)

    def _correct(self, part: str, pace: budget.Pace) -> None:
        """Write down the number of steps that the pace of the first ones leaves time for."""
        self._say(f"time       {pace.steps} steps fit in, instead of {pace.planned}")
        self.state["corrected"][part] = pace.steps
        self._write_state()
        self._write_corrected(part)

    def _write_corrected(self, part: str) -> None:
        settings, steps = folder.read_settings(self.out, part), self.state["corrected"][part]
        if settings["training"]["num_steps"] == steps:
            return
        settings["training"] |= lengths(steps, None, self.plan.times.validations)
        override_settings(settings, split_overrides(self.plan.overrides)[part])
        folder.write_settings(self.out, part, settings)

    def _train_to(self, part: str, pace: budget.Pace | None) -> None:
        run = self.out / part
        config = self._config(part)
        common = {
            "catalog": self.out / CATALOG,
            "strict": self.options.strict,
            "resume": checkpoint.present(run / CHECKPOINTS) or (run / CONFIG).is_file(),
            "allow_changes": part in (*self.state["ended"], *self.state["corrected"]),
            "quiet": self.options.quiet,
            "strategy": self.options.strategy,
        }
        if part == VAE:
            plan = plan_vae(config, self.plan.data, run, **common)
            train = autoencoder.train_planned
        else:
            vae = self.plan.vae(self.out)
            plan = plan_diffusion(config, self.plan.data, vae, run, **common)
            train = diffusion.train_planned
        ends_early = pace and (lambda step: pace.ends(step, time.monotonic()))
        train(replace(plan, run=replace(plan.run, ends_early=ends_early)))

    def _config(self, part: str) -> AutoencoderRun | DiffusionRun:
        overrides = ()
        if part in self.state["ended"]:
            overrides = (f"training.num_steps={self.state['ended'][part]}",)
        return load_config(PARTS[part], folder.settings_file(self.out, part), overrides)

    def _finish(self, model: Path) -> None:
        """Copy the model and the UNet's settings to where the whole run has them."""
        with activity("writing the model", self.options.quiet):
            with atomic_path(self.out / CONFIG) as temporary:
                shutil.copyfile(self.out / DIFFUSION / CONFIG, temporary)
            with atomic_folder(model) as temporary:
                shutil.copytree(self.out / DIFFUSION / "model", temporary, dirs_exist_ok=True)

    def _write_state(self) -> None:
        folder.write_state(self.out, self.state)

    def _say(self, text: str) -> None:
        say(text, self.options.quiet)


def closing_lines(out: Path) -> Sequence[str]:
    """Lines that say what to type next.

    Args:
        out: folder of a finished whole run.
    """
    place = shlex.quote(str(out))
    lines = [
        f'draw       latentddpm generate --model {place} --prompt "…" --out pictures',
        f"page       latentddpm serve {place}",
    ]
    samples = sorted((out / DIFFUSION / "samples").glob("step-*.png"))
    if samples:
        lines.insert(0, f"samples    {samples[-1]}")
    curves = read_curves(out / DIFFUSION) if (out / DIFFUSION / LOG).is_file() else {}
    if "loss" in curves:
        lines.insert(
            0,
            f"loss       {curves['loss'].values[-1]:.4g} after {curves['loss'].steps[-1]} steps",
        )
    return lines
