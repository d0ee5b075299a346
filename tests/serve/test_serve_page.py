"""The page of `serve` in a real Chromium: drawn on, painted on, cancelled, reloaded, refused."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from served import TOKEN, served, square
from test_serve_parts import a_run
from tiny import quick_model

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
ARGUMENTS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
LONG = {"Steps": "1000", "Images": "16", "Sampler": "ddim"}
"""Settings of a drawing that is still drawn when something else happens."""

pytest.importorskip("gradio", reason="the extra ui is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    place = tmp_path_factory.mktemp("page")
    quick_model().save(place / "model")
    a_run(place / "runs" / "first")
    with served(place / "model", place / "drawings", page=True, runs=place / "runs") as client:
        yield client


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, client):
    """A function that opens the page as a new person; all requests and errors are seen."""
    contexts, asked, errors = [], [], []

    def visit(address=None):
        context = browser.new_context(viewport={"width": 1280, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: line.type == "error" and errors.append(line.text))
        page.goto(address or f"{client.address}/?token={TOKEN.replace(' ', '%20')}")
        return page

    yield visit
    for context in contexts:
        context.close()
    inside = (client.address, "data:", "blob:")
    outside = [url for url in asked if not url.startswith(inside)]
    assert not outside, f"the page asks others: {outside}"
    errors = [error for error in errors if "401" not in error]  # of the door without a token
    assert not errors, f"the page has errors: {errors}"


def fill(page, **fields):
    for label, value in fields.items():
        field = page.get_by_label(label, exact=True)
        field.fill(value)
        if label == "Sampler":
            field.press("Enter")


def open_part(page, name):
    page.get_by_text(name, exact=True).click()


def draw(page, prompt, **fields):
    page.fill("#prompt textarea", prompt)
    fill(page, **fields)
    page.click("#draw")


def pictures(page, count):
    """The pictures once there are so many: their addresses, the newest first."""
    page.wait_for_function(f"document.querySelectorAll('.pictures figure').length == {count}")
    return page.eval_on_selector_all(".pictures figure img", "all => all.map(one => one.src)")


def making(client, source):
    place = "/" + source.removeprefix(client.address).lstrip("/").removesuffix("png") + "json"
    return client.json("GET", place)[1]


def test_a_prompt_becomes_a_picture_with_its_making(visit, client):
    page = visit()
    assert page.url == f"{client.address}/", "the token leaves the address line"
    draw(page, "red <b>apple</b>", Seed="7", Images="2")
    second, first = pictures(page, 2)
    assert (making(client, first)["seed"], making(client, second)["seed"]) == (7, 8)
    assert page.inner_text("figcaption >> nth=0") == "red <b>apple</b>", "text stays text"
    page.click("summary >> nth=0")
    assert "num_steps" in page.inner_text("details >> nth=0")
    with page.expect_download() as download:
        page.get_by_role("link", name="PNG").last.click()
    own = next(
        one for one in client.studio.gallery.folder.iterdir() if one.name.endswith("-7.png")
    )
    assert download.value.path().read_bytes() == own.read_bytes(), "with its metadata"


def test_a_mask_is_painted_and_the_rest_is_kept(visit, client, tmp_path):
    colours = square()[0]
    Image.fromarray(colours).save(tmp_path / "start.png")
    page = visit()
    open_part(page, "Start from a picture")
    page.set_input_files("#painter input[type=file]", tmp_path / "start.png")
    page.wait_for_selector("#painter canvas")
    box = page.locator("#painter canvas").bounding_box()
    right, middle = box["x"] + box["width"] * 0.85, box["y"] + box["height"] / 2
    page.mouse.move(right, middle - 40)
    page.mouse.down()
    page.mouse.move(right, middle + 40, steps=4)
    page.mouse.up()
    draw(page, "apple", Seed="3")
    (source,) = pictures(page, 1)
    made = making(client, source)
    folder = client.studio.gallery.folder
    mask = np.asarray(Image.open(folder / made["mask"]).convert("L"))
    assert mask.shape == (32, 32), "the mask has the picture's size"
    assert mask[16, 27] == 255, "painted on the right"
    assert not mask[:, :16].any(), "and not on the left"
    assert (folder / made["init_image"]).read_bytes() == (tmp_path / "start.png").read_bytes()
    drawn = np.asarray(Image.open(folder / f"apple-{made['seed']}.png"))
    assert np.array_equal(drawn[:, :16], colours[:, :16])
    assert not np.array_equal(drawn[16, 27], colours[16, 27])


def test_a_drawing_is_seen_on_its_way_reloaded_and_cancelled(visit):
    page = visit()
    open_part(page, "Settings")
    draw(page, "apple", **LONG)
    page.wait_for_selector(".previews img")
    assert page.locator(".previews img").count() == 16
    page.reload()
    page.wait_for_selector(".previews img")
    step = page.inner_text(".live p")
    assert "step" in step, f"the drawing goes on after a reload: {step}"
    page.click("#cancel")
    page.get_by_text("Cancelled.").wait_for()
    assert pictures(page, 0) == []
    draw(page, "apple", Seed="1", Images="1")
    assert len(pictures(page, 1)) == 1, "the next one is drawn"
    page.reload()
    assert len(pictures(page, 1)) == 1, "the picture is there after a reload"


def test_two_people_draw_at_once_and_see_their_own(visit, client):
    first, second = visit(), visit()
    open_part(first, "Settings")
    draw(first, "apple", **LONG)
    first.wait_for_selector(".previews img")
    draw(second, "pear", Seed="20")
    second.get_by_text("pear: waiting, 1 before it").wait_for()
    first.click("#cancel")
    first.get_by_text("Cancelled.").wait_for()
    draw(first, "plum", Seed="30", Steps="2", Images="1")
    ((one,), (other,)) = pictures(first, 1), pictures(second, 1)
    assert making(client, one)["prompts"] == ["plum"]
    assert making(client, other)["prompts"] == ["pear"]


def test_an_error_is_said_and_the_page_lives_on(visit):
    page = visit()
    draw(page, "apple", Seed="seven")
    page.get_by_text("seed: 'seven', expected a whole number, or nothing").wait_for()
    fill(page, Seed="", Images="99")
    page.click("#draw")
    page.get_by_text("num_images: 99, this server takes 1 to 16").wait_for()
    draw(page, "apple", Images="1")
    assert len(pictures(page, 1)) == 1
    assert page.locator(".error").count() == 0


def test_runs_are_shown_with_curves_samples_and_the_time_left(visit):
    page = visit()
    page.get_by_role("tab", name="Runs").click()
    page.wait_for_selector(".run svg path.curve")
    assert "training, step 8 of 100" in page.inner_text(".run p")
    assert "about 46 seconds left" in page.inner_text(".run p")
    loaded = "document.querySelector('.run .samples img').naturalWidth == 8"
    page.wait_for_function(loaded)


def test_without_the_token_there_is_a_form_and_nothing_else(visit, client):
    page = visit(f"{client.address}/")
    assert page.locator("#prompt").count() == 0
    page.fill("input[name=token]", "wrong")
    page.click("button")
    page.get_by_text("This is not the token.").wait_for()
    page.fill("input[name=token]", TOKEN)
    page.click("button")
    page.wait_for_selector("#prompt textarea")


def test_gradio_gives_out_no_file_of_the_machine(client):
    folder = client.studio.gallery.folder
    (folder.parent / "secret.txt").write_text("hush")
    for place in (folder.parent / "secret.txt", "/etc/passwd", "../secret.txt"):
        for route in ("file=", "file/"):
            status, _, body = client.ask("GET", f"/gradio_api/{route}{place}")
            assert status in (403, 404), f"{place}: {status}"
            assert b"hush" not in body
    known = json.dumps(client.json("GET", "/gradio_api/info")[1])
    assert "drawn" not in known, "the page's own functions are no second API"
