"""Runner of drawings: the models in memory, and what is seen of a drawing while it is drawn.

plan ─► loaded models ─► steps counted, x̂0 shown, stopped when cancelled ─► gallery
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from latentddpm.generation.devices import jit_of
from latentddpm.generation.draw import How, LoadedPlan, draw, load_plan, step_count
from latentddpm.generation.plan import Plan
from latentddpm.serve.gallery import Gallery
from latentddpm.serve.jobs import Cancelled, Job
from latentddpm.serve.previews import Previews
from latentddpm.utils.startup import import_keras

LOADED = 2
"""Models in memory: one without LoRAs, and the last one with some."""
BATCH = 16
"""Images denoised together."""


class Runner:
    """Runner of drawings of one model folder, with any of its LoRAs.

    Args:
        gallery: that gets the pictures.
        jit: see `devices.jit_of`; None for Keras's choice.

    Example:
        >>> runner = Runner(Gallery(Path("drawings")))
        >>> queue = DrawingQueue(runner.draw, length=64)
    """

    def __init__(self, gallery: Gallery, jit: str | None = None) -> None:
        self.gallery, self._jit = gallery, jit
        self._loaded: OrderedDict[Any, tuple[LoadedPlan, Previews]] = OrderedDict()

    def load(self, plan: Plan) -> tuple[LoadedPlan, Previews]:
        """Models of a plan, from memory where they are there.

        Args:
            plan: which names them.

        Raises:
            UserError: see `generation.draw.load_plan`.
        """
        key = plan.engine, plan.precision, tuple(plan.loras)
        if key not in self._loaded:
            while len(self._loaded) >= LOADED:  # the first was loaded at the start, and stays
                self._loaded.popitem()
            if plan.engine == "keras":
                import_keras()
            jit = jit_of(self._jit, plan.engine)
            loaded = load_plan(plan, cache=not plan.loras, jit=jit)
            self._loaded[key] = loaded, Previews(loaded.model)
        return self._loaded[key]

    def draw(self, job: Job) -> list[str]:
        """Draw a job into the gallery.

        Args:
            job: to draw; its step and preview change on the way.

        Returns:
            Ids of the pictures.

        Raises:
            Cancelled: it was cancelled; no file was written.
            UserError, OSError: see `generation.draw.draw`.
        """
        plan = job.plan
        self._check(job)
        loaded, previews = self.load(plan)
        batches = -(-len(plan.prompts) // BATCH)
        job.steps = batches * len(step_count(plan, loaded))

        def watch(step_index: int, timestep: float, latents: Any, x0: Any) -> None:
            self._check(job)
            job.preview = previews(x0)
            job.step += 1

        written = draw(plan, loaded, how=How(batch_size=BATCH, watch=watch))
        return [
            self.gallery.add(file, job.owner, job.inputs, pixels.shape[:2]).id
            for file, pixels in written.items()
        ]

    def _check(self, job: Job) -> None:
        if job.stop.is_set():
            raise Cancelled
