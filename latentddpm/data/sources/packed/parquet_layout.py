"""Layout of a parquet file of images: which column holds them, and what its rows tell beside.

    schema ──► Layout: the column of images, those that are read beside it, words of class labels
    row    ──► columns, as of a table

The column of the images is the one that the schema calls an Image (key "huggingface" of its
metadata), else the first of `IMAGE_COLUMNS` that holds bytes, else the only one that does.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from latentddpm.data.sources.kinds import MAGIC, first_column
from latentddpm.data.sources.metadata import TEXT, Row
from latentddpm.data.sources.packed.shards import parse_columns
from latentddpm.errors import UserError

BYTES, PATH, COLUMNS = "bytes", "path", "columns"
IMAGE_COLUMNS = (
    *("image", "img", "picture", "photo", "pixel_values", "images", "jpg", "jpeg", "png", "webp"),
    *("image_bytes", "image_data", "bytes", "data", "content"),
)
"""Names of a column of images, in any case; of several the first is taken."""
MOST_NUMBERS = 64
"""Numbers in a list, above which a column is no metadata (an embedding, an audio track)."""


@dataclass(frozen=True)
class Layout:
    """Layout of a parquet file.

    Attributes:
        image: column of the images.
        others: columns that are read beside it.
        unused: columns that are not, with the reason.
        words: words of columns of class labels, by column.
    """

    image: str
    others: tuple[str, ...]
    unused: tuple[tuple[str, str], ...] = ()
    words: Mapping[str, list[str]] = field(default_factory=dict)


def layout_of(schema: Any, path: str) -> Layout:
    """Layout of a schema of pyarrow.

    Args:
        schema: of the file.
        path: of the file, for messages.

    Raises:
        UserError: no column holds images; the message names the columns.
    """
    import pyarrow as arrow

    features = _features(schema.metadata or {})
    candidates = [one.name for one in schema if _holds_bytes(one.type, arrow)]
    declared = [name for name in candidates if _kind(features.get(name)) == "Image"]
    image = _first(declared) or first_column(candidates, IMAGE_COLUMNS)
    if not image and len(candidates) == 1 and not features:
        image = candidates[0]
    if not image:
        names = ", ".join(schema.names) or "none"
        raise UserError(
            f"{path}: no column of images in it (its columns are {names}); one holds the bytes of "
            "image files, or a struct of bytes and path"
        )
    others, unused = [], []
    for one in schema:
        if one.name == image:
            continue
        if one.name in candidates:
            unused.append((one.name, "another column of bytes"))
        elif _kind(features.get(one.name)) in ("Audio", "Video"):
            unused.append((one.name, f"a column of {_kind(features[one.name]).lower()}"))
        else:
            others.append(one.name)
    words = {
        name: list(feature["names"])
        for name, feature in features.items()
        if _kind(feature) == "ClassLabel" and isinstance(feature.get("names"), list)
    }
    return Layout(image, tuple(others), tuple(unused), words)


def _first(names: list[str]) -> str:
    """First of the columns by the names that are known, else by their order; "" for none."""
    return first_column(names, IMAGE_COLUMNS) or (names[0] if names else "")


def _holds_bytes(kind: Any, arrow: Any) -> bool:
    """True for bytes, and for a struct with a field of that name that is some."""
    if arrow.types.is_struct(kind):
        fields = {kind.field(i).name: kind.field(i).type for i in range(kind.num_fields)}
        kind = fields.get(BYTES, kind)
    return arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, Any]:
    """Features of Hugging Face's `datasets` in the metadata of a schema; empty without."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _kind(feature: Any) -> str:
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def written_schema() -> Any:
    """Schema of pyarrow that `pack` writes, with the features that Hugging Face's readers use."""
    import pyarrow as arrow

    image, text = IMAGE_COLUMNS[0], arrow.string()
    value = {"dtype": "string", "_type": "Value"}
    features = {image: {"_type": "Image"}, TEXT: value, COLUMNS: value}
    schema = arrow.schema(
        {image: arrow.struct({BYTES: arrow.binary(), PATH: text}), TEXT: text, COLUMNS: text}
    )
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


# --- Rows ----------------------------------------------------------------------------------


def read_row(values: dict[str, Any], layout: Layout, where: str) -> Row:
    """Row of the columns beside the image; if they are malformed it has a problem.

    Args:
        values: by the names of the columns.
        layout: of the file.
        where: the row, for messages.
    """
    packed = values.get(COLUMNS)
    if isinstance(packed, str) and packed.startswith("{"):
        return parse_columns(packed.encode(), where)
    columns = {}
    for name, value in values.items():
        if name in layout.words and isinstance(value, int):
            words = layout.words[name]
            value = words[value] if 0 <= value < len(words) else None
        value = _json_value(value)
        if value is not None:
            columns[name] = value
    return Row(0, columns)


def _json_value(value: Any) -> Any:
    """Value that JSON can hold; None for one that is no metadata."""
    if isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, list):
        numbers = sum(isinstance(one, int | float) for one in value)
        return None if numbers > MOST_NUMBERS else [_json_value(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _json_value(one) for name, one in value.items()}
    return None


def image_suffix(data: bytes) -> str:
    """Suffix of an image by its first bytes; "" where they tell none.

    Args:
        data: bytes of its file.
    """
    return next((s for at, magic, s in MAGIC if data[at : at + len(magic)] == magic), "")
