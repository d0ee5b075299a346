"""Tensors in safetensors files, memory-mapped and read one at a time.

    one file                NAME.safetensors
    shards                  NAME.safetensors.index.json → NAME-00001-of-0000N.safetensors, …

The safetensors library checks a header against the length of its file: it refuses overlapping
offsets, shapes that do not match, and headers that are too long. A tensor is copied when it is
read. Pickles (`.bin`, `.ckpt`, `.pt`) are never opened.

Converters take any object with the methods of `Tensors`. `RenamedTensors` are those of a
checkpoint with other names.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from latentddpm.errors import UserError
from latentddpm.pipeline.weight_files import (
    NEVER,
    NOT_READ,
    TRUSTED,
    is_pickle,
    read_header,
    variants,
)
from latentddpm.utils.files import read_json
from latentddpm.utils.stored_weights import check_finite

Shape = tuple[int, ...]

DTYPES = ("F32", "F16", "BF16")
FLOATS = ("F64", *DTYPES)
NUMBERS = (*FLOATS, "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")


class Tensors(Protocol):
    """Tensors by name, read-only; names, shapes and types are known before they are read.

    Attributes:
        name: of the file or folder, for messages.
    """

    name: str

    def keys(self) -> Iterable[str]:
        """Names of all tensors."""

    def shape(self, key: str) -> Shape:
        """Shape of the tensor `key`, without reading it."""

    def dtype(self, key: str) -> str:
        """Type of the tensor `key`, in the words of safetensors: "F32", "F16", "BF16", "I64", …"""

    def read(self, key: str) -> np.ndarray:
        """Tensor `key`, in its own type.

        Raises:
            UserError: another type than `DTYPES`, a number that is not finite, or the file cannot
                be read any more.
        """


class TensorFiles:
    """Tensors of one or several safetensors files; their methods are those of `Tensors`.

    Args:
        files: paths; no two files have a tensor with the same name.
        name: of all files together, for messages; by default that of the first file.

    Raises:
        UserError: a file is missing, not a safetensors file, or a pickle.
    """

    def __init__(self, files: Iterable[str | Path], name: str | Path | None = None) -> None:
        files = [Path(file) for file in files]
        self.name = str(files[0] if name is None else name)
        self._files: dict[str, tuple[Path, safe_open]] = {}
        for file in files:
            refuse_pickle(file)
            if not file.is_file():
                raise UserError(f"{file}: no such file")
            try:
                opened = safe_open(file, framework="numpy")
            except (SafetensorError, OSError) as error:
                read_header(file)  # which knows why
                raise UserError(f"{file}: not a valid safetensors file ({error})") from None
            for key in opened.keys():  # noqa: SIM118 (it is no mapping)
                if key in self._files:
                    raise UserError(f"{file}: {key!r} is in {self._files[key][0].name} as well")
                self._files[key] = (file, opened)

    @classmethod
    def folder(cls, path: str | Path, stem: str, variant: str | None = None) -> TensorFiles:
        """Tensors of the weights in a folder: `stem.safetensors`, or the shards of its index.

        Args:
            path: of the folder.
            stem: "diffusion_pytorch_model" for diffusers, "model" for transformers.
            variant: "fp16" for `stem.fp16.safetensors`; where there are no such files the plain
                ones are read, with a warning. By default the files without a variant are read,
                or those of the only variant.

        Raises:
            UserError: there are no such files, or several variants; the index names a missing
                file, or one outside the folder.
        """
        path = Path(path)
        found = variants(path, stem)
        if variant is not None and variant not in found and None in found:
            name = found[None].name
            warnings.warn(f"{path}: has no variant {variant!r}; read is {name}", stacklevel=2)
            variant = None
        if variant is None and None not in found and len(found) == 1:
            variant = next(iter(found))
        if variant not in found:
            _refuse_missing(path, stem, variant, found)
        file = found[variant]
        if not file.name.endswith(".json"):
            return cls([file])
        listed = _read_index(file)
        tensors = cls([path / name for name in dict.fromkeys(listed.values())], file)
        for key, name in listed.items():
            if tensors._file(key).name != name:
                raise UserError(f"{file}: says {key!r} is in {name}, it is not")
        return tensors

    def keys(self) -> Iterable[str]:
        return self._files.keys()

    def shape(self, key: str) -> Shape:
        return tuple(self._slice(key).get_shape())

    def dtype(self, key: str) -> str:
        return self._slice(key).get_dtype()

    def read(self, key: str, dtypes: Sequence[str] = DTYPES) -> np.ndarray:
        check_dtype(self, key, dtypes)
        try:
            array = self._files[key][1].get_tensor(key)
        except SafetensorError as error:
            raise UserError(f"{self._file(key)}: {key!r} cannot be read ({error})") from None
        check_finite(array, self._file(key), key)
        return array

    def _file(self, key: str) -> Path:
        if key not in self._files:
            raise UserError(f"{self.name}: no tensor {key!r}")
        return self._files[key][0]

    def _slice(self, key: str):
        self._file(key)
        return self._files[key][1].get_slice(key)


class RenamedTensors:
    """Tensors with other names; their methods are those of `Tensors`.

    Args:
        source: the tensors.
        names: new name → name in `source`; tensors without a new name are left out.
        shapes: new name → new shape, for tensors that are stored with more or fewer axes of
            length one (a dense layer as a 1×1 convolution).

    Raises:
        UserError: `source` has no such tensor, or one of another size.
    """

    def __init__(
        self,
        source: Tensors,
        names: Mapping[str, str],
        shapes: Mapping[str, Shape] | None = None,
    ) -> None:
        self.name = source.name
        self._source = source
        self._names = dict(names)
        self._shapes = dict(shapes or {})
        for key, shape in self._shapes.items():
            found = source.shape(names[key])
            if [n for n in found if n != 1] != [n for n in shape if n != 1]:
                raise UserError(f"{self.name}: {names[key]!r} is {found}, expected {shape}")

    def keys(self) -> Iterable[str]:
        return self._names.keys()

    def shape(self, key: str) -> Shape:
        return self._shapes.get(key) or self._source.shape(self._original(key))

    def dtype(self, key: str) -> str:
        return self._source.dtype(self._original(key))

    def read(self, key: str) -> np.ndarray:
        return self._source.read(self._original(key)).reshape(self.shape(key))

    def _original(self, key: str) -> str:
        if key not in self._names:
            raise UserError(f"{self.name}: no tensor {key!r}")
        return self._names[key]


def check_dtype(tensors: Tensors, key: str, dtypes: Sequence[str] = DTYPES) -> None:
    """Check the type of a tensor.

    Args:
        tensors: of a file.
        key: name of the tensor.
        dtypes: types that are read.

    Raises:
        UserError: it has another; the message says what that is.
    """
    dtype = tensors.dtype(key)
    if dtype in dtypes:
        return
    what = f", {NOT_READ[dtype]}" if dtype in NOT_READ else ""
    raise UserError(
        f"{tensors.name}: {key!r} is {dtype}{what}, which is not read; expected one of "
        f"{', '.join(dtypes)}: get such a version"
    )


def refuse_pickle(path: Path) -> None:
    """Refuse a pickle, which can run code when it is loaded.

    Raises:
        UserError: the suffix of `path` is that of a pickle; the message says what to do instead.
    """
    if is_pickle(path):
        raise UserError(f"{path}: a pickle {NEVER}; {TRUSTED}")


def _refuse_missing(
    path: Path, stem: str, variant: str | None, found: Mapping[str | None, Path]
) -> None:
    wanted = f"{stem}.{variant}.safetensors" if variant else f"{stem}.safetensors"
    if found:
        names = ", ".join(str(name or "none") for name in found)
        raise UserError(
            f"{path / wanted}: not found; the folder has the variants {names}: choose one with "
            f"--variant"
        )
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.stem.startswith(stem.split("_")[0]) or file.stem.startswith("pytorch_model"):
                refuse_pickle(file)
        for file in sorted(path.glob(f"{stem}*-of-*.safetensors")):
            raise UserError(
                f"{path / wanted}: not found, and {file.name} is a shard without its index, "
                f"{wanted}.index.json; get that too"
            )
    raise UserError(f"{path / wanted}: not found")


def _read_index(path: Path) -> dict[str, str]:
    """Content of an index of shards: tensor → file."""
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise UserError(f"{path}: weight_map: expected an object that names the file of a tensor")
    for key, name in listed.items():
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise UserError(
                f"{path}: {key!r}: {name!r:.80} is not the name of a file in the folder"
            )
        refuse_pickle(Path(name))
        if not name.endswith(".safetensors"):
            raise UserError(f"{path}: {key!r}: {name!r:.80} is not a safetensors file")
        if not (path.parent / name).is_file():
            raise UserError(f"{path.parent / name}: missing, but named in {path.name}")
    return listed
