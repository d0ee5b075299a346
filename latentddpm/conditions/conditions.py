"""Conditions of a model, in the order of its network's inputs.

pipeline.json ─► Conditions ─► what can be asked, by name; inputs of the network
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from latentddpm.conditions.base import Arrays, Condition, PictureCondition, VectorCondition
from latentddpm.conditions.inpainting import InpaintingCondition
from latentddpm.conditions.kinds import KINDS
from latentddpm.errors import UserError, check_choice, nearest

Values = Mapping[str, Any]
"""Name of a condition → its value for an image; a name that is missing is "not told"."""


@dataclass(frozen=True)
class Conditions:
    """Conditions of a model, by name and in order.

    Attributes:
        members: the conditions.

    Raises:
        UserError: two have one name.
    """

    members: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        names = self.names
        if twice := next((one for one in names if names.count(one) > 1), ""):
            raise UserError(f"conditions: two are called {twice!r}")

    def __iter__(self) -> Iterator[Condition]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, name: str) -> Condition:
        """Condition of a name.

        Raises:
            UserError: there is none; the nearest one is named.
        """
        found = next((one for one in self if one.name == name), None)
        if found is None:
            known = ", ".join(self.names)
            has = f"it has {known}{nearest(name, self.names)}" if known else "it has none"
            raise UserError(f"{name}: is no condition of this model; {has}")
        return found

    @property
    def names(self) -> list[str]:
        """Names of all conditions."""
        return [one.name for one in self]

    @property
    def vectors(self) -> list[VectorCondition]:
        """Conditions of words and numbers."""
        return [one for one in self if isinstance(one, VectorCondition)]

    @property
    def pictures(self) -> list[PictureCondition]:
        """Conditions of pictures that are given as such; a hole to be painted is not."""
        known = (one for one in self if isinstance(one, PictureCondition))
        return [one for one in known if not isinstance(one, InpaintingCondition)]

    def specs(self) -> list[dict[str, Any]]:
        """Inputs of the network, as the argument `conditions` of a `UNet`."""
        return [entry.spec() for one in self for entry in one.inputs()]

    def to_json(self) -> list[dict[str, Any]]:
        """Entries of `pipeline.json`."""
        return [one.to_json() for one in self]

    @classmethod
    def from_json(cls, entries: Any) -> Conditions:
        """Conditions of the entries of `pipeline.json`.

        Args:
            entries: returned by `to_json`; None for none.

        Raises:
            UserError: entries of another form, or of an unknown kind.
        """
        found = []
        for entry in entries or ():
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
                raise UserError(f"conditions: {entry!r:.80}, expected a name, a kind and more")
            own = dict(entry)
            kind = check_choice(f"condition {entry['name']!r}: kind", own.pop("kind", ""), KINDS)
            found.append(KINDS[kind].from_json(own))
        return cls(tuple(found))

    @property
    def guided(self) -> bool:
        """True where guidance can lead away from "not told"."""
        return any(one.null for one in self)

    @property
    def paints(self) -> bool:
        """True where the network is told a mask and the picture around it."""
        return any(isinstance(one, InpaintingCondition) for one in self)

    # --- Values --------------------------------------------------------------------------------

    def parse(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """Values of the texts of `--label`, by name, for each row of images.

        A condition that is given several times has a value for each row; one that is given once
        has it in all rows.

        Args:
            texts: each `NAME=VALUE`, or `VALUE` where only one condition can be meant.

        Returns:
            The values of one row, or of as many as a condition was given times; none without
            texts.

        Raises:
            UserError: a name or value that the model does not have, or conditions of different
                numbers of rows.
        """
        found: dict[str, list[Any]] = {}
        for text in texts:
            name, equals, value = text.partition("=")
            if (equals and name.strip() in self.names) or not self.vectors:
                condition = self[name.strip()]
            else:
                condition, value = self._meant(text), text
            if not isinstance(condition, VectorCondition):
                raise UserError(f"--label {text}: {condition.name} is a picture: --condition FILE")
            found.setdefault(condition.name, []).append(condition.parse(value))
        count = max(map(len, found.values()), default=0)
        for name, values in found.items():
            if len(values) not in (1, count):
                raise UserError(
                    f"--label {name}: {len(values)} values, but there are {count} rows; give one "
                    "for all, or one for each"
                )
        return [
            {name: values[row % len(values)] for name, values in found.items()}
            for row in range(count)
        ]

    def parse_files(self, texts: Sequence[str]) -> dict[str, str]:
        """Files of the texts of `--condition`, by the names of the conditions.

        Args:
            texts: each `NAME=FILE`, or `FILE` where only one condition can be meant.

        Raises:
            UserError: a condition that the model does not have, that is no picture, or that is
                given twice.
        """
        found: dict[str, str] = {}
        for text in texts:
            name, equals, file = text.partition("=")
            if not self.pictures:
                own = ", ".join(f"{one.name} ({one.kind})" for one in self) or "none"
                raise UserError(
                    f"--condition {text}: this model is told no picture; its conditions: {own}"
                )
            if equals and name in self.names:
                condition = self[name]
            elif len(self.pictures) == 1:
                condition, file = self.pictures[0], text
            else:
                known = ", ".join(one.name for one in self.pictures)
                raise UserError(f"--condition {text}: of which condition? NAME=FILE: {known}")
            if condition not in self.pictures:
                raise UserError(
                    f"--condition {text}: {condition.name} is {condition.describe()}; give it "
                    + ("with --label" if condition in self.vectors else "by --init-image, --mask")
                )
            if condition.name in found:
                raise UserError(f"--condition {text}: {condition.name} is given twice")
            found[condition.name] = file
        return found

    def _meant(self, text: str) -> VectorCondition:
        """Condition that a value without a name is of."""
        problems, found = [], []
        name, equals, _ = text.partition("=")
        for one in self.vectors:
            try:
                one.parse(text)
            except UserError as error:
                problems.append(error)
            else:
                found.append(one)
        if len(found) == 1:
            return found[0]
        if not found and len(problems) == 1 and not equals:
            raise problems[0]
        names = [one.name for one in found or self.vectors]
        hint = nearest(name, names) if equals else ""
        known = ", ".join(names)
        raise UserError(f"--label {text}: of which condition? NAME=VALUE{hint}: {known}")

    def rows(self, given: Values | Sequence[Values] | None) -> list[dict[str, Any]]:
        """Values of each row of images.

        Args:
            given: by name, for all rows; or a sequence of these, one for each row.

        Raises:
            UserError: something else, or see `check`.
        """
        if given is None or isinstance(given, Mapping):
            return [self.check(given or {})]
        rows = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else []
        if not rows or not all(isinstance(one, Mapping) for one in rows):
            raise UserError(f"conditions: {given!r:.80}, expected names with values")
        return [self.check(one) for one in rows]

    def check(self, values: Values) -> dict[str, Any]:
        """Values by name, as the conditions take them.

        Args:
            values: as given in Python; None for "not told".

        Raises:
            UserError: a name or value that the model does not have, or a value missing that the
                network always has to be told.
        """
        found = {}
        for name, value in values.items():
            condition = self[name]
            if value is not None:
                found[name] = condition.check(value)
        for one in self.vectors:
            if one.name not in found and not one.null and one.asked:
                raise one.refuse_null()
        return {one.name: found[one.name] for one in self if one.name in found}

    def warnings(self, values: Values) -> list[str]:
        """Sentences about values that training did not see the like of.

        Args:
            values: returned by `check`.
        """
        found = (one.warning(values[one.name]) for one in self.vectors if one.name in values)
        return list(filter(None, found))

    def to_text(self, values: Values) -> str:
        """Values in one line, such as "digit=7, age=0.3"; "" for none.

        Args:
            values: returned by `check`.
        """
        return ", ".join(f"{name}={text}" for name, text in self.texts(values).items())

    def texts(self, values: Values) -> dict[str, str]:
        """Texts of the values of words and numbers by name, which `parse` reads again.

        Args:
            values: returned by `check`.
        """
        own = [one for one in self.vectors if one.name in values]
        return {one.name: one.to_text(values[one.name]) for one in own}

    def from_texts(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """Values of texts by name.

        Args:
            texts: returned by `texts`.

        Raises:
            UserError: see `check`.
        """
        found = {}
        for name, text in texts.items():
            condition = self[name]
            if not isinstance(condition, VectorCondition) or not isinstance(text, str):
                raise UserError(f"{name}: {text!r:.80}, expected {condition.describe()}")
            found[name] = condition.parse(text)
        return found

    def vector_arrays(self, rows: Sequence[Values]) -> Arrays:
        """Inputs of the vectors, float32 (N, size) by name.

        Args:
            rows: values of each image, returned by `check`.

        Raises:
            UserError: a value is missing that the network has to be told.
        """
        found: Arrays = {}
        for one in self.vectors:
            found |= one.arrays([row.get(one.name) for row in rows])
        return found

    def null_arrays(self, arrays: Arrays) -> Arrays:
        """Inputs where nothing is told that the network can do without.

        Args:
            arrays: inputs of all conditions by name, as they are told.
        """
        found = dict(arrays)
        for one in self:
            if one.null:
                own = {entry.name: arrays[entry.name] for entry in one.inputs()}
                found |= one.null_arrays(own)
        return found

    def untold(self, spatial_dims: int = 2) -> Arrays:
        """Inputs of one image that is told nothing, (1, size) each, of maps (1, 1, 1, size).

        Those that the network always has to be told are missing.

        Args:
            spatial_dims: of the latents.
        """
        found: Arrays = {}
        space = (1,) * spatial_dims
        for one in self:
            if one.null:
                own = {
                    name: np.zeros((1, *space * (enters == "concat"), size), np.float32)
                    for name, enters, size in one.inputs()
                }
                found |= one.null_arrays(own)
        return found


NO_CONDITIONS = Conditions()
"""Conditions of a network that is told nothing beside text."""
