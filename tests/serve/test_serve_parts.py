"""The parts behind `serve`: queue, gallery, previews, runs, options, and what it says."""

import json
import socket
import threading
import time

import numpy as np
import pytest
from command_line import call
from PIL import Image
from tiny import pixel_model, quick_model, signal_model, tiny_lora

from latentddpm.cli.generate import generate
from latentddpm.generation.frames import decoded
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.serve import access, jobs, server
from latentddpm.serve import gallery as gallery_module
from latentddpm.serve.gallery import Gallery
from latentddpm.serve.jobs import Cancelled, DrawingQueue, Job, QueueFull
from latentddpm.serve.previews import Previews
from latentddpm.serve.requests import OPTIONS
from latentddpm.serve.runs import default_folder, read_run, run_names
from latentddpm.serve.server import TOKEN
from latentddpm.utils.pixels import save_png

# --- Queue ---------------------------------------------------------------------------------------


def finish(queue, *found):
    until = time.monotonic() + 20
    while not all(job.ended for job in found) and time.monotonic() < until:
        time.sleep(0.002)
    queue.close()
    return [job.state for job in found]


def test_jobs_are_drawn_one_by_one_in_the_order_they_came():
    drawn = []

    def draw(job):
        assert sum(one.state == "drawing" for one in found) <= 1, "expected one at a time"
        drawn.append(job.owner)
        return [job.owner]

    queue, found = DrawingQueue(draw, 100), []
    for k in range(50):
        found.append(Job(None, str(k)))
        queue.submit(found[-1])
    assert finish(queue, *found) == ["done"] * 50
    assert drawn == [str(k) for k in range(50)]
    assert [job.pictures for job in found] == [[str(k)] for k in range(50)]


def test_a_job_that_fails_says_why_and_the_next_one_is_drawn(capsys):
    def draw(job):
        if job.owner:
            raise ZeroDivisionError("no\nmore")
        return []

    queue = DrawingQueue(draw, 4)
    bad, good = queue.submit(Job(None, "bad")), queue.submit(Job(None))
    assert finish(queue, bad, good) == ["failed", "done"]
    assert bad.error == "ZeroDivisionError: no more"
    assert "ZeroDivisionError" in capsys.readouterr().err, "the traceback is the server's to read"


def test_only_the_last_jobs_that_ended_are_remembered(monkeypatch):
    monkeypatch.setattr(jobs, "REMEMBERED", 10)
    queue = DrawingQueue(lambda job: [], 1000)
    found = [queue.submit(Job(None)) for _ in range(200)]
    finish(queue, *found)
    queue = DrawingQueue(lambda job: [], 1000)
    for _ in range(200):
        job = queue.submit(Job(None))
        while not job.ended:
            time.sleep(0.0005)
    known = len(queue.of(""))
    queue.close()
    assert known <= 11, f"{known} jobs are remembered, expected 10 and the newest"


def test_closing_cancels_what_is_drawn_and_what_waits():
    began, ended = threading.Event(), []

    def draw(job):
        began.set()
        assert job.stop.wait(20), "expected to be stopped"
        raise Cancelled

    queue = DrawingQueue(draw, 2, ended.append)
    found = [queue.submit(Job(None))]
    assert began.wait(20)
    found += [queue.submit(Job(None)), queue.submit(Job(None))]
    with pytest.raises(QueueFull, match="2 drawings wait already"):
        queue.submit(Job(None))
    assert [queue.before(job) for job in found] == [0, 1, 2]
    queue.close()
    assert [job.state for job in found] == ["cancelled"] * 3
    assert set(map(id, ended)) == set(map(id, found)), "each is told to have ended"


# --- Gallery -------------------------------------------------------------------------------------


def picture(folder, name):
    folder.mkdir(exist_ok=True)
    save_png(folder / name, np.zeros((8, 8, 3), np.uint8), {"latentddpm": "0"})
    return folder / name


def test_a_gallery_keeps_as_many_pictures_as_it_should(tmp_path):
    gallery = Gallery(tmp_path / "out", keep=3)
    entries = []
    for k in range(5):
        held = gallery.hold_input("init-image", b"the same", ".png")
        entries.append(gallery.add(picture(tmp_path / "out", f"{k}.png"), "", (held,), (8, 8)))
        gallery.release([held])
    assert [gallery.find(one.id) is not None for one in entries] == [False] * 2 + [True] * 3
    left = sorted(one.name for one in gallery.folder.iterdir())
    assert left == ["2.png", "3.png", "4.png", held.name], "the input is still needed"
    for k in range(5, 8):
        gallery.add(picture(tmp_path / "out", f"{k}.png"), "", (), (8, 8))
    assert not held.exists(), "no picture needs the input any more"


def test_a_gallery_without_a_number_deletes_nothing(tmp_path):
    gallery = Gallery(tmp_path / "out")
    entries = [gallery.add(picture(tmp_path / "out", f"{k}.png"), "", (), ()) for k in range(9)]
    assert all(gallery.find(one.id) for one in entries)
    assert [one.file.name for one in gallery.of("", 2)] == ["8.png", "7.png"], "the newest first"
    assert gallery.of("somebody else", 9) == []


def test_an_input_of_an_earlier_server_stays(tmp_path):
    """Pictures of before the restart are still made from it."""
    held = Gallery(tmp_path / "out").hold_input("init-image", b"the same", ".png")
    later = Gallery(tmp_path / "out", keep=1)
    later.release([later.hold_input("init-image", b"the same", ".png")])
    assert held.read_bytes() == b"the same"


def test_a_gallery_keeps_more_pictures_than_it_knows_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery_module, "MOST", 2)
    gallery = Gallery(tmp_path / "out", keep=4)
    entries = [gallery.add(picture(tmp_path / "out", f"{k}.png"), "", (), ()) for k in range(4)]
    assert all(one.file.exists() for one in entries), "four were asked for"


# --- Previews ------------------------------------------------------------------------------------


def test_previews_of_latents_follow_the_decoder():
    model = LatentDiffusion.load("emoji-128", "auto")
    blobs = np.random.default_rng(1).normal(size=(3, 4, 4, 4)).astype("float32")
    x0 = np.kron(blobs, np.ones((1, 4, 4, 1), np.float32))
    shown, full = Previews(model)(x0).astype(float), decoded(model, "off", x0).astype(float)
    assert shown.shape == (3, 32, 32, 3)
    small = full.reshape(3, 32, 4, 32, 4, 3).mean((2, 4))
    error = np.abs(shown - small).mean()
    flat = np.abs(small - small.mean((1, 2), keepdims=True)).mean()
    assert error < 0.5 * flat, f"differs by {error:.1f}, a picture of one colour by {flat:.1f}"


def test_previews_of_pixels_are_the_pixels():
    x0 = np.linspace(-1, 1, 2 * 12 * 12).reshape(2, 12, 12, 1).astype("float32")
    shown = Previews(pixel_model())(x0)
    assert shown.shape == (2, 12, 12, 3)
    assert (shown.min(), shown.max()) == (0, 255)


# --- Runs ----------------------------------------------------------------------------------------


def a_run(folder, steps=8, finished=False):
    (folder / "samples").mkdir(parents=True)
    training = {"num_steps": 100, "batch_size": 4}
    (folder / "config.yaml").write_text(json.dumps({"training": training}))
    lines = [
        {"step": k, "loss": 1 / k, "examples_per_second": 8.0, "learning_rate": 1e-3}
        for k in range(1, steps + 1)
    ]
    lines.append({"step": steps, "validation_loss": 0.5})
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    picture(folder / "samples", "step-00000008.png")
    (folder / "samples" / "link.png").symlink_to(folder / "config.yaml")
    if finished:
        (folder / "model").mkdir()
        (folder / "model" / "pipeline.json").write_text("{}")
    return folder


def test_runs_are_found_one_folder_below_too(tmp_path):
    a_run(tmp_path / "one")
    a_run(tmp_path / "whole" / "vae", finished=True)
    (tmp_path / "linked").symlink_to(tmp_path / "one")
    assert set(run_names(tmp_path)) == {"one", "whole/vae"}
    assert run_names(tmp_path / "nothing") == {}
    run = read_run("one", tmp_path / "one")
    assert (run.state, run.step, run.num_steps) == ("training", 8, 100)
    assert run.seconds_left == pytest.approx(92 * 4 / 8), "steps left × batch ÷ images a second"
    assert (
        run.summary()
        == "training, step 8 of 100, loss 0.125, validation 0.5, about 46 seconds left"
    )
    assert [one.name for one in run.samples] == ["step-00000008.png"], "no links"
    done = read_run("whole/vae", tmp_path / "whole" / "vae")
    assert (done.state, done.seconds_left) == ("finished", None)


def test_a_model_shows_its_own_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = a_run(tmp_path / "run", finished=True)
    assert default_folder(run / "model") == run
    assert str(default_folder(tmp_path / "bought" / "model")) == "runs"


# --- The command ---------------------------------------------------------------------------------


def test_options_of_a_plan_are_in_the_order_of_the_command_line():
    """The order decides the bytes of a PNG, and so whether `--from` makes the same ones."""
    own = [option.name for option in generate.params if option.name in OPTIONS]
    assert own == list(OPTIONS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    quick_model().save(folder)
    return folder


def refused(*arguments):
    done = call("serve", *arguments)
    assert done.code == 2, f"{arguments}: exit code {done.code}, expected 2: {done.stderr}"
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_a_port_in_use_is_named(model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(model, "--port", port, "--out", tmp_path / "out")
    assert f"--port {port}: 127.0.0.1:{port}: Address already in use; choose another" in said
    assert not (tmp_path / "out").exists()


def test_others_need_a_token(model, monkeypatch):
    monkeypatch.delenv(TOKEN, raising=False)
    said = refused(model, "--host", "0.0.0.0", "--port", 0)
    assert "--host 0.0.0.0: others could draw here; give a token with LATENTDDPM_TOKEN=" in said
    said = refused(model, "--token", "short")
    assert "--token: 5 characters, expected 8 or more" in said
    monkeypatch.setenv(TOKEN, "seven77")
    assert "7 characters, expected 8 or more" in refused(model, "--host", "0.0.0.0")


def test_a_model_that_cannot_be_drawn_with_is_refused(tmp_path, model):
    assert "emoji-129: no such model folder (did you mean 'emoji-128'?)" in refused("emoji-129")
    signal_model().save(tmp_path / "signals")
    assert "which no page shows; latentddpm generate writes it as .wav" in refused(
        tmp_path / "signals"
    )
    assert "no-such: no such file" in refused(model, "--lora", tmp_path / "no-such")
    Image.new("L", (8, 8)).save(tmp_path / "picture.png")
    assert "picture.png" in refused(model, "--lora", tmp_path / "picture.png")


def test_a_token_kept_in_a_file_ends_without_its_new_line(monkeypatch):
    monkeypatch.setenv(TOKEN, "long-enough\n")
    assert server.read_token(server.ServeOptions(host="0.0.0.0")) == "long-enough"


@pytest.mark.parametrize("odd", ['theme={"dark": true}', "a=b c", "x[y]=1", ""])
def test_an_odd_cookie_of_another_program_hides_no_other(odd):
    found = access.cookies_of(f"{odd}; latentddpm-owner=me")
    assert found["latentddpm-owner"] == "me", "cookies of localhost are those of all ports"


def test_a_lora_is_offered_without_a_scale(model, tmp_path):
    tiny_lora(tmp_path / "style.safetensors", width=16)
    said = refused(model, "--lora", f"{tmp_path / 'style.safetensors'}:0.5")
    assert "without a scale" in said, "each drawing has its own"


def test_missing_packages_are_named_with_the_extra(model, monkeypatch):
    monkeypatch.setattr(server, "PACKAGES", ("gradio", "no_such_package"))
    said = refused(model)
    assert "serve: needs no_such_package: pip install" in said
    assert '"latentddpm[ui]"' in said
