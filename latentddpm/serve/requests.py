"""Request for a drawing: what may be asked of a server, in which ranges, as a plan.

    JSON or the page's form ─► DrawRequest ─► options of `generate` ─► Plan

A request names no file of the server. Pictures come with it, as base64 or a data URL; LoRAs are
those that the server was started with, or that come with its model.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pydantic
from PIL import Image

from latentddpm.conditions.conditions import Conditions
from latentddpm.errors import UserError, check_choice, nearest
from latentddpm.generation.loras import read_loras
from latentddpm.generation.plan import Plan, plan_images
from latentddpm.generation.provenance import model_name
from latentddpm.pipeline.model_folder import LORA, ModelFolder, check_lora
from latentddpm.serve.gallery import Gallery

KINDS = {"PNG": ".png", "JPEG": ".jpg", "MPO": ".jpg", "WEBP": ".webp"}
"""Kinds of pictures that are taken → suffix of their files; MPO is a camera's JPEG of several."""
MOST_PICTURE_PIXELS = 1 << 24
"""Pixels of a picture that comes with a request."""
MOST_CHARACTERS = 2000
MOST_LORAS = 4

OPTIONS: dict[str, Any] = {
    **dict.fromkeys(("prompts", "negative_prompt", "labels", "pictures"), ()),
    "model": None,
    "loras": (),
    **dict.fromkeys(("num_images", "seed", "num_steps", "sampler", "timestep_spacing")),
    **dict.fromkeys(("start_step", "guidance_scale", "guidance_rescale", "guidance_interval")),
    "condition_scales": (),
    **dict.fromkeys(("init_image", "strength", "mask", "height", "width", "length")),
    "tile": "auto",
    "strategy": "auto",
    **dict.fromkeys(("engine", "precision", "source", "out")),
    "overwrite": False,
    "grid": False,
    **dict.fromkeys(("frames", "animate")),
}
"""Options of a plan that says nothing, in the order of `latentddpm generate --help`, which is the
order of the keys in the metadata of a PNG."""

Text = Annotated[str, pydantic.StringConstraints(max_length=MOST_CHARACTERS)]


class DrawRequest(pydantic.BaseModel):
    """Request for a drawing; what is left out has the model's default.

    Attributes:
        prompt: up to 2000 characters, "" for none.
        negative_prompt: the same; None for the default.
        labels: texts of the model's conditions of words and numbers, by name.
        pictures: of the model's conditions of pictures, by name, in base64.
        loras: scales by the names of the LoRAs.
        num_images: 1 … the server's limit.
        seed: of the first image, 0 … 2⁶³ − 1; None draws one.
        num_steps: 1 … the server's limit.
        sampler, timestep_spacing, guidance_scale, guidance_rescale: see `GenerationSettings`.
        height, width: in pixels, up to the server's limit.
        init_image: picture to start from, in base64.
        strength: how much of it is changed, in (0, 1].
        mask: of `init_image`, in base64; white is painted anew.
    """

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)

    prompt: Text = ""
    negative_prompt: Text | None = None
    labels: dict[str, Text] = {}
    pictures: dict[str, str] = {}
    loras: dict[str, float] = {}
    num_images: int = 1
    seed: int | None = None
    num_steps: int | None = None
    sampler: str | None = None
    timestep_spacing: str | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    height: int | None = None
    width: int | None = None
    init_image: str | None = None
    strength: float | None = None
    mask: str | None = None


@dataclass(frozen=True)
class Limits:
    """Limits of what one request may ask for.

    Attributes:
        images: of a request.
        steps: of the sampler.
        pixels: height times width of an image.
    """

    images: int = 16
    steps: int = 250
    pixels: int = 1 << 20

    def check(self, request: DrawRequest) -> None:
        """Refuse a request for too much.

        Args:
            request: to check.

        Raises:
            UserError: naming the field and its range.
        """
        for name, most in (("num_images", self.images), ("num_steps", self.steps)):
            value = getattr(request, name)
            if value is not None and not 1 <= value <= most:
                raise UserError(f"{name}: {value}, this server takes 1 to {most}")
        if len(request.loras) > MOST_LORAS:
            raise UserError(f"loras: {len(request.loras)}, this server takes {MOST_LORAS}")

    def check_plan(self, plan: Plan) -> None:
        """Refuse a plan for too much, whose numbers may be defaults of the model or a LoRA.

        Args:
            plan: to check.

        Raises:
            UserError: naming the setting and its range.
        """
        self.check_size(*plan.settings.size)
        if plan.settings.num_steps > self.steps:
            steps = plan.settings.num_steps
            raise UserError(f"num_steps: {steps}, this server takes 1 to {self.steps}")

    def check_size(self, height: int, width: int) -> None:
        """Refuse an image that is too large.

        Args:
            height, width: in pixels.

        Raises:
            UserError: naming the limit.
        """
        if height * width > self.pixels:
            raise UserError(
                f"height and width: {height} × {width}, this server takes "
                f"{self.pixels:,} pixels or less"
            )


@dataclass(frozen=True)
class Offer:
    """Offer of a server: one model, its LoRAs, and the limits of a request.

    Attributes:
        folder: of the model.
        loras: files by the names that requests give them.
        limits: of a request.
        engine, precision: see `generation.devices`; None for the default.
    """

    folder: ModelFolder
    loras: Mapping[str, Path] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    engine: str | None = None
    precision: str | None = None

    @property
    def conditions(self) -> Conditions:
        """Conditions of the model."""
        return self.folder.conditions

    def plan(self, request: DrawRequest, gallery: Gallery) -> tuple[Plan, tuple[Path, ...]]:
        """Plan of a request, and the files that it starts from.

        Args:
            request: what is asked for.
            gallery: whose folder gets the pictures. It holds the files until `release`.

        Raises:
            UserError: naming the field, what was expected and the nearest valid choice.
        """
        self.limits.check(request)
        if request.height or request.width:  # before a picture is enlarged to that size
            own = self.folder.image_size or (1, 1)
            self.limits.check_size(request.height or own[0], request.width or own[-1])
        held: list[Path] = []

        def hold(name: str, text: str) -> Path:
            held.append(gallery.hold_input(name.replace("_", "-"), *decode_picture(name, text)))
            return held[-1]

        try:
            plan = plan_images(self._options(request, gallery.folder, hold))
            self.limits.check_plan(plan)
            if plan.folder.digest != self.folder.digest:
                raise UserError(
                    f"{model_name(self.folder)}: was replaced since the server started; start it "
                    "again"
                )
        except UserError as error:
            gallery.release(held)
            raise UserError(str(error).replace(f"{gallery.folder}/", "")) from None
        except BaseException:
            gallery.release(held)
            raise
        return plan, tuple(held)

    def _options(self, request: DrawRequest, out: Path, hold: Any) -> dict[str, Any]:
        """Options of `generate` for a request."""
        for name in request.loras:
            check_choice("loras", name, self.loras)
        for name in request.labels:
            self.conditions[name]  # refused where the model has none of this name
        known = [one.name for one in self.conditions.pictures]
        for name in request.pictures:
            if name not in known:
                has = ", ".join(known) or "none"
                raise UserError(f"pictures: {name!r}{nearest(name, known)}; this model: {has}")
        same = ("num_images", "seed", "num_steps", "sampler", "timestep_spacing", "strength")
        same += ("guidance_scale", "guidance_rescale", "height", "width")
        given: dict[str, Any] = {name: getattr(request, name) for name in same}
        for name in ("init_image", "mask"):
            text = getattr(request, name)
            given[name] = None if text is None else hold(name, text)
        negative = request.negative_prompt
        return {
            **OPTIONS,
            **given,
            "prompts": (request.prompt,) if request.prompt else (),
            "negative_prompt": () if negative is None else (negative,),
            "labels": tuple(f"{name}={text}" for name, text in request.labels.items()),
            "pictures": tuple(
                f"{name}={hold(name, text)}" for name, text in request.pictures.items()
            ),
            "loras": tuple(f"{self.loras[name]}:{s!r}" for name, s in request.loras.items()),
            "model": self.folder.path,
            "engine": self.engine,
            "precision": self.precision,
            "out": out,
        }


def read_request(value: Any) -> DrawRequest:
    """Request of a JSON value.

    Args:
        value: an object with the fields of `DrawRequest`.

    Raises:
        UserError: naming the first wrong field, its value and what is expected.
    """
    try:
        return DrawRequest.model_validate(value)
    except pydantic.ValidationError as error:
        raise UserError(_explain(error.errors()[0])) from None


def _explain(first: Mapping[str, Any]) -> str:
    """Message on the first error of a request."""
    name = ".".join(map(str, first["loc"])) or "request"
    if first["type"] == "extra_forbidden":
        known = DrawRequest.model_fields
        return f"{name}: no such field{nearest(name, known)}; the fields are {', '.join(known)}"
    return f"{name}: {first['input']!r:.80}, {first['msg'][0].lower()}{first['msg'][1:]}"


def decode_picture(name: str, text: str) -> tuple[bytes, str]:
    """Bytes of a picture in base64, and the suffix of its file.

    Args:
        name: of the field, for messages.
        text: base64, or a data URL with base64.

    Raises:
        UserError: it is no PNG, JPEG or WebP, or is too large.
    """
    body = text.partition(",")[2] if text.startswith("data:") else text
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{name}: expected a picture in base64, or a data URL with it") from None
    return data, check_picture(name, data)


def encode_picture(image: Image.Image) -> str:
    """Picture as PNG in base64, as a request takes it.

    Args:
        image: of any mode that a PNG has.
    """
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def check_picture(name: str, data: bytes) -> str:
    """Suffix of the file of a picture, whose size is read before its pixels are.

    Args:
        name: of the field, for messages.
        data: of the file.

    Raises:
        UserError: it is no PNG, JPEG or WebP, or is too large.
    """
    try:
        with Image.open(io.BytesIO(data), formats=tuple(KINDS)) as image:
            kind, (width, height) = image.format, image.size
    except Exception:  # Pillow raises errors of many kinds on malformed files
        raise UserError(f"{name}: not a PNG, JPEG or WebP that can be read") from None
    if width * height > MOST_PICTURE_PIXELS:
        raise UserError(
            f"{name}: {width} × {height} pixels, this server takes {MOST_PICTURE_PIXELS:,} or less"
        )
    return KINDS[kind]


def named_loras(folder: ModelFolder, given: tuple[str, ...]) -> dict[str, Path]:
    """LoRA files that a server offers, by name: those beside the model and those that were given.

    Args:
        folder: of the model.
        given: files, or folders of runs.

    Raises:
        UserError: see `generation.loras.read_loras`; or two have one name.
    """
    found = {one.stem: one for one in sorted(folder.path.glob("*.safetensors")) if _is_lora(one)}
    for option in given:
        (lora,) = read_loras([option], folder.path)
        if lora.scale != 1:
            raise UserError(f"--lora {option}: without a scale; each drawing has its own")
        name = lora.path.parent.name if lora.path.name == LORA else lora.path.stem
        if name in found and found[name] != lora.path:
            raise UserError(f"--lora {option}: another one is called {name!r} too; rename it")
        found[name] = lora.path
    return found


def _is_lora(file: Path) -> bool:
    try:
        check_lora(file)
    except UserError:
        return False
    return True
