"""diffusers folders: read to the same numbers, written again to the same bytes."""

import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tiny import assemble, perturb, pixel_model, step_by_step, tiny_autoencoder

from latentddpm import interop
from latentddpm.cli import main
from latentddpm.diffusion.flow import FlowSchedule
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.interop.diffusers.control import control_arguments, control_config
from latentddpm.interop.diffusers.folder import INDEX, STEM, read_folder
from latentddpm.interop.diffusers.networks import rows_of, validate
from latentddpm.interop.diffusers.read_config import unet_arguments
from latentddpm.interop.diffusers.weight_map import to_ours, to_theirs
from latentddpm.interop.diffusers.weights import variable, write
from latentddpm.interop.diffusers.write_config import unet_config
from latentddpm.models.archive import weights_digest
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.denoisers.basic import BasicUNet
from latentddpm.models.denoisers.control import ControlNet
from latentddpm.models.denoisers.unet import LATER, UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusers"
AUTOENCODERS = sorted(GOLDEN.glob("vae-*"))
UNETS = sorted(GOLDEN.glob("unet-*"))
TOLERANCE = 1e-4


def name_of(folder):
    return folder.name


def assert_close(found, expected, what, tolerance=TOLERANCE):
    size = np.abs(expected).max()
    assert 0.3 < size < 30, f"{what}: answers of order {size:.2g} say little"
    difference = np.abs(np.asarray(found) - expected).max()
    assert difference <= tolerance, f"{what} differs from diffusers by {difference:.2g}"


@functools.cache
def load_unet(folder):
    """The UNet of a folder, which no test changes."""
    return validate(read_folder(folder).unet).build()


def tensors_of(folder):
    """Every tensor below a folder, by its file's folder and its key.

    transformers 5 leaves the prefix of a text encoder's keys out, earlier versions expect it.
    """
    return {
        (file.parent.name, key.removeprefix("text_model.")): value
        for file in folder.rglob("*.safetensors")
        if file.name != "answers.safetensors"
        for key, value in load_file(file).items()
    }


@pytest.fixture(scope="module")
def pipeline():
    return interop.load_diffusers(GOLDEN / "pipeline")


# --- The same numbers as diffusers -----------------------------------------------------------


@pytest.mark.parametrize("folder", AUTOENCODERS, ids=name_of)
def test_an_autoencoder_answers_as_in_diffusers(folder):
    answers = load_file(folder / "answers.safetensors")
    model = interop.load_diffusers(folder)
    assert model.unet is None, "an autoencoder alone came with a UNet"
    mean, logvar = model.autoencoder.encode(answers["images"])
    assert_close(mean, answers["mean"], "mean")
    assert_close(logvar, answers["logvar"], "logvar")
    assert_close(model.autoencoder.decoder(answers["raw_latents"]), answers["decoded"], "decode")
    factor = json.loads((folder / "config.json").read_text())["scaling_factor"]
    assert model.autoencoder.scaling_factor == factor, "the scaling factor is not that of the file"


@pytest.mark.parametrize("folder", UNETS, ids=name_of)
def test_a_unet_answers_as_in_diffusers(folder):
    answers = load_file(folder / "answers.safetensors")
    expected = answers.pop("prediction")
    unet = load_unet(folder)
    assert_close(unet(answers), expected, "prediction")
    single = {name: array[:1] for name, array in answers.items()}
    assert_close(unet(single), expected[:1], "prediction of a batch of one")


def test_a_size_that_the_factor_does_not_divide():
    """7×9 → 4×5 and back, as diffusers' conditional UNet."""
    answers = load_file(GOLDEN / "odd_answers.safetensors")
    expected = answers.pop("prediction")
    unet = load_unet(GOLDEN / "unet-heads-int")
    assert_close(unet(answers), expected, "prediction", 1e-5)


def test_a_learned_variance_is_read_and_written():
    config = json.loads((GOLDEN / "unet-one-head/config.json").read_text("utf-8"))
    arguments = unet_arguments({**config, "out_channels": 8}, "config.json")
    unet = UNet(**arguments)
    assert unet.learned_variance, f"arguments {arguments}"
    assert unet_config(unet, None)["out_channels"] == 8, "expected out_channels 8"
    with pytest.raises(UserError, match=r"out_channels: 6 is not supported; expected 4 \(in_ch"):
        unet_arguments({**config, "out_channels": 6}, "config.json")


@pytest.mark.parametrize("text", [False, True])
def test_a_scale_and_a_shift_by_the_timestep_come_back(text):
    more = {"context_dim": 6} if text else {"num_heads": 1}
    unet = UNet(**{**UNET, **TWO_LEVELS, **more}, time_scale_shift=True)
    written = unet_config(unet, None)
    assert written["resnet_time_scale_shift"] == "scale_shift"
    assert text or written["attn_norm_num_groups"] == UNET["norm_groups"], "no norm in the middle"
    assert unet_arguments(written, "config.json")["time_scale_shift"] is True
    for network in (unet, *([ControlNet.from_unet(unet)] if text else [])):
        sizes = {row.path: np.prod(row.shape) for row in rows_of(network)}
        assert sizes == {weight.path: np.prod(weight.shape) for weight in network.weights}
    if text:
        written = control_config(network)
        assert control_arguments(written, "config.json")["time_scale_shift"] is True


def test_a_network_that_diffusers_does_not_have_is_refused():
    line = {"channel_multipliers": (1,), "num_res_blocks": 1, "spatial_dims": 1}
    for network in (BasicUNet(4), UNet(**UNET, **line, attention_levels=())):
        with pytest.raises(UserError, match="diffusers has no network like a"):
            unet_config(network, None)
        with pytest.raises(UserError, match=r"know no .*UNet like this"):
            list(rows_of(network))


@step_by_step()
def test_a_whole_pipeline_answers_as_in_diffusers(pipeline):
    """Guidance 7.5, a negative prompt, two prompts, injected latents, not square."""
    folder = GOLDEN / "pipeline"
    answers = load_file(folder / "answers.safetensors")
    asked = json.loads((folder / "asked.json").read_text())
    size = pipeline.image_size
    assert size == (16, 24), f"image size {size}, expected (16, 24)"
    latents = pipeline.generate(
        asked["prompt"],
        negative_prompt=asked["negative_prompt"],
        num_steps=5,
        guidance_scale=7.5,
        latents=answers["latents"],
        output="latents",
    )
    assert_close(latents, answers["final_latents"], "latents", 1e-3)
    images = np.clip(np.asarray(pipeline.autoencoder.decode(latents)) / 2 + 0.5, 0, 1)
    assert_close(images, answers["images"], "images", 1e-3)


@step_by_step()
def test_a_pipeline_of_pixels_answers_as_in_diffusers():
    """With both parts at the top, Ho et al.'s embedding and padding, and clipped predictions."""
    answers = load_file(GOLDEN / "pixels" / "answers.safetensors")
    model = interop.load_diffusers(GOLDEN / "pixels")
    expected, noise = answers["prediction"], answers["noisy_latents"]
    inputs = {"noisy_latents": noise, "timesteps": answers["timesteps"]}
    assert_close(model.unet(inputs), expected, "prediction", 1e-5)
    defaults = model.defaults
    assert (defaults["sampler"], defaults["num_steps"]) == ("ddpm", 1000), f"got {defaults}"
    options = {"steps_offset": 0, "clip_sample": True}
    assert defaults["sampler_options"] == {**options, "variance": "large"}, f"got {defaults}"
    images = model.generate(
        num_images=2,
        num_steps=5,
        sampler="ddim",
        sampler_options=options,
        latents=noise,
        output="latents",
    )
    assert_close(np.clip(images / 2 + 0.5, 0, 1), answers["images"], "images")


def test_original_details_come_back():
    config = json.loads((GOLDEN / "pixels" / "config.json").read_text())
    unet = UNet(**unet_arguments(config, "config.json"))
    written = unet_config(unet, (8, 12))
    for key in ("flip_sin_to_cos", "freq_shift", "downsample_padding"):
        assert written[key] == config[key], f"{key}: {written[key]}"
    assert UNet.from_config(unet.get_config()).get_config() == unet.get_config()
    odd = {"noisy_latents": np.zeros((1, 7, 5, 3), "float32"), "timesteps": np.zeros(1)}
    assert unet(odd).shape == (1, 7, 5, 3), "sizes that diffusers refuses are taken here"


def test_the_defaults_are_those_of_the_folder(pipeline):
    expected = {"sampler": "ddim", "timestep_spacing": "leading"}
    expected |= {"guidance_scale": 7.5, "num_steps": 50}
    assert pipeline.defaults == expected, f"defaults {pipeline.defaults}, expected {expected}"


# --- Layouts and tables ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "shape", "ours"),
    [
        ("conv", (2, 3, 4, 5), (4, 5, 3, 2)),
        ("dense", (2, 3), (3, 2)),
        ("pointwise", (2, 3, 1, 1), (3, 2)),
        ("vector", (2,), (2,)),
    ],
)
def test_layouts_go_there_and_back(layout, shape, ours):
    array = np.arange(np.prod(shape)).reshape(shape)
    found = to_ours(array, layout)
    assert found.shape == ours, f"{layout} {shape} became {found.shape}, expected {ours}"
    np.testing.assert_array_equal(to_theirs(found, layout), array, err_msg=layout)


UNET = {"channels": 8, "norm_groups": 4, "num_heads": 2}
TWO_LEVELS = {"channel_multipliers": (1, 2), "num_res_blocks": 1, "attention_levels": (1,)}
NETWORKS = {
    "autoencoder": (Autoencoder, {"channels": 8, "norm_groups": 4}),
    "shallow autoencoder": (
        Autoencoder,
        {"channels": 8, "norm_groups": 4, "channel_multipliers": (1,), "num_res_blocks": 1},
    ),
    "other channels": (
        Autoencoder,
        {
            "channels": 4,
            "norm_groups": 2,
            "channel_multipliers": (1, 3),
            "latent_channels": 3,
            "image_channels": 1,
        },
    ),
    "unconditional": (UNet, {**UNET, "channel_multipliers": (1, 2), "attention_levels": (1,)}),
    "conditional": (UNet, {**UNET, "context_dim": 6, "num_res_blocks": 1}),
    "no attention but in the middle": (UNet, {**UNET, "attention_levels": ()}),
    "one level": (
        UNet,
        {**UNET, "channel_multipliers": (1,), "attention_levels": (0,), "context_dim": 3},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_table_names_every_variable_once_with_its_shape(name):
    kind, arguments = NETWORKS[name]
    model = kind(**arguments)
    rows = list(rows_of(model))
    named = [id(variable(model, row.path)) for row in rows]
    assert len(set(named)) == len(named), f"{name}: a variable is named twice"
    missing = [weight.path for weight in model.weights if id(weight) not in named]
    assert not missing, f"{name}: the table lacks {missing}"
    assert len(rows) == len(model.weights), f"{name}: the table names what is no weight"
    keys = [row.key for row in rows]
    assert len(set(keys)) == len(keys), f"{name}: a tensor is named twice"
    for row in rows:
        found = to_ours(np.zeros(row.shape, bool), row.layout).shape
        expected = tuple(variable(model, row.path).shape)
        assert found == expected, f"{name}: {row.key} becomes {found}, {row.path} is {expected}"


# --- There and back --------------------------------------------------------------------------


def assert_same_model(found, expected):
    for name in ("autoencoder", "unet", "text_encoder"):
        one, other = getattr(found, name), getattr(expected, name)
        if other is None:
            assert one is None, f"{name} appeared"
            continue
        assert weights_digest(one) == weights_digest(other), f"{name} has another digest"
        for a, b in zip(one.weights, other.weights, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=f"{name}: {a.path}")
    assert found.image_size == expected.image_size, "another image size"
    schedules = found.schedule, expected.schedule
    assert schedules[0].get_config() == schedules[1].get_config(), "another schedule"


def test_import_export_import_is_bit_exact(pipeline, tmp_path):
    """Through our own model folder as well; the tensors are those of the first folder."""
    pipeline.save(tmp_path / "ours")
    interop.save_diffusers(LatentDiffusion.load(tmp_path / "ours"), tmp_path / "theirs")
    again = interop.load_diffusers(tmp_path / "theirs")
    assert_same_model(again, pipeline)
    assert again.defaults == pipeline.defaults, "other defaults"
    before, after = tensors_of(GOLDEN / "pipeline"), tensors_of(tmp_path / "theirs")
    assert before.keys() == after.keys(), f"other keys: {sorted(before.keys() ^ after.keys())}"
    for key, value in before.items():
        assert after[key].dtype == np.float32, f"{key} is {after[key].dtype}"
        np.testing.assert_array_equal(after[key], value.astype("float32"), err_msg=str(key))


@pytest.mark.parametrize("folder", UNETS, ids=name_of)
def test_half_precision_stays_exact_in_half_precision(folder, tmp_path):
    unet = load_unet(folder)
    file = tmp_path / "unet" / f"{STEM}.safetensors"
    write(unet, rows_of(unet), file, "unet", "float16")
    before, after = tensors_of(folder), tensors_of(tmp_path)
    for (_, key), value in before.items():
        found = after["unet", key]
        assert found.dtype == np.float16, f"{key} is {found.dtype}"
        expected = value.astype("float32").astype("float16").reshape(found.shape)
        np.testing.assert_array_equal(found, expected, err_msg=key)


@pytest.mark.parametrize(
    "name", ["vae-sharded", pytest.param("unet-heads-list-linear", marks=pytest.mark.slow)]
)
def test_a_part_alone_goes_there_and_back(name, tmp_path):
    ours, theirs, again = (str(tmp_path / name) for name in ("ours", "theirs", "again"))
    part = name.split("-")[0]
    for arguments in (
        ["--from", str(GOLDEN / name), "--out", ours],
        ["--to", "diffusers", "--model", ours, "--out", theirs],
        ["--from", str(Path(theirs) / part), "--out", again],
    ):
        result = CliRunner().invoke(main, ["convert", *arguments, "--quiet"])
        assert result.exit_code == 0, f"{arguments}: {result.output}"
        assert result.output.strip() == arguments[-1], (
            f"stdout should be the folder: {result.output}"
        )
    digests = [read_model_folder(path).parts[part]["digest"] for path in (ours, again)]
    assert digests[0] == digests[1], "another digest after a round trip"


@pytest.mark.parametrize("text", [True, False], ids=["text", "unconditional"])
def test_a_model_made_here_comes_back(text, tmp_path):
    """Context length, scaling factor and schedule of our own."""
    autoencoder = tiny_autoencoder(channel_multipliers=(1, 2))
    model = assemble(autoencoder, 0, text, {"zero_init": True})
    model.schedule = NoiseSchedule(
        "cosine", num_train_timesteps=500, prediction_type="v_prediction"
    )
    perturb(model.autoencoder)
    interop.save_diffusers(model, tmp_path / "theirs")
    assert (tmp_path / "theirs" / "model_index.json").is_file() == text, (
        "a pipeline is named where there is text, and only there"
    )
    again = interop.load_diffusers(tmp_path / "theirs")
    assert_same_model(again, model)
    assert again.autoencoder.scaling_factor == 0.7, "the scaling factor got lost"
    if text:
        ours, theirs = model.tokenizer("red apple"), again.tokenizer("red apple")
        np.testing.assert_array_equal(theirs, ours, err_msg="other token ids")


@step_by_step()
def test_a_model_of_pixels_comes_back(tmp_path):
    """As a pipeline without an autoencoder, through the command and our own folder as well."""
    model = pixel_model(sampler="ddpm", num_steps=1000, timestep_spacing="leading")
    model.save(tmp_path / "ours")
    for arguments in (
        ["--to", "diffusers", "--model", tmp_path / "ours", "--out", tmp_path / "theirs"],
        ["--from", tmp_path / "theirs", "--out", tmp_path / "again"],
    ):
        result = CliRunner().invoke(main, ["convert", *map(str, arguments)])
        assert result.exit_code == 0, f"convert {arguments}: {result.output}"
    index = json.loads((tmp_path / "theirs" / INDEX).read_text())
    assert index["_class_name"] == "DDPMPipeline", f"another pipeline: {index}"
    assert sorted(path.name for path in (tmp_path / "theirs").iterdir() if path.is_dir()) == [
        "scheduler",
        "unet",
    ], "other parts"
    again = LatentDiffusion.load(tmp_path / "again")
    assert again.facts == model.facts, "other facts or defaults"
    settings = {"seed": 0, "num_steps": 2, "output": "latents"}
    np.testing.assert_array_equal(again.generate(**settings), model.generate(**settings))

    # Early folders have the files of both parts at the top.
    top = tmp_path / "theirs"
    for file in [*top.glob("*/*.json"), *top.glob("*/*.safetensors")]:
        file.rename(top / file.name)
    for part in ("scheduler", "unet"):
        (top / part).rmdir()
    assert interop.load_diffusers(top).facts == model.facts, "other facts from the top"


@step_by_step()
def test_a_learned_variance_comes_back_and_is_drawn_with(tmp_path):
    """ADM's way of `ddpm`, clipped; every other sampler uses the first half of the channels."""
    options = {"variance": "learned_range", "clip_sample": True}
    own = {"sampler": "ddpm", "num_steps": 3, "sampler_options": options}
    model = pixel_model(learned_variance=True, **own)
    interop.save_diffusers(model, tmp_path / "theirs")
    config = json.loads((tmp_path / "theirs" / "scheduler" / "scheduler_config.json").read_text())
    assert (config["variance_type"], config["clip_sample"]) == ("learned_range", True), f"{config}"
    again = interop.load_diffusers(tmp_path / "theirs")
    found = again.settings(num_steps=3, timestep_spacing="leading").sampler_options
    assert found == options, f"options {found}, expected {options}"
    given = {"seed": 0, "num_steps": 3, "timestep_spacing": "trailing", "output": "latents"}
    drawn = {
        variance: again.generate(**given, sampler_options={"variance": variance})
        for variance in ("small", "learned_range", "large")
    }
    expected = model.generate(**given)
    np.testing.assert_array_equal(drawn["learned_range"], expected, err_msg="other latents")
    apart = [np.abs(drawn[one] - expected).max() for one in ("small", "large")]
    assert min(apart) > 1e-3, f"expected another variance to draw another picture, got {apart}"
    assert np.isfinite(again.generate(**given, sampler="pc")).all(), "expected finite latents"


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_another_sampler_of_pixels_becomes_ddim(sampler, tmp_path):
    """diffusers' pipelines of pixels know DDPM and DDIM alone."""
    options = {"sigma_spacing": "karras"} if sampler == "euler" else {}
    model = pixel_model(sampler=sampler, num_steps=7, sampler_options=options)
    interop.save_diffusers(model, tmp_path / "theirs")
    index = json.loads((tmp_path / "theirs" / INDEX).read_text())
    assert index["_class_name"] == "DDIMPipeline", f"another pipeline: {index}"
    defaults = interop.load_diffusers(tmp_path / "theirs").defaults
    assert (defaults["sampler"], defaults["num_steps"]) == ("ddim", 50), f"got {defaults}"
    assert not defaults.get("sampler_options"), f"options of another sampler: {defaults}"


def test_flow_matching_of_pixels_comes_back(tmp_path):
    """diffusers' pipeline of DDPM takes any scheduler whose x is that of the network."""
    model = pixel_model(sampler="euler", timestep_spacing="linspace")
    model.schedule = FlowSchedule(shift=3.0)
    interop.save_diffusers(model, tmp_path / "theirs")
    index = json.loads((tmp_path / "theirs" / INDEX).read_text())
    assert index["_class_name"] == "DDPMPipeline", f"another pipeline: {index}"
    again = interop.load_diffusers(tmp_path / "theirs")
    assert again.schedule.get_config() == model.schedule.get_config(), "another schedule"
    assert again.defaults["sampler"] == "euler", f"got {again.defaults}"


def test_heads_and_epsilon_of_every_level_come_back():
    sizes = {"num_heads": [1, 2, 4, 8], "context_dim": 6, "norm_epsilon": 1e-6}
    unet = UNet(**UNET | sizes, num_res_blocks=1)
    arguments = unet_arguments(unet_config(unet, (8, 8)), "config.json")
    ours = LATER | unet.get_config()
    assert arguments == {key: ours[key] for key in arguments}, "other arguments after a round trip"


def test_what_is_written_is_whole_or_absent(tmp_path):
    autoencoder = tiny_autoencoder()
    variable(autoencoder, "encoder/conv_in/conv/kernel").assign(np.full((3, 3, 3, 8), 1e6))
    model = LatentDiffusion(autoencoder, None, None)
    with pytest.raises(UserError, match=r"encoder/conv_in/conv/kernel: 1e\+06 is too large"):
        interop.save_diffusers(model, tmp_path / "half", storage="float16")
    assert not list(tmp_path.iterdir()), f"left behind: {list(tmp_path.iterdir())}"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already; name a new folder"):
        interop.save_diffusers(model, tmp_path / "full")


# --- Which file is read ----------------------------------------------------------------------


def test_a_variant_is_read_when_asked_for(tmp_path):
    folder = shutil.copytree(GOLDEN / "unet-one-head", tmp_path / "unet")
    plain = folder / f"{STEM}.safetensors"
    doubled = {key: value * 2 for key, value in load_file(plain).items()}
    save_file(doubled, folder / f"{STEM}.other.safetensors")
    piece = read_folder(folder, "other").unet
    key = "conv_in.weight"
    np.testing.assert_array_equal(piece.tensors().read(key), doubled[key], err_msg="variant")
    found = read_folder(folder).unet.tensors().read(key)
    np.testing.assert_array_equal(found * 2, doubled[key], err_msg="the plain file comes first")
