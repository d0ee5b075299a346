"""Number condition: one or several numbers, such as an age or a position.

    z = (x − mean) / std        vector [1, z]        "not told" is [0, 0]

The vector goes through two dense layers, so their biases are what is learned for "not told".
Mean, standard deviation and range are those of the training data. A number outside of the range is
told as it is, with a warning.

`ChangesCondition` tells what augmentation has changed in an image. Only training tells it: the
finished network has it folded away (`models.denoisers.widen.fold`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np

from latentddpm.conditions.base import Arrays, Columns, Input, VectorCondition
from latentddpm.errors import UserError


@dataclass(frozen=True)
class NumberCondition(VectorCondition):
    """Number condition: k numbers, standardised.

    Attributes:
        mean, std: of each number.
        range: lowest and highest of each number in the data, one after the other: 2k numbers.
        enters: "projection", or of networks from elsewhere "timestep" or "identity".

    Example:
        >>> age = NumberCondition("age", mean=(40.0,), std=(10.0,), range=(20.0, 60.0))
        >>> age.arrays([age.parse("45"), None])["age"]
        array([[1. , 0.5],
               [0. , 0. ]], dtype=float32)
        >>> age.warning(age.check(70))
        'age: 70 is outside of 20 … 60, the range of the training data'
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    range: tuple[float, ...] = ()
    enters: str = "projection"

    kind: ClassVar[str] = "number"

    def __post_init__(self) -> None:
        if len(self.std) != len(self.mean) or len(self.range) not in (0, 2 * len(self.mean)):
            raise ValueError("mean, std and range are of different numbers")

    @classmethod
    def of_data(cls, name: str, settings: Any, values: Iterable[Any], null: bool) -> Self:
        known = np.array([one for one in values if one is not None], np.float64)
        low, high = known.min(axis=0), known.max(axis=0)
        std = known.std(axis=0)
        std = np.where(std > 0, std, 1.0)
        pairs = np.stack([low, high], axis=-1).ravel()
        numbers = (known.mean(axis=0), std, pairs)
        return cls(name, null, *(tuple(map(float, one)) for one in numbers))

    def inputs(self) -> tuple[Input, ...]:
        return (Input(self.name, self.enters, len(self.mean) + self.null),)

    def describe(self) -> str:
        count = "a number" if len(self.mean) == 1 else f"{len(self.mean)} numbers"
        pairs = zip(self.range[::2], self.range[1::2], strict=True)
        return ", ".join([count, *(f"{low:g} … {high:g}" for low, high in pairs)])

    def parse(self, text: str) -> tuple[float, ...]:
        try:
            return self.check([float(one) for one in text.split(",")])
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{self.name}: {text!r:.80}, expected {self.describe()}") from None

    def check(self, value: Any) -> tuple[float, ...]:
        found = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
        real = all(isinstance(one, Real) and not isinstance(one, bool) for one in found)
        if not real or len(found) != len(self.mean) or not np.isfinite(found).all():
            raise UserError(f"{self.name}: {value!r:.80}, expected {self.describe()}")
        return tuple(map(float, found))

    @classmethod
    def read(
        cls, columns: Columns, column: str | Sequence[str], place: str
    ) -> tuple[float, ...] | None:
        names = [column] if isinstance(column, str) else column
        values = [columns.get(name) for name in names]
        values = [v for one in values for v in (one if isinstance(one, list) else [one])]
        if None in values:
            return None
        try:
            found = tuple(map(float, values))
        except (TypeError, ValueError):
            found = (np.nan,)
        if not np.isfinite(found).all():
            named = ", ".join(map(repr, names))
            raise UserError(f"{place}: {named} is {values!r:.40}, expected numbers")
        return found

    def arrays(self, values: Sequence[tuple[float, ...] | None]) -> Arrays:
        found = np.zeros((len(values), len(self.mean) + self.null), np.float32)
        for row, numbers in enumerate(values):
            if numbers is not None:
                z = (np.asarray(numbers) - self.mean) / self.std
                found[row] = [1, *z] if self.null else z
            elif not self.null:
                raise self.refuse_null()
        return {self.name: found}

    def to_text(self, value: tuple[float, ...]) -> str:
        return ",".join(repr(one).removesuffix(".0") for one in value)

    def warning(self, value: tuple[float, ...]) -> str:
        pairs = zip(value, self.range[::2], self.range[1::2], strict=bool(self.range))
        for number, low, high in pairs:
            if not low <= number <= high:
                return (
                    f"{self.name}: {number:g} is outside of {low:g} … {high:g}, the range of the "
                    "training data"
                )
        return ""


@dataclass(frozen=True)
class ChangesCondition(NumberCondition):
    """Changes condition: numbers that are 0 where an image is as it was, which is "not told".

    Attributes:
        numbers: name of each number.

    Example:
        >>> changes = ChangesCondition.of_scales({"zoom": 0.5, "turn": 10.0})
        >>> changes.arrays([(0.5, -20.0), None])["changes"]
        array([[ 1., -2.],
               [ 0.,  0.]], dtype=float32)
    """

    numbers: tuple[str, ...] = ()

    kind: ClassVar[str] = "changes"
    asked: ClassVar[bool] = False

    @classmethod
    def of_scales(cls, scales: Mapping[str, float]) -> Self:
        """Changes condition of some numbers.

        Args:
            scales: name of each number → what it is divided by.
        """
        zeros = (0.0,) * len(scales)
        return cls(cls.kind, False, zeros, tuple(scales.values()), numbers=tuple(scales))

    def describe(self) -> str:
        return f"{', '.join(self.numbers)} of augmented images; generating tells 0"

    def arrays(self, values: Sequence[tuple[float, ...] | None]) -> Arrays:
        return super().arrays([self.mean if one is None else one for one in values])
