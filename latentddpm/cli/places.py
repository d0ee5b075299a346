"""Places that options name: a path, or an address on the Hub, fetched when a command runs.

    --model hf://owner/name ──Place──► Fetchable ──fetched──► path of the copy

`usage.command` calls `fetched` for every command, so a command sees paths alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from latentddpm.hub.address import is_address, parse_address


@dataclass(frozen=True)
class Fetchable:
    """Value of an option that is to be fetched.

    Attributes:
        address: on the Hub.
        tail: that follows it, such as ":0.5".
        kind: of the value: `Path` or `str`.
    """

    address: str
    tail: str = ""
    kind: type = Path


class Place(click.Path):
    """Option that is a path or an address `hf://owner/name[@revision][/path]`.

    Args:
        kind: of the value: `Path` or `str`.
        scaled: True where `:SCALE` may follow.
    """

    def __init__(self, kind: type = Path, scaled: bool = False) -> None:
        super().__init__(path_type=kind)
        self.scaled = scaled

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Fetchable):
            return value
        if not is_address(value):
            return super().convert(value, param, ctx)
        address, colon, scale = str(value).rpartition(":") if self.scaled else (value, "", "")
        if "//" in scale:  # the colon of the scheme: no scale is given
            address, colon, scale = value, "", ""
        parse_address(address)  # refused now where it is none
        return Fetchable(str(address), colon + scale, self.type)


PLACE = Place()
PLACE_TEXT = Place(str)
SCALED_PLACE = Place(str, scaled=True)


def fetched(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the path of a copy in place of every address.

    Args:
        options: of a command, by name; `variant` chooses the weights of a diffusers folder.

    Raises:
        UserError, OSError: see `hub.fetch.fetch`.
    """

    def value_of(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(value_of, value))
        if not isinstance(value, Fetchable):
            return value
        from latentddpm.hub.fetch import fetch

        return value.kind(f"{fetch(value.address, options.get('variant'))}{value.tail}")

    return {name: value_of(value) for name, value in options.items()}
