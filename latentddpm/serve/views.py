"""Views: the parts of the page that show drawings, pictures and runs, as HTML.

Whatever came from people or files is escaped. Addresses are relative, so the page also works
behind a proxy that serves it below a path.
"""

from __future__ import annotations

import base64
import functools
import html
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from latentddpm.errors import UserError
from latentddpm.serve.api import Studio, png_bytes
from latentddpm.serve.gallery import Entry
from latentddpm.serve.jobs import CANCELLED, DRAWING, FAILED, Job
from latentddpm.serve.plots import panels
from latentddpm.serve.runs import read_run, run_names

SHOWN = 60
"""Pictures of one person on the page."""
SAMPLES_SHOWN = 6
MAKING = ("prompts", "negative_prompt", "labels", "seed", "num_steps", "sampler")
MAKING += ("timestep_spacing", "guidance_scale", "height", "width", "loras", "init_image", "mask")
MAKING += ("strength", "pictures", "model", "model_digest")
"""Keys of a picture's metadata that the page shows, in order."""


def escaped(text: Any) -> str:
    """Text as HTML, without what a template could take for its own.

    Args:
        text: of any kind.
    """
    return html.escape(str(text)).replace("$", "&#36;").replace("{", "&#123;")


# --- Drawings ------------------------------------------------------------------------------------


def live_view(studio: Studio, owner: str) -> str:
    """View of the drawings of an owner that wait, are drawn, or failed as the last one.

    Args:
        studio: of the server.
        owner: whose drawings.
    """
    jobs = studio.queue.of(owner)
    found = _last(jobs[-1]) if jobs else []
    found += [_job_view(studio, job) for job in jobs if not job.ended]
    return f'<div class="live">{"".join(found)}</div>' if found else ""


def _last(job: Job) -> list[str]:
    if job.state == FAILED:
        return [f'<p class="error" role="alert">{escaped(job.error)}</p>']
    return ["<p>Cancelled.</p>"] if job.state == CANCELLED else []


def _job_view(studio: Studio, job: Job) -> str:
    what = escaped(str(job.about.get("prompt", ""))[:80] or "drawing")
    notes = "".join(f'<p class="hint">{escaped(one)}</p>' for one in job.about.get("notes", ()))
    if job.state != DRAWING:
        before = studio.queue.before(job)
        place = f"{before} before it" if before else "next"
        return f"<p>{what}: waiting, {place}</p>{notes}"
    if not job.steps:
        return f"<p>{what}: loading</p>{notes}"
    preview, step = job.preview, job.step
    pictures = [] if preview is None else [_data_image(one) for one in preview]
    return (
        f'<p>{what}: step {step} of {job.steps}</p><div class="bar" role="progressbar" '
        f'aria-valuemax="{job.steps}" aria-valuenow="{step}">'
        f'<i style="width: {100 * step / job.steps:.0f}%"></i></div>'
        f'<div class="previews">{"".join(pictures)}</div>{notes}'
    )


def _data_image(pixels: Any) -> str:
    data = base64.b64encode(png_bytes(pixels)).decode()
    return f'<img alt="estimate of the picture" src="data:image/png;base64,{data}">'


# --- Pictures ------------------------------------------------------------------------------------


def gallery_view(studio: Studio, owner: str) -> str:
    """View of the pictures of an owner, the newest first.

    Args:
        studio: of the server.
        owner: whose pictures.
    """
    entries = studio.gallery.of(owner, SHOWN)
    if not entries:
        return '<div class="empty">Pictures appear here.</div>'
    return f'<div class="pictures">{"".join(map(_figure, entries))}</div>'


@functools.lru_cache(maxsize=2000)
def _figure(entry: Entry) -> str:
    """Picture with its making and its downloads."""
    try:
        making = entry.metadata()
    except UserError:
        return ""
    prompt = making["prompts"][0] or ", ".join(map(str, making.get("labels", {}).values()))
    place, name = f"api/pictures/{entry.id}", escaped(entry.file.name)
    rows = "".join(
        f"<dt>{escaped(key)}</dt><dd>{escaped(_shown(making[key]))}</dd>"
        for key in MAKING
        if making.get(key) not in (None, "", [], {})
    )
    needs = ""
    if entry.inputs:
        needs = f'<a href="{place}.zip" download>ZIP with its inputs</a>'
    height, width = entry.size
    return (
        f'<figure><a href="{place}.png" target="_blank"><img src="{place}.png" loading="lazy" '
        f'width="{width}" height="{height}" alt="{escaped(prompt)}"></a>'
        f"<figcaption>{escaped(prompt)}</figcaption>"
        f'<div class="links"><span>seed {making["seed"]}</span>'
        f'<a href="{place}.png?download" download="{name}">PNG</a>{needs}</div>'
        f"<details><summary>How it was made</summary><dl>{rows}</dl></details></figure>"
    )


def _shown(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --- Runs ----------------------------------------------------------------------------------------


def run_view(studio: Studio, name: str | None) -> str:
    """View of a run: its state, its loss, its newest sample grids, its other curves.

    Args:
        studio: of the server.
        name: of the run; None for none.
    """
    path = run_names(studio.runs).get(name or "")
    if path is None:
        return f'<div class="empty">No runs in {escaped(studio.runs)}.</div>'
    run = read_run(name, path)
    main, small = _split(panels(run.curves))
    samples = [_sample(name, one.name) for one in run.samples[::-1][:SAMPLES_SHOWN]]
    shown = f'<div class="samples">{"".join(samples)}</div>' if samples else ""
    return (
        f'<div class="run"><p><b>{escaped(name)}</b>: {escaped(run.summary())}</p>{main}{shown}'
        f'<div class="small">{"".join(small)}</div></div>'
    )


def _split(plots: Sequence[str]) -> tuple[str, Sequence[str]]:
    return (plots[0], plots[1:]) if plots else ("", ())


def _sample(run: str, file: str) -> str:
    place, title = f"api/samples/{quote(run)}/{quote(file)}", escaped(file)
    return (
        f'<figure><a href="{place}" target="_blank"><img src="{place}" loading="lazy" '
        f'alt="{title}"></a><figcaption>{title}</figcaption></figure>'
    )
