"""Runs that start from a finished model: what they take from it, keep of it, and refuse."""

from functools import partial

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from tiny import AUTOENCODER, SIZE, UNET, few_emoji, tiny_autoencoder, tiny_model

from latentddpm import interop
from latentddpm.cli import main
from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.config_file import load_config
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.interop.convert import convert_from
from latentddpm.models.archive import load_archive
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.training import autoencoder_networks, diffusion
from latentddpm.training.diffusion_networks import build_networks
from latentddpm.training.plan.first_stage import AutoencoderStage
from latentddpm.training.plan.settle import settle_vae
from latentddpm.training.plan.sources import Sources, read_sources
from latentddpm.training.step.denoising_trainer import DenoisingTrainer


def autoencoder(seed=0):
    return tiny_autoencoder(seed, channel_multipliers=(1, 2))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with `data` (ten emoji) and `base` (a model that predicts v)."""
    lab = tmp_path_factory.mktemp("lab")
    few_emoji(lab / "data")
    model = tiny_model()
    model.autoencoder = autoencoder()
    model.schedule = type(model.schedule)("cosine", prediction_type="v_prediction")
    model.defaults |= {"sampler": "ddim", "sampler_options": {"eta": 0.5}, "num_steps": 2}
    model.save(lab / "base")
    return lab


@pytest.fixture(scope="module")
def base(lab):
    return LatentDiffusion.load(lab / "base")


FLOAT32 = "training.precision=float32"


def settings(lab, *overrides, kind=DiffusionRun):
    return load_config(kind, None, (FLOAT32, *overrides), init=lab / "base")


def weights(network):
    return [np.asarray(value) for value in network.get_weights()]


def same(found, expected, what):
    for one, other in zip(weights(found), weights(expected), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=f"{what}: other weights")


def refused(lab, *overrides, vae=None, kind=DiffusionRun):
    config = settings(lab, *overrides, kind=kind)
    build = partial(read_sources, vae=vae)
    if kind is AutoencoderRun:
        build = settle_vae
    with pytest.raises(UserError) as caught:
        build(config)
    assert "\n" not in str(caught.value), f"expected one line, got {caught.value}"
    return str(caught.value)


# --- What is taken from the model ----------------------------------------------------------


def test_what_a_configuration_leaves_out_is_the_models(lab):
    config, sources = read_sources(settings(lab), None)
    assert sources.first_stage.folder.path == lab / "base", "expected the model's own autoencoder"
    found = config.unet.model_dump()
    expected = {k: list(v) if isinstance(v, tuple) else v for k, v in UNET.items()}
    del expected["zero_init"]
    expected |= {
        "kind": "unet",
        "dropout": 0.0,
        "time_scale_shift": False,
        "recompute": False,
    }  # how it is trained: the configuration's
    assert found == expected, f"sizes of the UNet: {found}"
    assert config.schedule.prediction_type == "v_prediction", "expected the model's schedule"
    assert config.schedule.beta_schedule == "cosine", "expected the model's schedule"
    assert (config.text.source, config.text.trained) == ("init", False), "a text encoder to keep"
    assert (config.text.hidden_dim, config.text.context_length) == (16, 16), "its sizes"
    assert config.data.resolution == SIZE[0], "expected the size it was trained at"
    assert config.samples.num_steps == 2, "expected its defaults of sampling"
    assert config.samples.guidance_scale == 3.0, "expected its defaults of sampling"
    again = load_config(DiffusionRun, None, (FLOAT32,), init=lab / "base")
    assert again == settings(lab), "reading a configuration changed it"


def test_a_resolved_configuration_is_one_that_starts_the_run(lab, tmp_path):
    config, _ = read_sources(settings(lab), None)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump()), "utf-8")
    again, _ = read_sources(load_config(DiffusionRun, path), None)
    assert again == config, "config.yaml of a run starts another run"


def test_what_has_no_weights_may_differ(lab):
    overrides = ("data.resolution=48", "unet.dropout=0.1", "samples.sampler=unipc")
    config, sources = read_sources(settings(lab, *overrides), None)
    assert (config.data.resolution, config.unet.dropout) == (48, 0.1), "overrides were dropped"
    defaults = diffusion.sampling_defaults(config, sources.base)
    assert defaults["sampler"] == "unipc", "expected the sampler that was asked for"
    assert "sampler_options" not in defaults, "ddim's eta beside another sampler"
    kept = diffusion.sampling_defaults(read_sources(settings(lab), None)[0], sources.base)
    assert kept["sampler_options"] == {"eta": 0.5}, "expected the model's own options"


def test_networks_start_as_the_models(lab, base):
    config, sources = read_sources(settings(lab, "unet.dropout=0.1"), None)
    unet, text_encoder, tokenizer = build_networks(config, sources)
    same(unet, base.unet, "UNet")
    same(text_encoder, base.text_encoder, "text encoder")
    assert tokenizer.context_length == 16, "expected the model's tokenizer"
    assert unet.get_config()["dropout"] == 0.1, "expected the dropout that was asked for"
    model = DenoisingTrainer(unet, NoiseSchedule(), text_encoder)
    trained, expected = len(model.trainable_variables), len(unet.weights)
    assert trained == expected, f"{trained} variables train, expected the UNet's {expected}"
    config, sources = read_sources(settings(lab, "text.trainable=true"), None)
    unet, text_encoder, _ = build_networks(config, sources)
    model = DenoisingTrainer(unet, NoiseSchedule(), text_encoder)
    assert len(model.trainable_variables) == len(model.weights), "expected all to train"


def test_bfloat16_keeps_the_weights(lab):
    config, sources = read_sources(settings(lab, "training.precision=bfloat16"), None)
    unet = build_networks(config, sources)[0]
    same(unet, load_archive(sources.base.file("unet"), UNet), "UNet")
    assert unet.get_layer("time_0").compute_dtype == "bfloat16", "expected bfloat16 to compute in"


def test_train_vae_starts_from_a_models_autoencoder(lab):
    config, _ = settle_vae(settings(lab, kind=AutoencoderRun))
    model = autoencoder_networks.build_autoencoder(config)
    same(model, autoencoder(), "autoencoder")
    assert config.autoencoder.channels == AUTOENCODER["channels"], "expected the model's sizes"
    assert config.data.resolution == SIZE[0], "expected the size it was trained at"
    text = refused(lab, "autoencoder.channels=16", kind=AutoencoderRun)
    assert "autoencoder.channels: 16" in text, f"{text}: the key is not named"


@pytest.mark.slow
def test_a_diffusers_folder_can_be_fine_tuned(base, tmp_path):
    interop.save_diffusers(base, tmp_path / "theirs")
    convert_from(tmp_path / "theirs", tmp_path / "ours")
    config = load_config(DiffusionRun, None, (FLOAT32,), init=tmp_path / "ours")
    config, sources = read_sources(config, None)
    assert config.schedule.prediction_type == "v_prediction", "expected the folder's schedule"
    unet, text_encoder, _ = build_networks(config, sources)
    same(unet, base.unet, "UNet")
    same(text_encoder, base.text_encoder, "text encoder")


# --- What is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("unet.channels=32", ("unet.channels: 32", "16")),
        ("unet.attention_levels=[0, 1]", ("unet.attention_levels: [0, 1]", "[1]")),
        ("schedule.prediction_type=epsilon", ("prediction_type: 'epsilon'", "'v_prediction'")),
        ("schedule.num_train_timesteps=500", ("num_train_timesteps: 500", "1000")),
        ("text.source=none", ("text.source: 'none'", "'init'")),
        ("text.context_length=77", ("text.context_length: 77", "16")),
    ],
)
def test_what_has_weights_may_not_differ(lab, override, words):
    text = refused(lab, override)
    missing = [word for word in (*words, str(lab / "base")) if word not in text]
    assert not missing, f"{text!r} does not name {missing}"


def test_the_models_own_settings_are_no_contradiction(lab):
    overrides = ("unet.channels=16", "text.source=scratch", "schedule.beta_schedule=cosine")
    config, _ = read_sources(settings(lab, *overrides), None)
    assert config.text.trained, "a text encoder that was made from scratch trains along again"


def test_another_autoencoder_is_refused(lab, tmp_path):
    other = LatentDiffusion(autoencoder(seed=3), None, None, image_size=SIZE)
    other.save(tmp_path / "vae")
    text = refused(lab, vae=tmp_path / "vae")
    assert str(tmp_path / "vae") in text, f"{text}: the folder is not named"
    assert "another autoencoder" in text, f"{text}: expected what is wrong"


def test_a_run_needs_an_autoencoder_from_somewhere():
    with pytest.raises(UserError, match="--vae"):
        read_sources(DiffusionRun(), None)
    with pytest.raises(UserError, match="--init"):
        read_sources(load_config(DiffusionRun, None, ("text.source=init",)), None)


def test_an_autoencoder_alone_is_no_model_to_start_from(lab, tmp_path):
    LatentDiffusion(autoencoder(), None, None, image_size=SIZE).save(tmp_path / "vae")
    with pytest.raises(UserError, match=r"unet\.keras"):
        read_sources(load_config(DiffusionRun, init=tmp_path / "vae"), None)


def test_a_text_encoder_from_scratch_has_to_train(lab):
    overrides = ("text.source=scratch", "text.trainable=false")
    config = load_config(DiffusionRun, None, (FLOAT32, *overrides))
    vae = read_model_folder(lab / "base")
    with pytest.raises(UserError, match=r"text\.trainable"):
        build_networks(config, Sources(AutoencoderStage(vae, {"latent_channels": 4})))


# --- A whole run ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_changes_the_unet_and_keeps_the_text_encoder(lab, tmp_path):
    training = {
        "num_steps": 2,
        "batch_size": 4,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        "validate_every": 2,
        "min_snr_gamma": 5.0,
        "offset_noise": 0.1,
    }
    path = tmp_path / "config.yaml"
    samples = {"prompts": ["red apple"], "images_per_prompt": 1, "num_steps": 1}
    path.write_text(yaml.safe_dump({"training": training, "samples": samples}), "utf-8")
    arguments = ("--init", lab / "base", "--config", path, "--out", tmp_path / "run")
    arguments = map(str, ("train-diffusion", "--data", lab / "data", *arguments))
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, f"expected exit code 0: {done.output}"
    base, made = read_model_folder(lab / "base"), read_model_folder(tmp_path / "run")
    assert made.parts["vae"]["digest"] == base.parts["vae"]["digest"], "another autoencoder"
    found, expected = (folder.parts["text_encoder"]["digest"] for folder in (made, base))
    assert found == expected, "a frozen text encoder changed"
    assert made.schedule == base.schedule, f"another schedule: {made.schedule}"
    trained, start = (load_archive(folder.file("unet"), UNet) for folder in (made, base))
    steps = [
        np.abs(np.asarray(one) - np.asarray(other)).max()
        for one, other in zip(trained.weights, start.weights, strict=True)
    ]
    assert min(steps) > 0, "a weight of the UNet was not trained"
    assert max(steps) < 5e-3, f"a weight moved by {max(steps)} in two steps of 1e-3"
    resolved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text("utf-8"))
    assert resolved["init"] == str(lab / "base"), "config.yaml does not say where it started"
    assert resolved["schedule"]["prediction_type"] == "v_prediction", "config.yaml: not resolved"
