"""Cache: what can be computed again, kept in the user's cache folder.

    $XDG_CACHE_HOME or ~/.cache / latentddpm / KIND / KEY      SHA-256 of key and content, content

A file that is damaged, or that was made under another key, counts as none and is replaced. Of the
files of a kind, those that were not used for longest go when together they are over its limit.
Nothing here is needed: a folder that cannot be written costs a line, and no cache.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from latentddpm.utils.console import say, speaks
from latentddpm.utils.files import atomic_path

SWITCH = "LATENTDDPM_NO_CACHE"
"""Environment variable that switches caches of computed files off, by any value."""
DIGEST_BYTES = hashlib.sha256().digest_size


def cache_folder() -> Path:
    """Folder for what can be computed again, in the user's cache folder.

    Raises:
        RuntimeError: the user has no home.
    """
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (given if given.is_absolute() else Path.home() / ".cache") / "latentddpm"


def is_switched_off(environment: Mapping[str, str] = os.environ) -> bool:
    """True where the environment switches the cache off.

    Args:
        environment: with the variable `SWITCH`.
    """
    return bool(environment.get(SWITCH))


class Cache:
    """Cache of one kind of files.

    Args:
        kind: name of their folder.
        limit: bytes of all of them together, from which on the oldest go.
    """

    def __init__(self, kind: str, limit: int) -> None:
        self.kind, self.limit = kind, limit

    def read(self, key: str) -> bytes | None:
        """Content under a key; None where there is none that is whole.

        Args:
            key: a name of letters and digits.
        """
        try:
            file = cache_folder() / self.kind / key
            stored = file.read_bytes()
        except (OSError, RuntimeError):
            return None
        digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
        if digest != _digest(key, content):
            return None
        with contextlib.suppress(OSError):
            os.utime(file)  # it was used now
        return content

    def write(self, key: str, content: bytes) -> None:
        """Keep content under a key, and let the oldest go; where it cannot be kept, say so once.

        Args:
            key: a name of letters and digits.
            content: at most `limit` bytes.
        """
        try:
            folder = cache_folder() / self.kind
            with atomic_path(folder / key) as temporary:
                temporary.write_bytes(_digest(key, content) + content)
            self._shrink(folder)
        except (OSError, RuntimeError) as error:
            _complain(f"cache: {getattr(error, 'strerror', None) or error}; nothing is kept there")

    def _shrink(self, folder: Path) -> None:
        """Delete the files that were not used for longest, down to the limit."""
        files = [(file.stat(), file) for file in folder.iterdir() if file.is_file()]
        files.sort(key=lambda each: each[0].st_mtime_ns, reverse=True)
        total = 0
        for status, file in files:
            total += status.st_size
            if total > self.limit:
                file.unlink(missing_ok=True)


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).digest()


@functools.cache
def _complain(text: str) -> None:
    """Say a sentence, once for each process."""
    say(text, quiet=not speaks())
