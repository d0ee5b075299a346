"""Queue of drawings: jobs in the order they came, and the one thread that draws them.

    waiting ─► drawing ─► done | failed
       └──────────┴─────► cancelled          within a step

The queue has a length, and of jobs that have ended only the last are remembered, so memory stays
bounded whatever is asked for.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from latentddpm.errors import UserError, one_line
from latentddpm.generation.plan import Plan
from latentddpm.utils import signals

WAITING, DRAWING, DONE, CANCELLED, FAILED = STATES = (
    *("waiting", "drawing", "done", "cancelled", "failed"),
)
ENDED = (DONE, CANCELLED, FAILED)
REMEMBERED = 500
"""Jobs that have ended and are still known."""


class QueueFull(UserError):
    """Error: as many drawings wait as may wait."""


class Cancelled(Exception):
    """Interrupt of a drawing that was cancelled."""


@dataclass(eq=False)
class Job:
    """Drawing that was asked for.

    Attributes:
        plan: of it; None once it has ended.
        owner: who asked for it, "" for nobody in particular.
        inputs: files that it starts from, held by the gallery.
        id: 22 letters, digits, - and _.
        about: what was asked for, as text by name.
        state: one of `STATES`.
        step: steps that are done, of `steps`.
        preview: of x̂0, uint8 (B, H, W, 3); None before the first step.
        pictures: ids of them in the gallery, once it is done.
        error: one line, of a job that failed.
        stop: set when it is cancelled.
    """

    plan: Plan | None
    owner: str = ""
    inputs: tuple[Path, ...] = ()
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    about: dict[str, Any] = field(default_factory=dict)
    state: str = WAITING
    step: int = 0
    steps: int = 0
    preview: np.ndarray | None = None
    pictures: list[str] = field(default_factory=list)
    error: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def ended(self) -> bool:
        """True where nothing about it changes any more."""
        return self.state in ENDED


class DrawingQueue:
    """Queue of drawings, with the thread that draws.

    Args:
        draw: draws a job; returns the ids of its pictures, or raises `Cancelled`.
        length: jobs that may wait.
        ended: called with each job that has ended.

    Example:
        >>> queue = DrawingQueue(lambda job: [], length=4)
        >>> job = queue.submit(Job(plan))
        >>> queue.close()
    """

    def __init__(
        self,
        draw: Callable[[Job], list[str]],
        length: int,
        ended: Callable[[Job], None] = lambda job: None,
    ) -> None:
        self._draw, self._length, self._ended = draw, length, ended
        self._waiting: list[Job] = []
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="drawings", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Job:
        """Add a job at the end of the queue.

        Args:
            job: new.

        Raises:
            QueueFull: too many wait.
        """
        with self._changed:
            if len(self._waiting) >= self._length or self._closed:
                raise QueueFull(f"queue: {self._length} drawings wait already; try again later")
            self._jobs[job.id] = job
            self._waiting.append(job)
            self._forget()
            self._changed.notify()
        return job

    def find(self, id: str) -> Job | None:
        """Job of an id; None where there is none, or it ended long ago.

        Args:
            id: see `Job`.
        """
        return self._jobs.get(id)

    def of(self, owner: str) -> list[Job]:
        """Jobs of an owner that are remembered, in the order they came.

        Args:
            owner: see `Job`.
        """
        with self._changed:
            return [job for job in self._jobs.values() if job.owner == owner]

    def before(self, job: Job) -> int:
        """Number of jobs that are drawn before one that waits.

        Args:
            job: of this queue.
        """
        with self._changed:
            drawing = any(one.state == DRAWING for one in self._jobs.values())
            return self._waiting.index(job) + drawing if job in self._waiting else 0

    def cancel(self, job: Job) -> None:
        """Cancel a job: one that waits at once, one that is drawn within a step.

        Args:
            job: of this queue; one that has ended stays as it is.
        """
        with self._changed:
            job.stop.set()
            if job not in self._waiting:
                return
            self._waiting.remove(job)
        self._end(job, CANCELLED)

    def close(self, seconds: float = 30.0) -> None:
        """Cancel all jobs, and wait for the thread.

        Args:
            seconds: to wait, at most.
        """
        with self._changed:
            self._closed = True
            left, self._waiting = self._waiting, []
            for job in self._jobs.values():
                job.stop.set()
            self._changed.notify()
        for job in left:
            self._end(job, CANCELLED)
        self._thread.join(seconds)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._waiting.pop(0)
                job.state = DRAWING
            self._run(job)

    def _run(self, job: Job) -> None:
        """Draw a job; whatever it raises ends the job and not the thread."""
        try:
            job.pictures = self._draw(job)
        except (Cancelled, signals.Stopped):
            self._end(job, CANCELLED)
        except (UserError, OSError) as error:
            self._end(job, FAILED, one_line(error))
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            self._end(job, FAILED, one_line(f"{type(error).__name__}: {error}", 300))
        else:
            self._end(job, DONE)

    def _end(self, job: Job, state: str, error: str = "") -> None:
        with contextlib.suppress(OSError):  # a file that cannot be deleted stays
            self._ended(job)
        job.plan, job.preview, job.error = None, None, error
        job.state = state  # last: others look at it first

    def _forget(self) -> None:
        ended = [job for job in self._jobs.values() if job.ended]
        for job in ended[: max(0, len(ended) - REMEMBERED)]:
            del self._jobs[job.id]
