"""JSON API of a server: drawings, pictures, the model, and runs.

    GET    /api/model               what can be asked
    POST   /api/draw                a drawing: 202 and its job
    GET    /api/jobs/ID             its state; ?wait=SECONDS until it has ended
    GET    /api/jobs/ID/preview.png x̂0 while it is drawn
    DELETE /api/jobs/ID             cancel it
    GET    /api/pictures/ID.png     a picture; .json how it was made; .zip with what it needs
    GET    /api/runs                runs; /api/runs/NAME with curves
    GET    /api/samples/NAME/FILE   a sample grid

Errors are `{"error": "one line"}`: 401 without the token, 404 not there, 413 too large, 422 not
valid, 429 the queue is full.
"""

from __future__ import annotations

import asyncio
import io
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from latentddpm.choices import SAMPLERS, TIMESTEP_SPACINGS
from latentddpm.errors import UserError, one_line
from latentddpm.generation.provenance import model_name
from latentddpm.pipeline.model_facts import facts_of
from latentddpm.serve.gallery import Entry, Gallery
from latentddpm.serve.jobs import DrawingQueue, Job, QueueFull
from latentddpm.serve.requests import DrawRequest, Offer, read_request
from latentddpm.serve.runs import read_run, run_names
from latentddpm.utils.pixels import grid

LONGEST_WAIT = 300.0
"""Seconds that a request may wait for a drawing."""
PACE = 0.05
"""Seconds between looks at a job."""


@dataclass(frozen=True)
class Studio:
    """Parts of a server that the page and the API share.

    Attributes:
        offer: of the server.
        gallery: of its pictures.
        queue: of its drawings.
        runs: folder of runs.
    """

    offer: Offer
    gallery: Gallery
    queue: DrawingQueue
    runs: Path

    def submit(self, request: DrawRequest, owner: str = "") -> Job:
        """Add a drawing to the queue.

        Args:
            request: what is asked for.
            owner: who asks, "" for nobody in particular.

        Raises:
            UserError: see `Offer.plan`.
            QueueFull: too many drawings wait.
        """
        plan, inputs = self.offer.plan(request, self.gallery)
        about = {"prompt": request.prompt, "seed": plan.seeds[0], "num_images": len(plan.seeds)}
        if plan.notes:
            about["notes"] = plan.notes
        try:
            return self.queue.submit(Job(plan, owner, inputs, about=about))
        except QueueFull:
            self.gallery.release(inputs)
            raise

    def describe_job(self, job: Job) -> dict[str, Any]:
        """Job as JSON.

        Args:
            job: of the queue.
        """
        state = job.state
        found = {"id": job.id, "state": state, **job.about, "step": job.step, "steps": job.steps}
        if not job.ended:
            found["before"] = self.queue.before(job)
        if job.error:
            found["error"] = job.error
        return {**found, "pictures": [f"api/pictures/{one}.png" for one in job.pictures]}

    def describe_model(self) -> dict[str, Any]:
        """Offer as JSON: what can be asked, and the limits."""
        folder, facts = self.offer.folder, facts_of(self.offer.folder)
        return {
            "model": model_name(folder),
            "digest": folder.digest,
            "prompt": facts.has_text,
            "image_size": list(folder.image_size) if folder.image_size else None,
            "defaults": facts.settings().to_json() if folder.image_size else folder.defaults,
            "samplers": list(SAMPLERS),
            "timestep_spacings": list(TIMESTEP_SPACINGS),
            "conditions": {one.name: one.describe() for one in self.offer.conditions},
            "loras": list(self.offer.loras),
            "limits": vars(self.offer.limits),
        }


def make_app(studio: Studio) -> FastAPI:
    """Application with the routes of the API.

    Args:
        studio: that they answer for.
    """
    app = FastAPI(title="latentddpm", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.studio = studio
    app.exception_handler(UserError)(_refused)
    app.exception_handler(HTTPException)(_failed)
    app.exception_handler(RequestValidationError)(_not_valid)
    for path, answer, method in ROUTES:
        app.add_api_route(path, answer, methods=[method], response_model=None)
    return app


async def _refused(request: Request, error: UserError) -> Response:
    status = 429 if isinstance(error, QueueFull) else 422
    return JSONResponse({"error": one_line(error)}, status)


async def _failed(request: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": str(error.detail)}, error.status_code)


async def _not_valid(request: Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    message = f"{first['loc'][-1]}: {first['input']!r:.80}, {first['msg']}"
    return JSONResponse({"error": one_line(message)}, 422)


def _studio(request: Request) -> Studio:
    return request.app.state.studio


def _job(request: Request, id: str) -> Job:
    job = _studio(request).queue.find(id)
    if job is None:
        raise HTTPException(404, f"job {id[:40]}: not there; it may have ended long ago")
    return job


# --- Drawings ------------------------------------------------------------------------------------


async def post_draw(request: Request) -> Response:
    """Answer of POST /api/draw.

    Args:
        request: with an object in JSON, see `requests.DrawRequest`.
    """
    try:
        value = await request.json()
    except (ValueError, RecursionError):
        raise UserError('request: not JSON; expected an object such as {"prompt": …}') from None
    studio = _studio(request)
    # Pictures are read and written: not in the thread that answers everybody.
    nobody = secrets.token_urlsafe(16)  # a browser without cookies must not find it
    job = await run_in_threadpool(lambda: studio.submit(read_request(value), nobody))
    place = f"/api/jobs/{job.id}"
    return JSONResponse(studio.describe_job(job), 202, headers={"location": place})


async def get_job(request: Request, id: str, wait: float = 0.0) -> Response:
    """Answer of GET /api/jobs/ID.

    Args:
        request: of the job.
        id: of the job.
        wait: seconds to wait for its end, up to 300.
    """
    job, until = _job(request, id), time.monotonic() + min(max(wait, 0.0), LONGEST_WAIT)
    while not job.ended and time.monotonic() < until:
        await asyncio.sleep(PACE)
    return JSONResponse(_studio(request).describe_job(job))


async def get_preview(request: Request, id: str) -> Response:
    """Answer of GET /api/jobs/ID/preview.png.

    Args:
        request: of the job.
        id: of the job.
    """
    preview = _job(request, id).preview
    if preview is None:
        raise HTTPException(404, f"job {id[:40]}: has no preview, only while it is drawn")
    return Response(png_bytes(grid([preview])), media_type="image/png")


async def delete_job(request: Request, id: str) -> Response:
    """Answer of DELETE /api/jobs/ID.

    Args:
        request: of the job.
        id: of the job.
    """
    job = _job(request, id)
    _studio(request).queue.cancel(job)
    return JSONResponse(_studio(request).describe_job(job))


def png_bytes(pixels: np.ndarray) -> bytes:
    """PNG of pixels.

    Args:
        pixels: uint8 (H, W, 3).
    """
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", compress_level=1)
    return stream.getvalue()


# --- Pictures ------------------------------------------------------------------------------------


def get_picture(request: Request, id: str, suffix: str) -> Response:
    """Answer of GET /api/pictures/ID.png, .json and .zip.

    Args:
        request: of the picture.
        id: of the picture.
        suffix: "png", "json" or "zip".
    """
    gallery = _studio(request).gallery
    entry: Entry | None = gallery.find(id)
    if entry is None or suffix not in ("png", "json", "zip"):
        raise HTTPException(404, f"picture {id[:40]}.{suffix[:8]}: not there")
    if suffix == "json":
        return JSONResponse(entry.metadata())
    if suffix == "zip":
        name = entry.file.with_suffix(".zip").name
        kept = {"content-disposition": f'attachment; filename="{_ascii(name)}"'}
        return Response(gallery.archive(entry), media_type="application/zip", headers=kept)
    inline = "inline" if "download" not in request.query_params else "attachment"
    return FileResponse(
        entry.file,
        media_type="image/png",
        filename=entry.file.name,
        content_disposition_type=inline,
        headers={"cache-control": "private, max-age=86400"},
    )


def _ascii(name: str) -> str:
    return name.encode("ascii", "replace").decode().replace("?", "_")


# --- Model and runs ------------------------------------------------------------------------------


def get_model(request: Request) -> Response:
    """Answer of GET /api/model.

    Args:
        request: any.
    """
    return JSONResponse(_studio(request).describe_model())


def get_runs(request: Request) -> Response:
    """Answer of GET /api/runs.

    Args:
        request: any.
    """
    found = run_names(_studio(request).runs)
    views = [read_run(name, path) for name, path in found.items()]
    return JSONResponse([{"name": one.name, "summary": one.summary()} for one in views])


def get_run(request: Request, name: str) -> Response:
    """Answer of GET /api/runs/NAME.

    Args:
        request: of the run.
        name: of the run.
    """
    return JSONResponse(_run(request, name).to_json())


def get_sample(request: Request, name: str, file: str) -> Response:
    """Answer of GET /api/samples/NAME/FILE.

    Args:
        request: of the grid.
        name: of the run.
        file: name of the grid.
    """
    for one in _run(request, name).samples:
        if one.name == file:
            return FileResponse(one, media_type="image/png")
    raise HTTPException(404, f"sample {file[:80]}: not there")


def _run(request: Request, name: str) -> Any:
    path = run_names(_studio(request).runs).get(name)
    if path is None:
        raise HTTPException(404, f"run {name[:80]}: not there")
    return read_run(name, path)


ROUTES = (
    ("/api/model", get_model, "GET"),
    ("/api/draw", post_draw, "POST"),
    ("/api/jobs/{id}", get_job, "GET"),
    ("/api/jobs/{id}/preview.png", get_preview, "GET"),
    ("/api/jobs/{id}", delete_job, "DELETE"),
    ("/api/pictures/{id}.{suffix}", get_picture, "GET"),
    ("/api/runs", get_runs, "GET"),
    ("/api/runs/{name:path}", get_run, "GET"),
    ("/api/samples/{name:path}/{file}", get_sample, "GET"),
)
"""Path, function and method of each route."""
