"""Plan of a whole run: facts → recipe → settings of both trainings, with measured times.

    images ─► facts ─► first stage, resolution, UNet, batch ─► a few real steps ─► steps

Where the goal has a time, the largest UNet is taken that sees enough examples in it: sizes are
compared by estimate first; the one that is chosen is measured, and another one is chosen where
the measurement says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from latentddpm.config import DiffusionRun
from latentddpm.config_file import override_settings, parse_config
from latentddpm.recipe import budget, rules
from latentddpm.recipe.budget import Speed, Times
from latentddpm.recipe.first_stage import (
    ANY_STEPS,
    Stage,
    Task,
    at_side,
    choose_stage,
    own_settings,
    seconds_to_encode,
)
from latentddpm.recipe.rules import OWN, UNETS, Recipe
from latentddpm.recipe.settings import PARTS, diffusion_settings, lengths
from latentddpm.recipe.speed import measure_diffusion
from latentddpm.training.plan.cost import SHARE_OF_PEAK, cost_of, matrix_speed
from latentddpm.training.plan.settle import complete_diffusion, settle_diffusion
from latentddpm.training.plan.sources import Sources
from latentddpm.training.plan.words import captions_of
from latentddpm.utils.console import activity

AS_SET = "as set"
GRID_IMAGES, GRID_CALLS = 32, 20
"""Images of a grid of samples, and calls of the UNet for each: ten steps, with guidance."""
FROZEN_TEXT = ("lora.", "control.", "distill.", "text.new_token")
"""Beginnings of settings of trainings that take the text encoder as it is."""
CHECKED_IMAGES = 64
"""Images that a validation of the autoencoder reconstructs."""


@dataclass(frozen=True)
class Plan:
    """Plan of a whole run.

    Attributes:
        task: that it is for.
        stage: the first one.
        recipe: values of the rules.
        autoencoder: settings of `train-vae`; None where none is trained.
        diffusion: settings of `train-diffusion`.
        times: measured.
    """

    task: Task
    stage: Stage
    recipe: Recipe
    autoencoder: Mapping[str, Any] | None
    diffusion: Mapping[str, Any]
    times: Times

    @property
    def steps(self) -> tuple[int, int]:
        """Steps of the UNet, and of the autoencoder or 0."""
        own = self.autoencoder
        return self.diffusion["training"]["num_steps"], own["training"]["num_steps"] if own else 0

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return self.times.total(*self.steps)


def plan_run(task: Task) -> Plan:
    """Plan of a whole run.

    Args:
        task: to plan.

    Raises:
        UserError: a time too short or memory too small for any plan; a model that cannot be read
            or does not fit; wrong settings.
    """
    unets = _Unets(task, choose_stage(task))
    recipe, times = unets.choose()
    stage = unets.stage
    goal = task.goal
    quality = goal.of_quality
    unet_steps = -(-quality.examples(task.facts.images) // recipe.batch_size)
    own = own_settings(task, stage.resolution, ANY_STEPS)["training"]["batch_size"]
    own_steps = quality.autoencoder_images // own
    if goal.seconds is not None:
        most = max(quality.most // recipe.batch_size, budget.LEAST_STEPS)
        unet_steps, own_steps = budget.steps_in(goal.seconds, times)
        unet_steps = min(unet_steps, most)
    autoencoder = None
    if stage.name == OWN:
        autoencoder = own_settings(*(task, stage.resolution, own_steps, stage.accumulation_steps))
        _time_settings(task, "vae", autoencoder, times.autoencoder, times.validations)
    diffusion = _unet_settings(task, stage, recipe, unet_steps)
    _time_settings(task, "diffusion", diffusion, times.unet, times.validations)
    return Plan(task, stage, recipe, autoencoder, diffusion, times)


def _unet_settings(task: Task, stage: Stage, recipe: Recipe, steps: int) -> dict[str, Any]:
    side = recipe.resolution // stage.factor
    settings = diffusion_settings(recipe, side, task.facts, steps)
    own = task.overrides.get("diffusion", ())
    if any(one.startswith(FROZEN_TEXT) for one in own):
        settings.get("text", {}).pop("trainable", None)
    return override_settings(settings, own)


def _time_settings(
    task: Task, part: str, settings: dict[str, Any], speed: Speed, validations: int
) -> None:
    """Complete settings by what follows from the steps and their speed; overrides come last."""
    settings["training"] |= lengths(settings["training"]["num_steps"], speed.step, validations)
    override_settings(settings, task.overrides.get(part, ()))
    parse_config(PARTS[part], settings, f"{part}.")


def _told_apart(stage: Stage) -> bool:
    """True where the first stage reconstructs well enough at another side than its own."""
    return stage.seen is None or stage.seen.psnr >= rules.READY_LEAST


class _Unets:
    """Sizes of the UNet that fit the memory, and the speed of those that were measured."""

    def __init__(self, task: Task, stage: Stage) -> None:
        self.task, self.stage = task, stage
        self.captioned = captions_of(task.dataset)
        self.speeds: dict[str | None, Speed] = {}

    def choose(self) -> tuple[Recipe, Times]:
        """Recipe with its UNet and batch, and the times of its run."""
        if self.stage.start is not None:
            return self._trained_on()
        recipes = {name: self._fitting(name) for name in UNETS}
        recipes = {name: one for name, one in recipes.items() if one is not None}
        if not recipes:
            raise self._no_memory(next(iter(UNETS)))
        rates = self._estimates(recipes)
        while True:
            chosen = rules.largest_unet(
                *(rates, self.task.facts, self.task.machine, self.task.goal, self._seconds())
            )
            name = chosen.value
            if name in self.speeds:
                return self._with_times(recipes[name], chosen.reason)
            config, _ = self._complete(recipes[name])
            measured = self._speed(recipes[name]).of_batch(config.training.batch_size)
            slower = measured / rates[name] if rates[name] else 1.0
            rates = {
                other: rate if other in self.speeds else rate * slower
                for other, rate in rates.items()
            }
            rates[name] = measured

    def _trained_on(self) -> tuple[Recipe, Times]:
        """Recipe with a finished UNet, at the largest side where it sees enough examples."""
        goal, stage = self.task.goal, self.stage
        wanted = goal.of_quality.examples(self.task.facts.images, starts=True)
        chosen = None
        for side, reason in self._sides():
            smaller = at_side(self.task, stage, side, reason)
            if reason != AS_SET and side < stage.resolution and not _told_apart(smaller):
                continue
            self.stage, self.speeds = smaller, {}
            recipe = self._fitting(None)
            if recipe is None:
                continue
            speed = self._speed(recipe)
            chosen = recipe, self.stage, speed
            seconds = speed.of_batch(recipe.batch_size) * wanted
            if goal.seconds is None or seconds <= self._seconds():
                break
        if chosen is None:
            self.stage = stage
            recipe = self._fitting(None)
            if recipe is None:
                raise self._no_memory(None)
            chosen = recipe, stage, self._speed(recipe)
        recipe, self.stage, self.speeds[None] = chosen
        return self._with_times(recipe, f"that of {stage.start}: {stage.reasons['start']}")

    def _sides(self) -> list[tuple[int, str]]:
        """Sides of images to choose from, where a finished UNet is trained on, with the reason."""
        task, stage = self.task, self.stage
        if any(one.startswith("data.resolution=") for one in task.overrides.get("diffusion", ())):
            config, _ = self._complete(self._recipe(None, 1))
            return [(config.data.resolution, AS_SET)]
        reason = f"quality {task.goal.quality} on {task.machine.name}"
        if task.goal.seconds is not None:
            reason = f"at {stage.resolution} the time is too short for enough examples"
        sides = rules.sides(stage.start, task.machine, task.goal) or (stage.resolution,)
        return [(side, reason) for side in sides]

    def _seconds(self) -> float:
        """Seconds that are left for the steps of the UNet, as far as is known."""
        if self.task.goal.seconds is None:
            return 0.0
        known = next(reversed(self.speeds.values()), Speed(0.0, 0.0))
        left = self.task.goal.seconds * (1 - budget.KEPT_BACK) - self._times(known, 0.0).fixed
        return left * (1 - budget.AUTOENCODER_SHARE * (self.stage.name == OWN))

    def _with_times(self, recipe: Recipe, reason: str) -> tuple[Recipe, Times]:
        config, _ = self._complete(recipe)
        speed = self._speed(recipe)
        reasons = {**self.stage.reasons, "unet": reason}
        recipe = replace(recipe, resolution=config.data.resolution, reasons=reasons)
        return recipe, self._times(speed, speed.of_batch(config.training.batch_size))

    def _times(self, unet: Speed, example: float) -> Times:
        decoding = 1.5 * self.stage.encoding
        grid = GRID_IMAGES * (GRID_CALLS * example / 3 + decoding)
        return Times(
            before=time.monotonic() - self.task.began,
            unet=unet,
            autoencoder=self.stage.speed,
            encoding=seconds_to_encode(self.task, self.stage),
            grid=grid,
            check=CHECKED_IMAGES * 2 * decoding,
            validations=budget.validations_in(self.task.goal.seconds, grid),
        )

    def _complete(self, recipe: Recipe) -> tuple[DiffusionRun, Sources]:
        """Complete settings of a recipe, and the finished models of its training."""
        settings = _unet_settings(self.task, self.stage, recipe, ANY_STEPS)
        config, sources = parse_config(DiffusionRun, settings, "diffusion."), self.stage.sources
        if sources is None:
            goal = self.task.goal
            own = goal.named_init is not None and goal.vae is None
            config, sources = settle_diffusion(config, None if own else self.stage.name)
        return complete_diffusion(config, sources, self.task.dataset, self.captioned), sources

    def _fitting(self, name: str | None) -> Recipe | None:
        """Recipe with a UNet, in a batch that fits the memory; None where none does."""
        machine = self.task.machine
        size = rules.BATCHES[self.task.goal.quality][machine.accelerator]
        recipe = self._recipe(name, size)
        config, sources = self._complete(recipe)
        size = config.training.batch_size  # may be set
        recipe = replace(recipe, batch_size=size)
        factor = sources.first_stage.downsample_factor
        parts = rules.parts_of_batch(config, factor, size, machine)
        return None if parts is None else replace(recipe, accumulation_steps=parts)

    def _recipe(self, name: str | None, batch_size: int) -> Recipe:
        stage = self.stage
        return Recipe(stage.name, stage.resolution, name, batch_size, start=stage.start)

    def _no_memory(self, name: str | None) -> Exception:
        recipe = self._recipe(name, rules.LEAST_AT_A_TIME)
        config, sources = self._complete(recipe)
        factor = sources.first_stage.downsample_factor
        needed = rules.memory_of(config, factor, rules.LEAST_AT_A_TIME) / rules.MEMORY_SHARE
        return rules.no_memory(needed, self.task.machine)

    def _estimates(self, recipes: Mapping[str, Recipe]) -> dict[str, float]:
        """Seconds of an example by name of a UNet; 0 on an accelerator, where only steps tell."""
        if self.task.machine.accelerator or self.task.goal.seconds is None:
            return dict.fromkeys(recipes, 0.0)
        speed = SHARE_OF_PEAK * matrix_speed()
        rates = {}
        for name, recipe in recipes.items():
            config, sources = self._complete(recipe)
            cost = cost_of(config, sources.first_stage.downsample_factor)
            rates[name] = 6 * cost.multiply_adds / speed
        return rates

    def _speed(self, recipe: Recipe) -> Speed:
        """Speed of a recipe's UNet, measured once."""
        name = recipe.unet
        if name not in self.speeds:
            config, sources = self._complete(recipe)
            what = f"UNet ({name})" if name else "UNet"
            with activity(f"measuring steps of the {what}", self.task.quiet):
                self.speeds[name] = measure_diffusion(config, sources)
        return self.speeds[name]
