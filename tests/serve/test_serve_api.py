"""The API of `serve`: it draws what `generate` draws, for many at once, and for nobody else."""

import base64
import io
import json
import shlex
import socket
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from command_line import call
from pages import blocks
from PIL import Image
from served import TOKEN, as_base64, served, square
from tiny import conditioned_model, quick_model, tiny_lora

from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.serve import requests

pytest.importorskip("fastapi", reason="the extra ui is not installed")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    quick_model().save(folder)
    tiny_lora(folder / "style.safetensors", width=16)
    return folder


@pytest.fixture(scope="module")
def client(model):
    with served(model, model.parent / "drawings") as client:
        yield client


def pixels_of(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def made_again(client, place, tmp_path, *more):
    """The file that `generate --from` makes of a picture, beside what it was made from."""
    status, _, archive = client.ask("GET", f"/{place.removesuffix('png')}zip")
    assert status == 200, f"expected an archive: {status}"
    zipfile.ZipFile(io.BytesIO(archive)).extractall(tmp_path / "kept")
    name = zipfile.ZipFile(io.BytesIO(archive)).namelist()[0]
    done = call("generate", "--from", tmp_path / "kept" / name, "--out", tmp_path / "again.png")
    assert done.code == 0, f"expected a picture: {done.stderr}"
    return (tmp_path / "again.png").read_bytes()


# --- Drawings ------------------------------------------------------------------------------------


def test_fifty_requests_at_once_lose_and_mix_nothing(client, model):
    words = [f"apple {seed % 3}" for seed in range(50)]
    with ThreadPoolExecutor(50) as people:
        jobs = list(people.map(lambda k: client.draw(prompt=words[k], seed=k), range(50)))
    jobs = [client.ended(job) for job in jobs]
    assert [job["state"] for job in jobs] == ["done"] * 50
    assert [job["seed"] for job in jobs] == [*range(50)], "each answer is of its own request"
    drawn = [pixels_of(client.picture(*job["pictures"])) for job in jobs]
    expected = LatentDiffusion.load(model, "auto").generate(words, seed=[*range(50)])
    wrong = [k for k in range(50) if not np.array_equal(drawn[k], expected[k])]
    assert not wrong, f"seeds {wrong} differ from what generate draws"
    kept = [client.studio.queue.find(job["id"]) for job in jobs]
    assert all(job.plan is None and job.preview is None for job in kept), "nothing large is kept"


def test_generate_makes_the_same_bytes_of_a_download(client, tmp_path):
    job = client.ended(client.draw(prompt="red apple", seed=5, num_images=2, sampler="ddim"))
    png = client.picture(job["pictures"][1])
    assert made_again(client, job["pictures"][1], tmp_path) == png


def test_an_inpainted_picture_comes_with_what_it_was_made_from(client, tmp_path):
    picture, mask = square()
    fields = {"init_image": f"data:image/png;base64,{as_base64(picture)}", "mask": as_base64(mask)}
    job = client.ended(client.draw(prompt="apple", seed=1, strength=0.9, num_steps=5, **fields))
    assert job["state"] == "done", job
    png = client.picture(*job["pictures"])
    assert np.array_equal(pixels_of(png)[:, :16], picture[:, :16]), "black keeps the picture"
    assert not np.array_equal(pixels_of(png)[:, 16:], picture[:, 16:]), "white is painted anew"
    assert made_again(client, *job["pictures"], tmp_path) == png


def test_a_lora_changes_the_picture_and_only_where_it_is_asked_for(client):
    plain, styled, again = (
        client.ended(client.draw(prompt="apple", seed=2, loras=loras))
        for loras in ({}, {"style": 1.5}, {})
    )
    first, second, third = (client.picture(*job["pictures"]) for job in (plain, styled, again))
    assert first == third, "the model without a LoRA is untouched"
    assert first != second
    making = client.json("GET", f"/{styled['pictures'][0].removesuffix('png')}json")[1]
    assert making["loras"][0]["scale"] == 1.5


def test_a_drawing_is_cancelled_within_a_step_and_the_next_one_drawn(client):
    long = client.draw(prompt="apple", num_images=16, num_steps=1000, sampler="ddim")
    waiting = client.draw(prompt="apple", seed=1)
    other = client.draw(prompt="apple", seed=3)
    assert waiting["before"] >= 1
    job = client.studio.queue.find(long["id"])
    until = time.monotonic() + 30
    while job.step < 3 and time.monotonic() < until:
        time.sleep(0.005)
    status, _, preview = client.ask("GET", f"/api/jobs/{long['id']}/preview.png")
    assert status == 200, "x̂0 is shown while it is drawn"
    assert pixels_of(preview).shape[-1] == 3
    assert client.json("DELETE", f"/api/jobs/{waiting['id']}")[1]["state"] == "cancelled"
    at = job.step
    client.json("DELETE", f"/api/jobs/{long['id']}")
    long, other = client.ended(long), client.ended(other)
    assert long["state"] == "cancelled"
    assert job.step <= at + 3, f"stopped at step {job.step}, cancelled at {at}"
    assert long["pictures"] == [], "nothing is written of a cancelled drawing"
    assert other["state"] == "done"


def test_a_model_that_is_told_things_is_told_them(tmp_path):
    conditioned_model().save(tmp_path / "model")
    with served(tmp_path / "model", tmp_path / "out") as client:
        known = client.json("GET", "/api/model")[1]["conditions"]
        assert set(known) == {"lines", "digit", "age", "style"}
        told = {"labels": {"digit": "b", "style": "0.5"}, "seed": 0, "prompt": "apple"}
        told |= {"pictures": {"lines": as_base64(square()[0])}}
        job = client.ended(client.draw(**told))
        assert job["state"] == "done", job
        png = client.picture(*job["pictures"])
        assert made_again(client, *job["pictures"], tmp_path) == png
        status, answer = client.json("POST", "/api/draw", {**told, "labels": {"digti": "b"}})
        assert status == 422
        assert "digit" in answer["error"], answer


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"num_images": 17}, "num_images: 17, this server takes 1 to 16"),
        ({"num_images": 0}, "num_images: 0, this server takes 1 to 16"),
        ({"num_steps": 1001}, "num_steps: 1001, this server takes 1 to 1000"),
        ({"height": 1024}, "height and width: 1024 × 32, this server takes 4,096 pixels or less"),
        ({"sampler": "ddin"}, "sampler: 'ddin' is not known (did you mean 'ddim'?)"),
        ({"promt": "x"}, "promt: no such field (did you mean 'prompt'?)"),
        ({"seed": -1}, "seed: -1"),
        ({"seed": "1"}, "seed: '1', input should be a valid integer"),
        ({"prompt": "x" * 2001}, "should have at most 2000 characters"),
        ({"loras": {"stile": 1}}, "did you mean 'style'?"),
        ({"loras": {"../style": 1}}, "loras: '../style' is not known"),
        ({"labels": {"digit": "7"}}, "digit: is no condition of this model"),
        ({"pictures": {"lines": "x"}}, "pictures: 'lines'; this model: none"),
        ({"init_image": "not base64!"}, "init_image: expected a picture in base64"),
        ({"init_image": "bm8gcGljdHVyZQ=="}, "init_image: not a PNG, JPEG or WebP"),
        ({"mask": as_base64(square()[0])}, "mask: needs a picture to start from"),
        ({"strength": 0.5}, "strength: needs a picture to start from"),
        ([1], "request: [1], input should be a valid dictionary"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(client, request_, words):
    before = sorted(client.studio.gallery.folder.iterdir())
    status, answer = client.json("POST", "/api/draw", request_)
    assert status == 422, answer
    assert words in answer["error"], answer
    assert "\n" not in answer["error"]
    assert str(client.studio.gallery.folder) not in answer["error"], "no path of the server"
    assert sorted(client.studio.gallery.folder.iterdir()) == before, "no file stays behind"


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_read(client):
    huge = as_base64(np.zeros((4100, 4100), np.uint8))
    status, answer = client.json("POST", "/api/draw", {"init_image": huge})
    assert (status, "4100 × 4100 pixels" in answer["error"]) == (422, True), answer


def test_a_picture_of_a_camera_that_holds_several_is_taken(client):
    stream = io.BytesIO()
    one = Image.new("RGB", (32, 32), "red")
    one.save(stream, "MPO", save_all=True, append_images=[one])
    job = client.ended(
        client.draw(prompt="apple", init_image=base64.b64encode(stream.getvalue()).decode())
    )
    assert job["state"] == "done", f"expected a drawing: {job}"


def test_a_size_is_refused_before_a_picture_is_enlarged_to_it(client, monkeypatch):
    picture, _ = square()
    monkeypatch.setattr(requests, "plan_images", None)  # would be called afterwards
    fields = {"prompt": "apple", "init_image": as_base64(picture), "height": 8192, "width": 8192}
    status, answer = client.json("POST", "/api/draw", fields)
    assert (status, "pixels or less" in answer["error"]) == (422, True), answer


def test_nobody_without_a_cookie_sees_what_was_drawn_by_the_api(client):
    job = client.ended(client.draw(prompt="secret of somebody"))
    assert job["state"] == "done"
    assert not client.studio.gallery.of("", 100), "expected an owner that no browser has"


def test_what_of_a_prompt_has_no_effect_is_said(client):
    job = client.draw(prompt="<lora:style:1> apple")
    assert "lora" in str(job.get("notes")), f"expected a note: {job}"
    client.ended(job)


def test_a_full_queue_says_so_and_loses_no_file(model, tmp_path):
    with served(model, tmp_path, queue=2) as client:
        long = client.draw(num_images=16, num_steps=1000, sampler="ddim")
        picture = as_base64(square()[0])
        answers = [
            client.json("POST", "/api/draw", {"init_image": picture, "seed": k}) for k in range(5)
        ]
        full = [answer["error"] for status, answer in answers if status == 429]
        assert full[-1] == "queue: 2 drawings wait already; try again later", answers
        waiting = [answer for status, answer in answers if status == 202]
        for job in [*waiting, long]:
            client.json("DELETE", f"/api/jobs/{job['id']}")
        drawn = [job for job in map(client.ended, waiting) if job["state"] == "done"]
        kept = [*tmp_path.glob("init-image-*")]
        assert bool(kept) == bool(drawn), "what no picture needs any more is deleted"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/api/model"),
        ("POST", "/api/draw"),
        ("GET", "/api/jobs/x"),
        ("GET", "/api/runs"),
        ("GET", "/gradio_api/info"),
        ("GET", "/nothing"),
        ("GET", "/?token=wrong"),
        ("GET", f"/api/model?token={TOKEN.replace(' ', '+')}"),
    ],
)
def test_nothing_is_answered_without_the_token(client, method, path):
    wrong = ({"Authorization": None}, {"Authorization": "Bearer wrong"})
    wrong += ({"Authorization": None, "Cookie": f"latentddpm-token-{client.port}={TOKEN}"},)
    for headers in wrong:
        status, _, body = client.ask(method, path, **headers)
        assert status == 401, f"{method} {path} with {headers}: {status}"
        assert b"emoji" not in body
        assert b"apple" not in body


def test_the_token_opens_a_browser_by_a_cookie_that_is_not_the_token(client):
    place = f"/?token={TOKEN.replace(' ', '%20')}"
    status, headers, _ = client.ask("GET", place, Authorization=None)
    assert (status, headers["location"]) == (303, "./"), "the token leaves the address line"
    cookie = headers["set-cookie"].partition(";")[0]
    assert TOKEN not in cookie
    assert "HttpOnly; SameSite=Lax" in headers["set-cookie"]
    assert client.ask("GET", "/api/model", Authorization=None, Cookie=cookie)[0] == 200
    form = client.ask("POST", "/token", f"token={TOKEN.replace(' ', '+')}", Authorization=None)
    assert (form[0], form[1]["set-cookie"]) == (303, headers["set-cookie"])


def test_a_page_of_another_site_changes_nothing(client):
    body = json.dumps({"prompt": "apple"})
    for origin, expected in ((client.address, 202), ("http://elsewhere.example", 403)):
        headers = {"Origin": origin, "Content_Type": "application/json"}
        assert client.ask("POST", "/api/draw", body, **headers)[0] == expected, origin


def test_nothing_is_uploaded_that_no_field_asks_for(client):
    status, _, body = client.ask("POST", "/gradio_api/upload", b"x" * 100)
    assert status == 404, f"this model is told no pictures: {body}"


def test_health_is_answered_to_anyone(client):
    assert client.ask("GET", "/healthz", Authorization=None)[::2] == (200, b"ok")


def test_a_large_body_is_refused_before_it_is_read(client):
    """The server of the tests takes 1 MiB."""
    assert client.ask("POST", "/api/draw", b"x" * (1 << 20) + b"x")[0] == 413
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as line:
        head = f"POST /api/draw HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        for _ in range(17):
            line.sendall(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        assert b" 413 " in line.recv(64), "of a body without a length as well"


@pytest.mark.parametrize("suffix", ["png", "zip", "json"])
def test_files_outside_of_the_gallery_are_not_given_out(client, suffix):
    folder = client.studio.gallery.folder
    (folder.parent / "secret.png").write_bytes(b"hush")
    (folder / "own.png").write_bytes(b"hush")
    names = ["../secret", "..%2fsecret", "%2e%2e/secret", "..%5csecret", "....//secret", "own"]
    names += [str(folder.parent / "secret"), f"{folder.parent}/secret".replace("/", "%2f"), "%00"]
    for name in names:
        status, _, body = client.ask("GET", f"/api/pictures/{name}.{suffix}")
        assert (status, b"hush" in body) == (404, False), name
    job = client.ended(client.draw(seed=9))
    place = job["pictures"][0].removesuffix("png") + suffix
    (folder / "image-9.png").unlink()
    (folder / "image-9.png").symlink_to(folder.parent / "secret.png")
    assert client.ask("GET", f"/{place}")[0] == 404, "a link in the place of its file"
    (folder / "image-9.png").unlink()


# --- The page of the docs ------------------------------------------------------------------------

GUIDE = Path(__file__).resolve().parents[2] / "docs/guides/serve.md"


def shown_calls():
    """Method, address and body of each `curl` on the page."""
    for body in blocks(GUIDE.read_text("utf-8"), "sh"):
        form = ""
        for line in body.splitlines():
            if line.startswith("printf "):
                form = shlex.split(line)[1]
            if not line.startswith("curl "):
                continue
            words = shlex.split(line)
            address = next(word for word in words if word.startswith("localhost:7860/"))
            data = words[words.index("-d") + 1] if "-d" in words else None
            if data == "@request.json":
                data = form % as_base64(square()[0])
            method = words[words.index("-X") + 1] if "-X" in words else "POST" if data else "GET"
            yield method, address.removeprefix("localhost:7860"), data


def test_the_calls_that_the_guide_shows_are_answered(client):
    done = client.ended(client.draw(prompt="apple", seed=0))
    picture = done["pictures"][0].removeprefix("api/pictures/").removesuffix(".png")
    found = list(shown_calls())
    assert len(found) == 9
    for method, address, data in found:
        address = address.replace("$ID", done["id"]).replace("$PICTURE", picture)
        status, _, answer = client.ask(method, address, data, Content_Type="application/json")
        expected = 404 if "preview" in address else 202 if data else 200  # it is drawn already
        said = f"{status} {answer!r:.200}"
        assert status == expected, f"{method} {address}: {said}, expected {expected}"


# --- Without a token -----------------------------------------------------------------------------


def test_without_a_token_only_this_machine_is_answered(model, tmp_path):
    with served(model, tmp_path, token=None) as client:
        for host, expected in (
            ("localhost", 200),
            ("127.0.0.1:80", 200),
            ("rebound.example", 403),
        ):
            status = client.ask("GET", "/api/model", Authorization=None, Host=host)[0]
            assert status == expected, f"host {host}: {status}, expected {expected}"
