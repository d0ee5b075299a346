"""Page that draws, made with gradio: a form on the left, what is drawn on the right, runs behind.

The form becomes a `DrawRequest`, as JSON does. What is shown follows from the queue and the
gallery alone: `watcher.js` asks for it, so a page that was loaded again goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import Request

from latentddpm.choices import SAMPLERS
from latentddpm.conditions.base import VectorCondition
from latentddpm.errors import UserError, one_line
from latentddpm.generation.provenance import model_name
from latentddpm.pipeline.model_facts import facts_of
from latentddpm.serve.access import OWNER, cookies_of
from latentddpm.serve.api import Studio
from latentddpm.serve.requests import MOST_CHARACTERS, encode_picture, read_request
from latentddpm.serve.runs import run_names
from latentddpm.serve.views import escaped, gallery_view, live_view, run_view

DIRECT = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Manner of the page's calls: each is answered at once, and no function is a second API."""
WATCHED = '<div class="now"></div><div class="kept"></div>'
REFRESH = 10.0
"""Seconds between looks at a run."""
LOCAL_FONTS = ["system-ui", "sans-serif"]
KEPT_SECONDS = 3600
"""Age at which gradio deletes pictures that were put into the form."""


def theme() -> gr.Theme:
    """Theme of the page, with fonts of the reader's own machine."""
    return gr.themes.Default(
        primary_hue="orange", font=LOCAL_FONTS, font_mono=["ui-monospace", "monospace"]
    )


def _file(name: str) -> str:
    """Text of a file beside this module."""
    return Path(__file__).with_name(name).read_text("utf-8")


def make_page(studio: Studio) -> gr.Blocks:
    """Page of a server.

    Args:
        studio: of the server.
    """
    title = f"{model_name(studio.offer.folder)} · latentddpm"
    page = gr.Blocks(
        title=title,
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(KEPT_SECONDS, KEPT_SECONDS),
    )
    with page, gr.Tabs():
        with gr.Tab("Draw"):
            _drawing_tab(page, studio)
        with gr.Tab("Runs") as tab:
            _runs_tab(tab, studio)
    page.queue(api_open=False)
    return page


def mount(app: Any, studio: Studio) -> Any:
    """Application of the API with the page at its root.

    Args:
        app: returned by `api.make_app`.
        studio: of the server.
    """

    def view(request: Request, have: str = "") -> dict[str, Any]:
        return view_of(studio, cookies_of(request.headers.get("cookie", "")).get(OWNER, ""), have)

    app.add_api_route("/api/view", view)
    return gr.mount_gradio_app(
        app,
        make_page(studio),
        "/",
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size="16mb",
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=theme(),
        css=_file("page.css"),
    )


# --- Drawing -------------------------------------------------------------------------------------


def _drawing_tab(page: gr.Blocks, studio: Studio) -> None:
    """Form, buttons, and what is drawn."""
    facts = facts_of(studio.offer.folder)
    fields: dict[str, Any] = {}
    with gr.Row():
        if facts.has_text:
            fields["prompt"] = gr.Textbox(
                label="Prompt",
                placeholder="red apple",
                container=False,
                autofocus=True,
                scale=6,
                max_length=MOST_CHARACTERS,
                elem_id="prompt",
            )
        draw = gr.Button("Draw", variant="primary", elem_id="draw", scale=1)
        cancel = gr.Button("Cancel", elem_id="cancel", scale=1)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            fields |= _form(studio)
        with gr.Column(scale=5):
            said = gr.HTML(elem_id="said")
            gr.HTML(html_template=WATCHED, js_on_load=_file("watcher.js"), elem_id="watched")
    names = list(fields)

    def drawn(request: gr.Request, *values: Any) -> str:
        try:
            asked = read_request(form_request(dict(zip(names, values, strict=True))))
            studio.submit(asked, _owner(request))
        except (UserError, OSError) as error:
            return f'<p class="error" role="alert">{escaped(one_line(error))}</p>'
        return ""

    def cancelled(request: gr.Request) -> str:
        for job in studio.queue.of(_owner(request)):
            studio.queue.cancel(job)
        return ""

    starts = [draw.click, *([fields["prompt"].submit] if facts.has_text else [])]
    for start in starts:
        start(drawn, list(fields.values()), said, trigger_mode="multiple", **DIRECT)
    cancel.click(cancelled, None, said, trigger_mode="multiple", **DIRECT)


def view_of(studio: Studio, owner: str, have: str) -> dict[str, Any]:
    """View of what an owner's drawings and pictures look like now, for the page's watcher.

    Args:
        studio: of the server.
        owner: whose.
        have: digest of the pictures that the page shows already.
    """
    active = any(not job.ended for job in studio.queue.of(owner))
    pictures = gallery_view(studio, owner)
    digest = hashlib.sha256(pictures.encode()).hexdigest()[:16]
    return {
        "live": live_view(studio, owner),
        "gallery": None if digest == have else pictures,
        "have": digest,
        "active": active,
    }


def _form(studio: Studio) -> dict[str, Any]:
    """Fields of the form by name, those for few people folded away."""
    offer, facts = studio.offer, facts_of(studio.offer.folder)
    fields: dict[str, Any] = {}
    for one in offer.conditions.vectors:
        fields[f"labels.{one.name}"] = _condition_field(one)
    for one in offer.conditions.pictures:
        fields[f"pictures.{one.name}"] = gr.Image(
            label=one.name, type="pil", sources=["upload", "clipboard"], height=180
        )
    with gr.Row():
        fields["num_images"] = _number("Images", "1")
        fields["seed"] = _number("Seed", "any")
    with gr.Accordion("Start from a picture", open=False):
        fields["painter"] = gr.HTML(
            "",
            html_template=_file("painter.html"),
            js_on_load=_file("painter.js"),
            elem_id="painter",
        )
        fields["strength"] = _number("Strength: how much of it changes", "0.75; 1 where painted")
    with gr.Accordion("Settings", open=False):
        if facts.has_text:
            fields["negative_prompt"] = gr.Textbox(
                label="Negative prompt", placeholder="none", max_length=MOST_CHARACTERS
            )
        fields |= _settings_fields(studio)
    size = " × ".join(map(str, (offer.folder.image_size or ())[::-1]))
    gr.Markdown(f"{escaped(model_name(offer.folder))}, {size} pixels", elem_id="model")
    return fields


def _settings_fields(studio: Studio) -> dict[str, Any]:
    """Fields of the settings; an empty one has the model's default, which it shows."""
    offer, facts = studio.offer, facts_of(studio.offer.folder)
    own = facts.settings().to_json() if offer.folder.image_size else {}
    fields: dict[str, Any] = {}
    with gr.Row():
        fields["num_steps"] = _number("Steps", own.get("num_steps", ""))
        if facts.has_text or offer.conditions.guided:
            fields["guidance_scale"] = _number("Guidance", f"{own.get('guidance_scale', 0):g}")
    known = f"the model's: {own.get('sampler', '')}"
    fields["sampler"] = gr.Dropdown([(known, ""), *SAMPLERS], value="", label="Sampler")
    if offer.loras:
        with gr.Row():
            names = list(offer.loras)
            fields["loras"] = gr.Dropdown(
                names, value=[], label="LoRA", multiselect=True, min_width=120, scale=2
            )
            fields["lora_scale"] = _number("Its scale", "1")
    with gr.Row():
        for name in ("width", "height"):
            fields[name] = _number(name.title(), own.get(name, ""))
    return fields


def _number(label: str, default: object) -> gr.Textbox:
    """Field of a number that may be left empty, which gradio's own cannot."""
    return gr.Textbox(label=label, placeholder=str(default), max_length=20, min_width=90)


def _condition_field(one: VectorCondition) -> Any:
    """Field of a condition of words or numbers."""
    words = getattr(one, "words", None)
    if words and one.kind == "class":
        untold = [("not told", "")] if one.null else []
        return gr.Dropdown([*untold, *words], value="" if one.null else words[0], label=one.name)
    if words:
        return gr.Dropdown(list(words), value=[], label=one.name, multiselect=True)
    return gr.Textbox(label=one.name, placeholder=f"{one.describe()}", max_length=200)


# --- From the form to a request ------------------------------------------------------------------


WHOLE = ("num_images", "seed", "num_steps", "width", "height")
REAL = ("strength", "guidance_scale", "lora_scale")
"""Fields that are numbers, whole ones and others."""


def form_request(values: dict[str, Any]) -> dict[str, Any]:
    """Request of the values of the form; empty ones are left out.

    Args:
        values: by the names of the fields.

    Raises:
        UserError: a number that is none.
    """
    given = {name: value for name, value in values.items() if value not in (None, "", [])}
    found: dict[str, Any] = {"labels": {}, "pictures": {}}
    if "painter" in given:
        found |= picture_and_mask(given.pop("painter"))
    for name in (*WHOLE, *REAL):
        if name in given:
            given[name] = _read_number(name, given[name])
    scale = given.pop("lora_scale", 1.0)
    found["loras"] = dict.fromkeys(given.pop("loras", ()), scale)
    for name, value in given.items():
        kind, _, own = name.partition(".")
        if kind == "labels":
            found["labels"][own] = ",".join(value) if isinstance(value, list) else value
        elif kind == "pictures":
            found["pictures"][own] = encode_picture(value)
        else:
            found[name] = value
    return found


def _read_number(name: str, text: str) -> float:
    try:
        return int(text) if name in WHOLE else float(text)
    except ValueError:
        kind = "a whole number" if name in WHOLE else "a number"
        raise UserError(f"{name}: {text!r:.40}, expected {kind}, or nothing") from None


def picture_and_mask(text: str) -> dict[str, str]:
    """Picture to start from, and the mask painted over it, as fields of a request.

    Args:
        text: value of the painter, JSON.

    Raises:
        UserError: it is something else.
    """
    try:
        found = json.loads(text)
        return {name: found[name] for name in ("init_image", "mask") if found[name]}
    except (ValueError, TypeError, KeyError):
        raise UserError("init_image: not what the page's painter sends") from None


def _owner(request: gr.Request) -> str:
    """Owner of the drawings of a browser, by its cookie."""
    return cookies_of(request.headers.get("cookie", "")).get(OWNER, "")


# --- Runs ----------------------------------------------------------------------------------------


def _runs_tab(tab: gr.Tab, studio: Studio) -> None:
    """Curves, samples and time left of a run."""
    chosen = gr.Dropdown([], label="Run", elem_id="run")
    view = gr.HTML(elem_id="run-view")
    timer = gr.Timer(REFRESH, active=False)

    def opened(name: str | None) -> Sequence[Any]:
        names = list(run_names(studio.runs))
        name = name if name in names else next(iter(names), None)
        return gr.update(choices=names, value=name), run_view(studio, name), gr.Timer(active=True)

    def looked(name: str | None) -> str:
        return run_view(studio, name)

    tab.select(opened, chosen, [chosen, view, timer], **DIRECT)
    chosen.input(looked, chosen, view, **DIRECT)
    timer.tick(looked, chosen, view, **DIRECT)
