"""Plan of a whole run: facts → recipe → settings of both trainings, with measured times.

    images ─► facts ─► first stage, resolution, UNet, batch ─► a few real steps ─► steps

Where the goal has a time, the largest UNet is taken that sees enough examples in it: sizes are
compared by estimate first, then measured, from the largest on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.config_file import override_settings, parse_config
from latentddpm.data.dataset import Dataset
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.recipe import budget, rules
from latentddpm.recipe.budget import Speed
from latentddpm.recipe.facts import DataFacts, MachineFacts
from latentddpm.recipe.first_stage import (
    Reconstruction,
    measure_reconstruction,
    ready_stage,
)
from latentddpm.recipe.rules import NONE, OWN, READY, READY_SIDE, Goal, Recipe
from latentddpm.recipe.settings import (
    PARTS,
    autoencoder_settings,
    diffusion_settings,
    encoded,
    lengths,
)
from latentddpm.recipe.speed import measure_autoencoder, measure_diffusion
from latentddpm.training.plan.cost import SHARE_OF_PEAK, cost_of, matrix_speed
from latentddpm.training.plan.first_stage import AutoencoderStage
from latentddpm.training.plan.settle import (
    complete_diffusion,
    complete_vae,
    settle_diffusion,
    settle_vae,
)
from latentddpm.training.plan.sources import Sources
from latentddpm.training.plan.words import captions_of
from latentddpm.utils.console import activity

GRID_IMAGES, GRID_CALLS = 32, 20
"""Images of a grid of samples, and calls of the UNet for each: ten steps, with guidance."""


@dataclass(frozen=True)
class Plan:
    """Plan of a whole run.

    Attributes:
        data, goal: what it is for.
        facts, machine: what it follows from.
        recipe: values of the rules.
        autoencoder: settings of `train-vae`; None where none is trained.
        diffusion: settings of `train-diffusion`.
        times: measured.
        reconstruction: of the first stage, where it is a finished one.
    """

    data: str
    goal: Goal
    facts: DataFacts
    machine: MachineFacts
    recipe: Recipe
    autoencoder: Mapping[str, Any] | None
    diffusion: Mapping[str, Any]
    times: budget.Times
    reconstruction: Reconstruction | None = None

    @property
    def steps(self) -> tuple[int, int]:
        """Steps of the UNet, and of the autoencoder or 0."""
        own = self.autoencoder
        return self.diffusion["training"]["num_steps"], own["training"]["num_steps"] if own else 0

    @property
    def seconds(self) -> float:
        """Seconds of the whole run."""
        return self.times.total(*self.steps)


class Planner:
    """Planner of a whole run.

    Args:
        dataset: opened.
        facts: of its images.
        machine: to train on.
        goal: what is asked for.
        overrides: `vae.section.key=value` and `diffusion.section.key=value`.
        began: start of the run, as of `time.monotonic`.
        quiet: say nothing.
    """

    def __init__(
        self,
        dataset: Dataset,
        facts: DataFacts,
        machine: MachineFacts,
        goal: Goal,
        overrides: Mapping[str, Sequence[str]],
        began: float,
        quiet: bool = False,
    ) -> None:
        self.dataset, self.facts, self.machine, self.goal = dataset, facts, machine, goal
        self.overrides, self.began, self.quiet = overrides, began, quiet
        self.captioned = captions_of(dataset)
        self.speeds: dict[str | None, Speed] = {}

    def plan(self) -> Plan:
        """Plan of the run.

        Raises:
            UserError: a time too short or memory too small for any plan; a model that cannot be
                read or does not fit; wrong settings.
        """
        seen = self._look_at_ready()
        stage = rules.first_stage(self.facts, self.machine, self.goal)
        if seen is None and stage.value not in (NONE, OWN):
            seen = self._reconstruct(stage.value)
        self.stage = stage.value
        side = self._resolution()
        own = None
        if self.stage == OWN:
            own = self._autoencoder(side.value, 1000)
        self.sources = self._sources(own)
        recipe = Recipe(self.stage, side.value, None, 1)
        speed = None
        if own is not None:
            speed = self._measured("autoencoder", measure_autoencoder, self._complete(own))
        self.times = budget.Times(
            before=time.monotonic() - self.began,
            unet=Speed(0.0, 0.0),
            autoencoder=speed,
            encoding=self._encoding(seen, speed, own),
        )
        recipe, why = self._unet(recipe)
        return self._settled(recipe, {**why, **self._reasons(stage, side)}, own, seen)

    # --- The first stage ---

    def _look_at_ready(self) -> Reconstruction | None:
        if not rules.may_use_ready(self.facts, self.goal):
            return None
        seen = self._reconstruct(READY, READY_SIDE)
        self.facts = replace(self.facts, ready_psnr=seen.psnr)
        return seen

    def _reconstruct(self, model: str, side: int | None = None) -> Reconstruction | None:
        stage = ready_stage(model)
        if not isinstance(stage, AutoencoderStage) or not self.facts.usual:
            return None
        side = side or min(stage.image_size or (rules.READY_SIDE,))
        with activity(f"measuring the autoencoder of {model} on these images", self.quiet):
            return measure_reconstruction(self.dataset, stage, side)

    def _resolution(self) -> rules.Chosen:
        if self.stage in (NONE, OWN, READY):
            return rules.resolution(self.stage, self.facts, self.machine, self.goal)
        size = read_model_folder(self.stage).image_size
        if size is None:
            return rules.resolution(OWN, self.facts, self.machine, self.goal)
        return rules.Chosen(min(size), f"that of {self.stage}")

    def _sources(self, own: Mapping[str, Any] | None) -> Sources | None:
        """Finished models of the UNet's training; the autoencoder to be trained by its sizes."""
        if own is None:
            return None
        config = self._complete(own)
        return Sources(AutoencoderStage(None, config.autoencoder.model_dump()))

    def _autoencoder(self, side: int, steps: int) -> dict[str, Any]:
        settings = autoencoder_settings(side, self.facts, self.machine, self.goal, steps)
        return override_settings(settings, self.overrides.get("vae", ()))

    def _complete(self, settings: Mapping[str, Any]) -> AutoencoderRun:
        config, _ = settle_vae(parse_config(AutoencoderRun, dict(settings), "vae."))
        return complete_vae(config, self.dataset)

    def _encoding(
        self, seen: Reconstruction | None, speed: Speed | None, own: Mapping[str, Any] | None
    ) -> float:
        """Seconds until all images are latents: of an image half of there and back."""
        if seen is not None:
            return encoded(self.facts) * seen.seconds / 2
        if speed is not None:
            return encoded(self.facts) * speed.of_batch(own["training"]["batch_size"]) / 6
        return 0.0

    # --- The UNet ---

    def _diffusion(self, recipe: Recipe, steps: int) -> tuple[dict[str, Any], DiffusionRun, int]:
        """Settings, the same complete, and the side of what the UNet denoises."""
        factor = self._factor()
        settings = diffusion_settings(
            recipe, recipe.resolution // factor, self.facts, self.goal, steps
        )
        settings = override_settings(settings, self.overrides.get("diffusion", ()))
        config = parse_config(DiffusionRun, settings, "diffusion.")
        if self.stage == OWN:
            sources = self.sources
        else:
            vae = None if self.goal.init and not self.goal.vae else self.stage
            config, sources = settle_diffusion(config, vae)
        config = complete_diffusion(config, sources, self.dataset, self.captioned)
        self.used = sources
        return settings, config, config.data.resolution // sources.first_stage.downsample_factor

    def _factor(self) -> int:
        if self.stage == OWN:
            return self.sources.first_stage.downsample_factor
        if self.stage == NONE:
            return 1
        return ready_stage(self.stage).downsample_factor

    def _unet(self, recipe: Recipe) -> tuple[Recipe, dict[str, str]]:
        """Recipe with its UNet and its batch, whose speed is measured."""
        if self.goal.init is not None:
            recipe = self._fitting(recipe, None)
            return self._timed(recipe), {"unet": f"that of {self.goal.init}"}
        candidates = {name: self._fitting(recipe, name) for name in rules.UNETS}
        candidates = {name: one for name, one in candidates.items() if one is not None}
        if not candidates:
            config = self._diffusion(replace(recipe, unet=next(iter(rules.UNETS))), 1000)[1]
            needed = rules.memory_of(config, self._factor(), rules.LEAST_AT_A_TIME)
            raise rules.no_memory(needed, self.machine)
        rates = self._estimates(candidates)
        while True:
            left = 0.0
            if self.goal.seconds is not None:
                left = self.goal.seconds * (1 - budget.KEPT_BACK) - self.times.fixed
                left *= 1 - budget.AUTOENCODER_SHARE * (self.stage == OWN)
            chosen = rules.largest_unet(rates, self.facts, self.machine, self.goal, left)
            name = chosen.value
            if name in self.speeds:
                return self._timed(candidates[name]), {"unet": chosen.reason}
            self._timed(candidates[name])
            measured = self.speeds[name].of_batch(candidates[name].batch_size)
            ratio = measured / rates[name] if rates[name] else 1.0
            for other in rates:
                if other not in self.speeds:
                    rates[other] *= ratio
            rates[name] = measured

    def _fitting(self, recipe: Recipe, name: str | None) -> Recipe | None:
        """Recipe with a UNet, in a batch that fits the memory; None where none does."""
        recipe = replace(recipe, unet=name)
        config = self._diffusion(recipe, 1000)[1]
        found = rules.batch(config, self._factor(), self.machine, self.goal)
        if found is None:
            return None
        return replace(recipe, batch_size=found[0], accumulation_steps=found[1])

    def _estimates(self, candidates: Mapping[str, Recipe]) -> dict[str, float]:
        """Seconds of an example by name of a UNet; 0 on an accelerator, where only steps tell."""
        if self.machine.accelerator or self.goal.seconds is None:
            return dict.fromkeys(candidates, 0.0)
        speed = SHARE_OF_PEAK * matrix_speed()
        rates = {}
        for name, recipe in candidates.items():
            config = self._diffusion(recipe, 1000)[1]
            rates[name] = 6 * cost_of(config, self._factor()).multiply_adds / speed
        return rates

    def _timed(self, recipe: Recipe) -> Recipe:
        """The same recipe; the speed of its UNet is measured, and the times are with it."""
        name = recipe.unet
        _, config, _ = self._diffusion(recipe, 1000)
        if name not in self.speeds:
            self.speeds[name] = self._measured(
                f"UNet ({name})" if name else "UNet", measure_diffusion, config, self.used
            )
        speed = self.speeds[name]
        example = speed.of_batch(config.training.batch_size)
        decoding = self.times.encoding / encoded(self.facts)
        self.times = replace(
            self.times,
            before=time.monotonic() - self.began,
            unet=speed,
            grid=GRID_IMAGES * (GRID_CALLS * example / 3 + 1.5 * decoding),
            check=64 * 3 * decoding,
        )
        return recipe

    def _measured(self, what: str, measure: Any, *arguments: Any) -> Speed:
        with activity(f"measuring steps of the {what}", self.quiet):
            return measure(*arguments)

    # --- The whole ---

    def _reasons(self, stage: rules.Chosen, side: rules.Chosen) -> dict[str, str]:
        return {"first_stage": stage.reason, "resolution": side.reason}

    def _settled(
        self,
        recipe: Recipe,
        reasons: Mapping[str, str],
        own: Mapping[str, Any] | None,
        seen: Reconstruction | None,
    ) -> Plan:
        quality, seconds = self.goal.of_quality, self.goal.seconds
        steps = -(-quality.examples(self.facts.images) // recipe.batch_size)
        own_steps = 0
        if own is not None:
            own_steps = -(-quality.autoencoder_images // own["training"]["batch_size"])
        if seconds is not None:
            most = max(quality.most // recipe.batch_size, budget.LEAST_STEPS)
            steps, own_steps = budget.steps_in(seconds, self.times)
            steps = min(steps, most)
        diffusion, config, _ = self._diffusion(recipe, steps)
        autoencoder = self._autoencoder(recipe.resolution, own_steps) if own else None
        for settings, speed, part in (
            (diffusion, self.times.unet, "diffusion"),
            (autoencoder, self.times.autoencoder, "vae"),
        ):
            if settings is not None:
                steps = settings["training"]["num_steps"]
                settings["training"] |= lengths(steps, speed.step)
                override_settings(settings, self.overrides.get(part, ()))
                parse_config(PARTS[part], settings, f"{part}.")
        plan = Plan(
            str(self.dataset.catalog.source.place),
            self.goal,
            self.facts,
            self.machine,
            replace(recipe, resolution=config.data.resolution, reasons=dict(reasons)),
            autoencoder,
            diffusion,
            self.times,
            seen,
        )
        return plan
