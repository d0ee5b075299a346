"""Condition: one thing that a network is told, such as a digit, an age or line art.

    value ("7", 0.3, a picture)  ─►  arrays  ─►  inputs of the network, by name

A condition knows its words or range, and turns values into the arrays that the network takes. The
value None is "not told": a network that was trained with the condition dropped now and then knows
it too, and guidance leads away from it (Ho & Salimans 2022). `kinds` lists all kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from latentddpm.errors import UserError

Arrays = dict[str, np.ndarray]
"""Inputs of a network by name, float32 (N, size) or (N, h, w, size)."""
Columns = Mapping[str, Any]
"""Columns of an image in the data, `folder` among them."""
Encode = Callable[[np.ndarray], np.ndarray]
"""Pictures in [-1, 1], (N, H, W, C) → scaled latents, (N, h, w, c)."""


class Input(NamedTuple):
    """Input of a network.

    Attributes:
        name: of the input.
        enters: one of the ways in of `models.denoisers.told`.
        size: of the vector, or channels of the map.
    """

    name: str
    enters: str
    size: int

    def spec(self) -> dict[str, Any]:
        """Input as an entry of the argument `conditions` of a `UNet`."""
        return {"name": self.name, "enters": self.enters, "size": self.size}


@dataclass(frozen=True)
class Condition:
    """Condition: base class of all kinds; its fields are what a model folder keeps of it.

    Attributes:
        name: of the condition, and of its first input.
        null: True where the network also knows "not told".
    """

    name: str
    null: bool = True

    kind: ClassVar[str]
    """Name of the kind, as in a configuration."""
    asked: ClassVar[bool] = True
    """False where generating never has to say a value."""

    def inputs(self) -> tuple[Input, ...]:
        """Inputs of the network."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Fields by name, with the kind; those with their default are left out."""
        defaults = {one.name: one.default for one in fields(self)}
        own = {key: value for key, value in asdict(self).items() if value != defaults[key]}
        own = {key: list(v) if isinstance(v, tuple) else v for key, v in own.items()}
        return {"name": own.pop("name"), "kind": self.kind, **own}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Condition of the fields that `to_json` gave.

        Args:
            entry: without the kind.

        Raises:
            UserError: an unknown field, or a value of another type.
        """
        own = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        try:
            return cls(**own)
        except (TypeError, ValueError) as error:
            raise UserError(f"condition {entry.get('name')!r} ({cls.kind}): {error}") from None

    def describe(self) -> str:
        """Values that it can be told, in a few words."""
        raise NotImplementedError

    def null_arrays(self, arrays: Arrays) -> Arrays:
        """Inputs of "not told", of the shapes of others.

        Args:
            arrays: inputs of this condition, by name.
        """
        return {name: np.zeros_like(one) for name, one in arrays.items()}

    def refuse_null(self) -> UserError:
        """Error: the network always has to be told this."""
        return UserError(f"{self.name}: this model has to be told it: {self.describe()}")


class VectorCondition(Condition):
    """Condition of words or numbers: a vector that is added to the time embedding."""

    @classmethod
    def of_data(cls, name: str, settings: Any, values: Iterable[Any], null: bool) -> Self:
        """Condition with the words or the range that training data has.

        Args:
            name: of the condition.
            settings: `config.ConditionConfig`.
            values: returned by `read`, at least one of them not None.
            null: see `Condition`.
        """
        raise NotImplementedError

    def parse(self, text: str) -> Any:
        """Value of a text from the command line.

        Args:
            text: such as "7", "smile,glasses" or "0.3".

        Raises:
            UserError: it is none; the nearest valid one is named.
        """
        raise NotImplementedError

    def check(self, value: Any) -> Any:
        """Value as others give it, in the form that `arrays` takes.

        Args:
            value: such as 7, "7", ["smile", "glasses"] or 0.3.

        Raises:
            UserError: it is none; the nearest valid one is named.
        """
        raise NotImplementedError

    @classmethod
    def read(cls, columns: Columns, column: str | Sequence[str], place: str) -> Any:
        """Value of an image in the data; None where it has none.

        Args:
            columns: of the image.
            column: name of that or those with the value.
            place: of the row, for messages.

        Raises:
            UserError: a value of another kind.
        """
        raise NotImplementedError

    def arrays(self, values: Sequence[Any]) -> Arrays:
        """Inputs of the network.

        Args:
            values: returned by `check`, `parse` or `read`, one for each image; None for not told.

        Raises:
            UserError: one is None, and the network does not know "not told".
        """
        raise NotImplementedError

    def null_arrays(self, arrays: Arrays) -> Arrays:
        return self.arrays([None] * len(arrays[self.name]))

    def to_text(self, value: Any) -> str:
        """Value as a text that `parse` reads.

        Args:
            value: returned by `check`.
        """
        raise NotImplementedError

    def warning(self, value: Any) -> str:
        """Sentence about a value that training did not see the like of; "" for none.

        Args:
            value: returned by `check`.
        """
        return ""


class PictureCondition(Condition):
    """Condition of a picture: a map as large as the latents, beside them."""

    made: ClassVar[bool] = True
    """True where training makes the picture from the image itself, without a second file."""

    def picture(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Picture made from an image, for training.

        Args:
            image: float32 (H, W, C) in [-1, 1].
            rng: for what is random about it.
        """
        raise NotImplementedError

    def arrays(
        self, pictures: np.ndarray, size: tuple[int, int], encode: Encode | None = None
    ) -> Arrays:
        """Inputs of the network.

        Args:
            pictures: float32 (N, H, W, C) in [-1, 1].
            size: (h, w) of the latents.
            encode: of the autoencoder; None for a model of pixels.
        """
        raise NotImplementedError
