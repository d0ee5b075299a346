"""Generation settings: how images are sampled: size, sampler, steps, guidance.

    settings = model.settings(num_steps=10)        the others are the model's defaults
    images = model.generate("red apple", seed=0, settings=settings)

`ModelFacts` makes them, and refuses what the model does not accept. `model_facts` reads its facts
without Keras, so the command line decides within a second, before Keras is imported. The metadata
of a PNG holds every field, and `generate --from` uses them as defaults, before those of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from math import prod
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from latentddpm.choices import SAMPLERS, TIMESTEP_SPACINGS
from latentddpm.conditions.conditions import NO_CONDITIONS, Conditions
from latentddpm.diffusion.options import (
    check_condition_scales,
    check_guidance_interval,
    check_guidance_rescale,
    check_guidance_scale,
    check_num_steps,
    check_sampler_of_schedule,
    check_sampler_options,
    check_start_step,
)
from latentddpm.errors import UserError, check_choice, check_type
from latentddpm.utils.images.sizes import Tile, check_multiple, check_tile

DEFAULTS = {
    "num_steps": 15,
    "sampler": "unipc",
    "timestep_spacing": "trailing",
    "guidance_scale": 4.0,
}
OTHER_DEFAULTS = {
    "sampler_options": {},
    "guidance_rescale": 0.0,
    "negative_prompt": "",
    "start_step": 0,
}
LATER_DEFAULTS = {"guidance_interval": [0.0, 1.0], "condition_scales": {}}
"""Settings that earlier versions did not have. They are written where they have other values, so
the bytes of a picture without them stay what they were."""
WITHOUT_TEXT = {"guidance_scale": 1.0, "guidance_rescale": 0.0, "negative_prompt": ""}
"""Settings of an unconditional model: no guidance. One of conditions alone has no negative prompt.
"""

MAX_PIXELS = 1 << 26
"""Largest height times width: a typing error in a size must not fill the memory."""

SIDES = {1: ("length",), 2: ("height", "width")}
"""Spatial dimensions of a model → its settings of size."""


@dataclass(frozen=True)
class GenerationSettings:
    """Generation settings, all of them decided; made by `ModelFacts.settings`.

    The order of the fields is that of an image's metadata.

    Attributes:
        height: of the images in pixels, a multiple of `ModelFacts.size_multiple`; None for
            signals, as is `width`.
        width: the same.
        sampler: name of a sampler, one of `choices.SAMPLERS`.
        num_steps: of the sampler, 1 … T.
        timestep_spacing: "leading", "trailing" or "linspace"; see `diffusion.samplers`.
        guidance_scale: of classifier-free guidance, at least 0; 1 for none.
        sampler_options: further arguments of the sampler, such as `{"eta": 0.5}`.
        guidance_rescale: φ in [0, 1], 0 for none; see `diffusion.guidance`.
        negative_prompt: text that guidance leads away from, "" for none.
        start_step: the sampler's step that is the first, 0 … num_steps − 1. Later ones start at
            their own noise level, from noise around an x0 of zero: √(1 − ᾱ) · ε (truncated
            diffusion, Zheng 2022, with the mean of the latents in place of a learned start).
        length: of the signals in samples; None for images.
        guidance_interval: lowest and highest t / T that is guided, 0 (clean) … 1 (pure noise);
            outside of them the network is called once, with all that it is told.
        condition_scales: condition → guidance scale of its own, which comes before
            `guidance_scale` in the chain of `diffusion.guidance`; that is then for all others.
    """

    height: int | None
    width: int | None
    sampler: str
    num_steps: int
    timestep_spacing: str
    guidance_scale: float
    sampler_options: dict[str, Any] = field(hash=False)
    guidance_rescale: float
    negative_prompt: str
    start_step: int
    length: int | None = None
    guidance_interval: list[float] = field(default_factory=lambda: [0.0, 1.0], hash=False)
    condition_scales: dict[str, float] = field(default_factory=dict, hash=False)

    @property
    def size(self) -> tuple[int, ...]:
        """(height, width); of signals (length,)."""
        return (self.height, self.width) if self.length is None else (self.length,)

    @property
    def is_guided(self) -> bool:
        """True where what the network is told has another scale than 1."""
        return {self.guidance_scale, *self.condition_scales.values()} != {1.0}

    def to_json(self) -> dict[str, Any]:
        """Settings by name, without `LATER_DEFAULTS` and sides that the model does not have."""
        left_out = {"height": None, "width": None, "length": None, **LATER_DEFAULTS}
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in left_out or value != left_out[name]
        }

    def __str__(self) -> str:
        guidance = f"guidance {self.guidance_scale:g}"
        return f"{self.sampler}, {self.num_steps} steps, {self.timestep_spacing}, {guidance}"


def _type(hint: Any) -> type:
    """Type of a setting: of `int | None` int, of `dict[str, Any]` dict."""
    origin = get_origin(hint)
    return get_args(hint)[0] if origin is UnionType else origin or hint


HINTS = get_type_hints(GenerationSettings)
FIELDS: dict[str, type] = {one.name: _type(HINTS[one.name]) for one in fields(GenerationSettings)}
"""Type of each setting, by name."""


@dataclass(frozen=True)
class ModelFacts:
    """Facts of a model that decide which settings it accepts; see `model_facts`.

    Attributes:
        defaults: sources of default settings, by name; an earlier one comes first.
        image_size: (height, width) in pixels by default, (length,) of signals; None for no
            default.
        has_text: True for a model that takes prompts.
        num_train_timesteps: T; None where it is not known before the model is loaded.
        size_multiple: height and width have to be multiples of it; None where it is not known
            before the model is loaded.
        downsample_factor: of the autoencoder; None where it is not known before the model is
            loaded.
        schedule: kind of the schedule, one of `choices.SCHEDULES`.
        learned_variance: True for a network that predicts a variance, which `learned_range` of
            samplers needs; None where it is not known before the model is loaded.
        spatial_dims: 2 for images, 1 for signals.
        conditions: that the network is told beside text.

    Raises:
        UserError: another `spatial_dims`.
    """

    defaults: tuple[Mapping[str, Any], ...]
    image_size: tuple[int, ...] | None
    has_text: bool
    num_train_timesteps: int | None
    size_multiple: int | None
    downsample_factor: int | None = None
    schedule: str = "ddpm"
    learned_variance: bool | None = None
    spatial_dims: int = 2
    conditions: Conditions = NO_CONDITIONS

    def __post_init__(self) -> None:
        if self.spatial_dims not in SIDES:
            raise UserError(
                f"spatial_dims: {self.spatial_dims}, whose arrays are drawn with "
                "latentddpm.samplers; expected images (2) or signals (1)"
            )

    @property
    def sides(self) -> tuple[str, ...]:
        """Settings of the size: ("height", "width"), or ("length",) of signals."""
        return SIDES[self.spatial_dims]

    def settings(self, **given: Any) -> GenerationSettings:
        """Generation settings, with the model's defaults for those not given.

        Each sampler option has its own default. Default options are used only with the sampler
        that they were set for, `steps_offset` only with the spacing "leading".

        Args:
            given: by the names of `GenerationSettings`; None for the default.

        Raises:
            UserError: an unknown name, or a value that this model does not accept.
        """
        given = {
            check_choice("setting", name, FIELDS): check_type(name, value, FIELDS[name])
            for name, value in given.items()
            if value is not None
        }
        self._check_sides(given)
        own = {**DEFAULTS, **OTHER_DEFAULTS, **LATER_DEFAULTS}
        defaults = [*self.defaults, self._own_size(), own]
        layers = [given, self._no_guidance, *defaults]
        others = SIDES[3 - self.spatial_dims]
        own = {name: kind for name, kind in FIELDS.items() if name not in others}
        values = {name: _first(name, layers) for name in own}
        if None in [values[name] for name in self.sides]:
            names, more = " and ".join(self.sides), "both" if len(self.sides) > 1 else "it"
            raise UserError(f"{names}: this model names no size of its own; give {more}")
        for name, kind in own.items():
            values[name] = check_type(name, values[name], kind)
        options = _sampler_options(values["sampler"], values["timestep_spacing"], defaults)
        options |= given.get("sampler_options", {})
        values["sampler_options"] = check_sampler_options(values["sampler"], options)
        values["guidance_interval"] = check_guidance_interval(values["guidance_interval"])
        scales = check_condition_scales(values["condition_scales"], self._may_be_left_out)
        values["condition_scales"] = scales
        settings = GenerationSettings(**dict.fromkeys(others), **values)
        self.check(settings)
        return settings

    def with_defaults(self, remembered: Mapping[str, Any]) -> ModelFacts:
        """Facts of the same model with other defaults, which come before its own.

        Args:
            remembered: settings by name, such as those in an image's metadata.
        """
        return replace(self, defaults=(remembered, *self.defaults))

    def check(self, settings: GenerationSettings) -> None:
        """Refuse settings that this model does not accept.

        Args:
            settings: returned by `ModelFacts.settings`.

        Raises:
            UserError: naming the setting, what was expected and the nearest valid choice.
        """
        check_choice("sampler", settings.sampler, SAMPLERS)
        check_choice("timestep_spacing", settings.timestep_spacing, TIMESTEP_SPACINGS)
        if self.num_train_timesteps is not None:
            check_num_steps(settings.num_steps, self.num_train_timesteps)
        check_sampler_options(settings.sampler, settings.sampler_options, settings.num_steps)
        check_sampler_of_schedule(settings.sampler, settings.sampler_options, self.schedule)
        check_start_step(settings.start_step, settings.num_steps)
        wanted = settings.sampler_options.get("variance")
        if wanted == "learned_range" and self.learned_variance is False:
            raise UserError(
                f"variance: {wanted!r}, but this model's network predicts none; expected 'small' "
                "or 'large'"
            )
        check_guidance_scale(settings.guidance_scale)
        check_guidance_rescale(settings.guidance_rescale)
        check_guidance_interval(settings.guidance_interval)
        check_condition_scales(settings.condition_scales, self._may_be_left_out)
        for name, none in self._no_guidance.items():
            value = getattr(settings, name)
            if value != none:
                raise UserError(
                    f"{name}: {value!r}, but this model is unconditional: there is no guidance, "
                    f"expected {none!r}"
                )
        self._check_sides(settings.to_json())
        self.check_size(*settings.size)

    def check_prompts(self, prompts: Iterable[str], negative_prompts: Iterable[str] = ()) -> None:
        """Refuse prompts for an unconditional model.

        Args:
            prompts, negative_prompts: of the images; "" is accepted.

        Raises:
            UserError: naming the first prompt that is not empty.
        """
        texts = {"prompt": prompts, "negative_prompt": negative_prompts}
        for name, given in () if self.has_text else texts.items():
            if text := next(filter(None, given), ""):
                raise UserError(
                    f"{name}: {text!r:.80}, but this model is unconditional: it takes no prompt"
                )

    def check_size(self, *size: int) -> None:
        """Refuse an image size that the autoencoder's downsample factor does not divide.

        Args:
            size: height and width in pixels; of signals the length.

        Raises:
            UserError: naming the nearest valid sizes.
        """
        if self.size_multiple is not None:
            of = "the autoencoder's downsample factor"
            for name, pixels in zip(self.sides, size, strict=True):
                check_multiple(name, pixels, self.size_multiple, of)
        if prod(size) > MAX_PIXELS:
            named = " and ".join(map("{} {}".format, self.sides, size))
            unit = "pixels" if len(size) > 1 else "samples"
            raise UserError(f"{named}: {prod(size):,} {unit}, at most {MAX_PIXELS:,} are drawn")

    def check_tile(self, tile: Any) -> Tile:
        """Check a `tile`, see `utils.images.sizes.check_tile`.

        Raises:
            UserError: it is none, or no multiple of the autoencoder's downsample factor.
        """
        return check_tile(tile, self.downsample_factor)

    @property
    def _no_guidance(self) -> dict[str, Any]:
        """Settings that this model can only have in one way: without text, without guidance."""
        if self.has_text:
            return {}
        names = ["negative_prompt"] if self.conditions.guided else WITHOUT_TEXT
        return {name: WITHOUT_TEXT[name] for name in names}

    @property
    def _may_be_left_out(self) -> list[str]:
        """Names of the conditions that guidance can lead away from."""
        return [one.name for one in self.conditions if one.null]

    def _own_size(self) -> dict[str, int]:
        return dict(zip(self.sides, self.image_size or (), strict=False))

    def _check_sides(self, given: Mapping[str, Any]) -> None:
        """Refuse sides of images for signals, and the reverse."""
        for name in SIDES[3 - self.spatial_dims]:
            if name in given:
                what = "images" if self.spatial_dims == 2 else "signals"
                raise UserError(
                    f"{name}: {given[name]}, but this model draws {what}; expected "
                    f"{' and '.join(self.sides)}"
                )


def _first(name: str, layers: Iterable[Mapping[str, Any]]) -> Any:
    """Value of the first layer that has one for a name, else None."""
    return next((layer[name] for layer in layers if layer.get(name) is not None), None)


def _sampler_options(
    sampler: str, timestep_spacing: str, defaults: list[Mapping[str, Any]]
) -> dict[str, Any]:
    """Default options of a sampler: those of the first defaults that are for this sampler."""
    for k in range(len(defaults)):
        own = defaults[k].get("sampler_options")
        if own is not None and _first("sampler", defaults[k:]) == sampler:
            options = dict(own)
            if timestep_spacing != "leading":  # the only spacing that takes an offset
                options.pop("steps_offset", None)
            return options
    return {}
