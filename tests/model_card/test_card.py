"""Model cards: numbers as the run's files have them, a person's card kept, no path published."""

import json
import re
import shutil

import pytest
import yaml
from PIL import Image
from tiny import few_emoji, quick_model, tiny_lora

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.errors import UserError
from latentddpm.model_card.card import addressed, is_own, write_card
from latentddpm.model_card.facts import read_runs
from latentddpm.model_card.limits import limits
from latentddpm.model_card.product import read_product
from latentddpm.pipeline.model_folder import read_model_folder

TRAINING = {"num_steps": 400, "batch_size": 8, "log_every": 100}
FRACTION = 0.2


def a_run(folder, photos, kind, losses, validation):
    """What a training of `kind` leaves in its folder, with these losses every 100 steps."""
    folder.mkdir(parents=True)
    config = kind.model_validate(
        {"data": {"validation_fraction": FRACTION}, "training": TRAINING}
    ).model_dump(mode="json")
    (folder / "config.yaml").write_text(yaml.safe_dump(config), "utf-8")
    lines = []
    for number, loss in enumerate(losses, start=1):
        lines.append({"step": 100 * number, "loss": loss, "learning_rate": 1e-4})
    for number, loss in enumerate(validation, start=1):
        lines.append({"step": 200 * number, "validation_loss": loss, "validation_loss_q1": loss})
    log = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "log.jsonl").write_text(log, "utf-8")
    open_catalog(photos, folder / "catalog", quiet=True)
    (folder / "samples").mkdir()
    for step, grey in ((200, 10), (400, 200)):
        Image.new("L", (8, 8), grey).save(folder / "samples" / f"step-{step:08d}.png")
    return folder


@pytest.fixture(scope="module")
def model():
    return quick_model()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    """A training of both networks and its model, as `train` lays them out."""
    home = tmp_path_factory.mktemp("secret-home")
    few_emoji(home / "photos", 40)
    folder = home / "mine"
    a_run(folder / "vae", home / "photos", AutoencoderRun, [1.0, 0.5, 0.3, 0.2], [0.3, 0.21])
    a_run(folder / "diffusion", home / "photos", DiffusionRun, [1.0, 0.6, 0.5, 0.4], [0.5, 0.6])
    shutil.copy(folder / "diffusion" / "config.yaml", folder / "config.yaml")
    model.save(folder / "model")
    return folder


@pytest.fixture
def mine(whole, tmp_path):
    """A copy of it to write to."""
    return shutil.copytree(whole, tmp_path / "mine")


def front_matter(text):
    return yaml.safe_load(re.fullmatch(r"---\n(.*?)---\n.*", text, re.DOTALL)[1])


def test_the_card_says_what_the_files_say(mine):
    text = write_card(mine / "model").read_text("utf-8")
    keys = front_matter(text)
    assert keys["library_name"] == "keras", f"expected keras, got {keys}"
    assert keys["pipeline_tag"] == "text-to-image", f"expected the task, got {keys}"
    assert "license" not in keys, f"a licence that nobody named: {keys}"
    assert text.count("\n# mine\n") == 1, "expected the name of the run as title"
    assert text.count("\n### UNet\n") == 1, "the settings of the whole run are those of its UNet"
    training, validation = (read_runs(mine)[0].data.training, read_runs(mine)[0].data.validation)
    assert training + validation == 40, f"expected 40 images, got {training} and {validation}"
    row = f"| 40 in `photos` (folder) | autoencoder, UNet | {training} | {validation} |"
    assert row in text, f"expected {row!r} in\n{text}"
    for words in ("0.4 (step 400)", "0.6 (step 400)", "1 (step 100)", "batch_size: 8"):
        assert words in text, f"expected {words!r} in\n{text}"
    assert "loss q1" not in text, "quarters of the timesteps are not for a card"
    folder = read_model_folder(mine / "model")
    for part in folder.parts.values():
        assert part["digest"][:12] in text, f"expected the digest of {part['file']}"


def test_the_card_names_the_model_that_a_training_began_from(mine):
    settings = mine / "diffusion" / "config.yaml"
    assert "It began with" not in write_card(mine / "model").read_text("utf-8")
    config = yaml.safe_load(settings.read_text("utf-8"))
    for place, name in {"emoji-128": "emoji-128", "/home/me/cats/model": "cats"}.items():
        settings.write_text(yaml.safe_dump(config | {"init": place}), "utf-8")
        text = write_card(mine / "model").read_text("utf-8")
        assert f"the weights of `{name}`" in text, f"expected {name} in\n{text}"


def test_the_number_of_parameters_is_that_of_the_networks(mine, model):
    product = read_product(mine / "model")
    found = {part.name: part.parameters for part in product.parts}
    expected = {
        "vae": model.autoencoder.count_params(),
        "unet": model.unet.count_params(),
        "text_encoder": model.text_encoder.count_params(),
    }
    assert found == expected, f"expected {expected}, got {found}"


def test_limits_follow_from_the_numbers(mine):
    runs = read_runs(mine)
    text = " ".join(limits(read_product(mine / "model"), runs))
    # 400 steps of 8 images
    epochs = 400 * 8 / runs[0].data.training
    assert f"seen {epochs:,.3g} times" in text, f"expected {epochs:.3g} epochs in {text}"
    assert epochs > 90, "the test means to be about many epochs"
    assert "the validation loss was lowest at step 200 (0.5)" in text, f"in {text}"
    assert "0.6, the training loss at 0.4: 50% above it" in text, f"expected the gap in {text}"
    assert "at 0.2: no sign of learning by heart" in text, f"expected none of the vae: {text}"
    assert "Not measured by the training" in text, f"expected what is not known: {text}"


def test_the_last_grid_lies_beside_the_card(mine):
    write_card(mine / "model", mine)
    with Image.open(mine / "model" / "samples.png") as image:
        assert image.getpixel((0, 0)) == 200, "expected the grid of the last step, of the UNet"
    assert "](samples.png)" in (mine / "model" / "README.md").read_text("utf-8")
    read_model_folder(mine / "model")  # which a card and a picture do not change


def test_no_path_of_this_machine_is_in_a_card(mine):
    text = write_card(mine / "model", license_id="mit").read_text("utf-8")
    assert "secret-home" not in text, f"a folder of the machine is published:\n{text}"
    assert str(mine.parent) not in text, f"a folder of the machine is published:\n{text}"
    assert front_matter(text)["license"] == "mit", "expected the licence that was named"


def test_a_card_is_written_anew_until_a_person_has_changed_it(mine):
    card = write_card(mine / "model")
    first = card.read_text("utf-8")
    assert is_own(first), "expected a card of latentddpm to be known again"
    (mine / "diffusion" / "log.jsonl").write_text('{"step": 100, "loss": 0.123}\n', "utf-8")
    assert "0.123" in write_card(mine / "model").read_text("utf-8"), "expected the new number"
    card.write_text(first.replace("Limits", "My limits"), "utf-8")
    assert not is_own(card.read_text("utf-8")), "expected a change to be noticed"
    write_card(mine / "model", license_id="mit")
    assert card.read_text("utf-8") == first.replace("Limits", "My limits"), "expected it kept"


def test_an_address_takes_the_place_of_the_word(mine):
    text = write_card(mine / "model").read_text("utf-8")
    placed = addressed(text, "hf://me/mine")
    assert '.load("hf://me/mine")' in placed, f"expected the address in\n{placed}"
    assert "--model hf://me/mine" in placed, f"expected the address in\n{placed}"
    assert "`MODEL`" not in placed, f"expected no word that stands for it in\n{placed}"
    assert is_own(placed), "expected its last line to fit it"
    assert addressed("my own MODEL", "hf://me/mine") == "my own MODEL", "a person's was changed"


def test_a_model_without_its_run_says_so(whole, tmp_path):
    alone = shutil.copytree(whole / "model", tmp_path / "runs" / "alone")
    a_run(tmp_path / "runs" / "other", whole.parent / "photos", DiffusionRun, [9.0], [9.0])
    text = write_card(alone).read_text("utf-8")
    assert "is not known here" in text, f"expected that nothing is known of it:\n{text}"
    assert "| 9 (" not in text, "a run beside it is not its own"
    assert "samples.png" not in text, "expected no picture where there is none"


def test_a_lora_has_a_card_beside_its_file(whole, tmp_path):
    run = tmp_path / "style"
    a_run(run, whole.parent / "photos", DiffusionRun, [0.9, 0.8], [])
    tiny_lora(run / "lora.safetensors")
    for place in (run, run / "lora.safetensors"):
        card = write_card(place)
        assert card == run / "README.md", f"expected it in the run, got {card}"
    text = card.read_text("utf-8")
    assert "--model BASE" in text, f"expected its command in\n{text}"
    assert "--lora MODEL" in text, f"expected its command in\n{text}"
    assert "lora" in front_matter(text)["tags"], "expected the tag"
    assert "Nothing was validated" in text, f"expected that to be said:\n{text}"
    assert read_product(run).files[0].name == "lora.safetensors", "expected its file alone"
    assert len(read_product(run).files) == 1, f"expected no other: {read_product(run).files}"


def test_what_is_no_product_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is empty; name a finished run"):
        write_card(tmp_path / "empty")
    with pytest.raises(UserError, match="no such model folder"):
        write_card(tmp_path / "nothing")
