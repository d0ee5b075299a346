"""ControlNets of `generate`: in Python, on the command line, in the PNG, and what is refused."""

import warnings

import numpy as np
import pytest
from circles import SIDE, circle, pixel_model
from click.testing import CliRunner
from tiny import perturb, quick_model

from latentddpm.cli import main
from latentddpm.errors import UserError
from latentddpm.models.denoisers.control import ControlledUNet, ControlNet
from latentddpm.pipeline.control.control import Control
from latentddpm.pipeline.control.folder import load_control, read_control_folder, save_control
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.utils.pixels import read_metadata


def control_of(model, seed=0, **changes):
    """A ControlNet that acts."""
    control = ControlNet.from_unet(model.unet, **changes)
    perturb(control, seed)
    return control


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Models `base` and `text`, the ControlNets `one/control` and `two/control`, pictures."""
    lab = tmp_path_factory.mktemp("lab")
    model = pixel_model()
    saved = model.save(lab / "base")
    for seed, name in enumerate(("one", "two")):
        base = {"model": "base", "digest": saved.digest if name == "one" else "of another"}
        control = control_of(model, seed, hint_channels=[16])
        save_control(control, lab / name / "control", "0", base=base, condition={"kind": "edges"})
    circle(5, None, "white").save(lab / "outline.png")
    circle(2, None, "white").resize((24, 24)).save(lab / "larger.png")
    return lab


@pytest.fixture(scope="module")
def model(lab):
    return LatentDiffusion.load(lab / "base")


@pytest.fixture(scope="module")
def network(lab):
    return load_control(lab / "one")


def outline(lab):
    return lab / "outline.png"


# --- Python --------------------------------------------------------------------------------


def test_a_control_net_acts_by_its_picture_and_its_scale(lab, model, network):
    free = model.generate(seed=0)
    drawn = model.generate(seed=0, controls=[Control(network, outline(lab))])
    other = model.generate(seed=0, controls=[Control(network, np.zeros((SIDE, SIDE)))])
    assert (drawn != free).any()
    assert (drawn != other).any(), "the picture is not seen"
    off = model.generate(seed=0, controls=[Control(network, outline(lab), 0)])
    np.testing.assert_array_equal(off, free, "scale 0 is the base")


@pytest.mark.slow
def test_pictures_of_each_image_are_those_of_single_calls(lab, model, network):
    pictures = [outline(lab), np.zeros((SIDE, SIDE))]
    model = LatentDiffusion(
        model.autoencoder,
        ControlledUNet(model.unet, [network]),
        model.schedule,
        image_size=model.image_size,
        defaults=model.defaults,
    )
    together = model.generate(
        num_images=2, seed=0, controls=[Control(network, pictures)], batch_size=2
    )
    for k, picture in enumerate(pictures):
        single = model.generate(seed=k, controls=[Control(network, picture)])
        assert np.abs(together[k].astype(int) - single[0]).max() <= 1
    with pytest.raises(UserError, match="2 for 3 images"):
        model.generate(num_images=3, controls=[Control(network, pictures)])


@pytest.mark.slow
def test_guidance_tells_the_picture_with_the_prompt_and_without():
    model = quick_model()
    control = control_of(model, hint_channels=[16, 32])
    picture = np.random.default_rng(0).uniform(size=(32, 32, 3))
    noise = np.random.default_rng(1).normal(size=(1, 16, 16, 4)).astype("float32")
    how = {"num_steps": 1, "sampler": "ddim", "latents": noise, "output": "latents"}
    how["controls"] = [Control(control, picture, 0.7)]
    none, one, three = (
        model.generate("red apple", guidance_scale=scale, **how) for scale in (0, 1, 3)
    )
    np.testing.assert_allclose(three, none + 3 * (one - none), atol=1e-4)


def test_a_control_net_of_other_sizes_is_refused(lab, model, network):
    narrow = ControlNet.from_unet(pixel_model(channels=16).unet, hint_channels=[16])
    with pytest.raises(UserError, match="with channels 16, and this one has 8"):
        model.generate(controls=[Control(narrow, outline(lab))])
    latents = ControlNet.from_unet(model.unet)
    with pytest.raises(UserError, match=r"latents of 1/8 of the image's sides, .* are of 1/1"):
        model.generate(controls=[Control(latents, outline(lab))])
    with pytest.raises(UserError, match="an array of 8×8 pixels for an image of 16×16"):
        model.generate(controls=[Control(network, np.zeros((8, 8)))])
    with pytest.raises(UserError, match="finite number"):
        model.generate(controls=[Control(network, outline(lab), float("nan"))])


def test_a_folder_gives_its_control_net_back_and_notices_damage(lab, network, tmp_path):
    folder = save_control(network, tmp_path / "control", "0", storage="float16")
    for one, other in zip(load_control(tmp_path).weights, network.weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert folder.base_digest == ""
    folder.file.write_bytes(folder.file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"is not the file control.json describes"):
        read_control_folder(tmp_path)
    with pytest.raises(UserError, match="is a model folder, no ControlNet"):
        read_control_folder(lab / "base")


# --- Command line --------------------------------------------------------------------------


def generate(*arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # they are notes here, which the command prints
        return CliRunner().invoke(main, ["generate", *map(str, arguments)])


@pytest.fixture(scope="module")
def drawn(lab):
    """A PNG of two ControlNets, beside their runs."""
    answer = generate(
        *("--model", lab / "base", "--seed", 3, "--out", lab / "drawn.png"),
        *("--control", f"{lab / 'one'}:0.5", "--control-image", outline(lab)),
        *("--control", lab / "two", "--control-image", lab / "larger.png"),
    )
    assert answer.exit_code == 0, answer.output
    return lab / "drawn.png", answer.output.splitlines()


def test_the_png_names_control_nets_and_pictures(lab, drawn):
    png, said = drawn
    found = read_metadata(png)["controls"]
    assert [one["control"] for one in found] == ["one", "two"]
    assert [one["scale"] for one in found] == [0.5, 1.0]
    assert [one["image"] for one in found] == ["outline.png", "larger.png"]
    assert found[0]["sha256"] == read_control_folder(lab / "one").entry["sha256"]
    assert read_metadata(png)["engine"] == "keras"
    other = [text for text in said if "was trained for base (of another)" in text]
    assert len(other) == 1, f"expected a warning of the other base, got {said}"
    assert any(
        "larger.png: 24×24 pixels, scaled and cropped to 16×16 pixels" in text for text in said
    )


@pytest.mark.slow
def test_a_png_is_made_again_with_its_control_nets(lab, drawn):
    png, _ = drawn
    answer = generate("--from", png, "--out", lab / "again.png")
    assert answer.exit_code == 0, answer.output
    assert "every pixel as in" in answer.output
    (lab / "elsewhere").mkdir()
    moved = lab / "elsewhere" / "drawn.png"
    moved.write_bytes(png.read_bytes())
    answer = generate("--from", moved)
    assert answer.exit_code == 2
    assert "was made with the ControlNet one" in answer.output
    assert "--control RUN:0.5" in answer.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--control-image", "outline.png"], "1 --control-image for 0 --control"),
        (["--control", "one"], "0 --control-image for 1 --control"),
        (["--control", "none", "--control-image", "outline.png"], "none: no such folder"),
        (["--control", "base", "--control-image", "outline.png"], "is a model folder, no Control"),
        (["--control", "one", "--control-image", "none.png"], "none.png: no such file"),
        (["--control", "one", "--control-image", "base/pipeline.json"], "control picture: "),
        (["--control", "one:x", "--control-image", "outline.png"], "expected RUN or RUN:SCALE"),
        (["--control", "one:nan", "--control-image", "outline.png"], "expected a finite number"),
        (
            ["--engine", "onnx", "--control", "one", "--control-image", "outline.png"],
            "--control needs --engine keras",
        ),
    ],
)
def test_wrong_options_are_refused_in_one_line(lab, monkeypatch, arguments, message):
    monkeypatch.chdir(lab)
    answer = generate("--model", "base", *arguments)
    assert answer.exit_code == 2, answer.output
    assert message in answer.output
    assert len(answer.output.strip().splitlines()) == 1, answer.output


def test_a_model_whose_sizes_do_not_fit_is_refused_before_keras(lab, tmp_path):
    pixel_model(channel_multipliers=(1, 1)).save(tmp_path / "other")
    quick_model().save(tmp_path / "latents")
    for name, message in (("other", "with channel_multipliers [1, 2]"), ("latents", "channels")):
        answer = generate(
            *("--model", tmp_path / name, "--control", lab / "one"),
            *("--control-image", outline(lab)),
        )
        assert answer.exit_code == 2, answer.output
        assert message in answer.output


def test_what_a_control_net_is_is_said_where_it_is_named_wrongly(lab):
    answer = CliRunner().invoke(main, ["info", str(lab / "one" / "control")])
    assert "pictures   edges" in answer.output
    answer = generate("--model", lab / "one" / "control")
    assert answer.exit_code == 2
    assert "is a ControlNet, no model folder" in answer.output
