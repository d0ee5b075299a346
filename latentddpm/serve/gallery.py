"""Gallery: the pictures that a server drew, in one folder, each known by an id.

An id is random, so nobody finds another's picture by counting. Only files that the gallery wrote
are given out. A file that was replaced by a link is not. Pictures that a drawing starts from lie
in the same folder, where `generate --from` finds them.
"""

from __future__ import annotations

import hashlib
import io
import secrets
import threading
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentddpm.utils.files import atomic_path
from latentddpm.utils.pixels import read_metadata

MOST = 10_000
"""Pictures that are known at once, where no number of them is given."""


@dataclass(frozen=True)
class Entry:
    """Picture of a gallery.

    Attributes:
        id: 22 letters, digits, - and _.
        file: in the folder of the gallery.
        owner: who asked for it, "" for nobody in particular.
        inputs: files in the same folder that it was made from.
        size: (height, width) in pixels.
    """

    id: str
    file: Path
    owner: str
    inputs: tuple[Path, ...]
    size: tuple[int, int]

    def metadata(self) -> dict[str, Any]:
        """Metadata of the picture: how it was made.

        Raises:
            UserError: the file has gone or was changed.
        """
        return read_metadata(self.file)


class Gallery:
    """Gallery in a folder.

    Args:
        folder: made with the first file.
        keep: pictures that are kept; older ones of this gallery are deleted. None keeps all files.

    Example:
        >>> gallery = Gallery(Path("drawings"))
        >>> entry = gallery.add(file, "", (), (128, 128))
        >>> gallery.find(entry.id).file == file
        True
    """

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        self.folder, self.keep = folder, keep
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._uses: Counter[Path] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def hold_input(self, name: str, data: bytes, suffix: str) -> Path:
        """Write a picture that a drawing starts from, once, and hold it until `release`.

        Args:
            name: of what it is, the beginning of the file's name.
            data: its bytes.
            suffix: of the file.

        Raises:
            OSError: it cannot be written.
        """
        digest = hashlib.sha256(data).hexdigest()[:16]
        file = self.folder / f"{name}-{digest}{suffix}"
        with self._lock:
            if not self._uses[file] and file.is_file() and not file.is_symlink():
                self._uses[file] = 1  # pictures of an earlier gallery were made from it: it stays
            self._uses[file] += 1
            if not file.is_file() or file.is_symlink():
                self.folder.mkdir(parents=True, exist_ok=True)
                with atomic_path(file) as temporary:
                    temporary.write_bytes(data)
        return file

    def release(self, inputs: Iterable[Path]) -> None:
        """Let go of inputs; what no picture and no job uses any more is deleted.

        Args:
            inputs: returned by `hold_input`.
        """
        with self._lock:
            self._release(inputs)

    def add(
        self, file: Path, owner: str, inputs: tuple[Path, ...], size: tuple[int, int]
    ) -> Entry:
        """Add a picture that was written into the folder.

        Args:
            file, owner, inputs, size: see `Entry`.
        """
        entry = Entry(secrets.token_urlsafe(16), file, owner, inputs, size)
        with self._lock:
            self._entries[entry.id] = entry
            self._uses.update(inputs)
            while len(self._entries) > (self.keep or MOST):
                _, oldest = self._entries.popitem(last=False)
                if self.keep is not None:
                    oldest.file.unlink(missing_ok=True)
                    self._release(oldest.inputs)
        return entry

    def find(self, id: str) -> Entry | None:
        """Picture of an id; None where there is none, or its file is not the gallery's any more.

        Args:
            id: see `Entry`.
        """
        entry = self._entries.get(id)
        return entry if entry is not None and self._owns(entry.file) else None

    def of(self, owner: str, count: int) -> list[Entry]:
        """Newest pictures of an owner, the newest first.

        Args:
            owner: see `Entry`.
            count: of pictures, at most.
        """
        with self._lock:
            own = [one for one in reversed(self._entries.values()) if one.owner == owner]
        return own[:count]

    def archive(self, entry: Entry) -> bytes:
        """ZIP archive of a picture and the files that it was made from.

        Args:
            entry: of this gallery.

        Raises:
            OSError: a file has gone.
        """
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:  # PNG is compressed already
            for file in filter(self._owns, (entry.file, *entry.inputs)):
                archive.write(file, file.name)
        return stream.getvalue()

    def _owns(self, file: Path) -> bool:
        """True for a file in the folder that is no link."""
        return file.parent == self.folder and file.is_file() and not file.is_symlink()

    def _release(self, inputs: Iterable[Path]) -> None:
        for file in inputs:
            self._uses[file] -= 1
            if self._uses[file] <= 0:
                del self._uses[file]
                file.unlink(missing_ok=True)
