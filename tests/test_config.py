"""Settings are read as meant, or refused in one line that says what would be right."""

from pathlib import Path

import pytest

from latentddpm.config import (
    AdversarialConfig,
    AutoencoderConfig,
    AutoencoderRun,
    DiffusionRun,
    DiscriminatorConfig,
    ScheduleConfig,
    UNetConfig,
)
from latentddpm.config_file import dump_config, load_config, parse_config
from latentddpm.errors import UserError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text, "utf-8")
    return path


def refused(kind=DiffusionRun, path=None, overrides=()):
    """The one line with which settings are refused."""
    with pytest.raises(UserError) as caught:
        load_config(kind, path, overrides)
    text = str(caught.value)
    assert "\n" not in text, f"expected one line, got {text!r}"
    return text


def names(text, *parts):
    missing = [part for part in parts if part not in text]
    assert not missing, f"{text!r} does not name {missing}"


# --- Reading -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads(path):
    kind = AutoencoderRun if "vae" in path.stem else DiffusionRun
    config = load_config(kind, path)
    assert config != kind(), f"{path.name} says nothing that differs from the defaults"


def test_there_are_shipped_configs():
    assert CONFIGS, "no file in configs/"


def test_nothing_given_means_the_defaults(tmp_path):
    assert load_config(DiffusionRun) == DiffusionRun(), "no file, no overrides: other values"
    assert load_config(DiffusionRun, write(tmp_path, "")) == DiffusionRun(), "an empty file"


def test_a_file_changes_what_it_says_and_nothing_else(tmp_path):
    path = write(tmp_path, "data:\n  resolution: 64\ntraining:\n  learning_rate: 1e-3\n")
    config = load_config(AutoencoderRun, path)
    expected = AutoencoderRun().model_dump()
    expected["data"]["resolution"], expected["training"]["learning_rate"] = 64, 1e-3
    assert config.model_dump() == expected, "other values than the file's two"


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("training.learning_rate=1e-4", "training", "learning_rate", 1e-4),
        ("training.learning_rate=2", "training", "learning_rate", 2.0),
        ("training.num_steps=1e5", "training", "num_steps", 100_000),
        ("unet.channel_multipliers=[1, 2]", "unet", "channel_multipliers", [1, 2]),
        ("unet.attention_levels=[]", "unet", "attention_levels", []),
        ("data.flip=true", "data", "flip", True),
        ("data.background=random", "data", "background", "random"),
        ('data.caption_templates=["{text}, {style}"]', "data", "caption_templates", None),
        ("text.path=/a/b=c", "text", "path", "/a/b=c"),
        ("text.path=", "text", "path", None),
        ("samples.prompts=['red apple', 'a: b']", "samples", "prompts", ["red apple", "a: b"]),
    ],
)
def test_overrides(override, section, key, value):
    if override == "text.path=":  # YAML reads nothing as null
        names(refused(overrides=(override,)), "text.path")
        return
    found = getattr(getattr(load_config(DiffusionRun, None, (override,)), section), key)
    value = ["{text}, {style}"] if value is None else value
    assert found == value, f"--set {override} gave {found!r}, expected {value!r}"
    assert type(found) is type(value), f"--set {override} gave a {type(found).__name__}"


def test_overrides_go_over_the_file_and_the_last_wins(tmp_path):
    path = write(tmp_path, "training:\n  seed: 1\n  batch_size: 8\n")
    config = load_config(DiffusionRun, path, ("training.seed=2", "training.seed=3"))
    found = config.training.seed, config.training.batch_size
    assert found == (3, 8), f"seed and batch size {found}, expected (3, 8)"


def test_what_is_dumped_loads_as_the_same(tmp_path):
    overrides = (
        "training.learning_rate=1.5e-7",
        "samples.prompts=['猫: \"a\"', '1e-4', 'yes', '']",
        "unet.attention_levels=[0]",
        "text.path='007'",
    )
    config = load_config(DiffusionRun, None, overrides)
    assert config.samples.prompts == ['猫: "a"', "1e-4", "yes", ""], "prompts were not kept"
    for each in (config, AutoencoderRun(), DiffusionRun()):
        again = load_config(type(each), write(tmp_path, dump_config(each)))
        assert again == each, f"{type(each).__name__} came back from its YAML with other values"


# --- Refusing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "training.batch_size=true",
        "training.learning_rate=yes",
        "unet.channel_multipliers=[1, true]",
        "text.path=on",
    ],
)
def test_true_is_no_number(override):
    names(refused(overrides=(override,)), override.split("=")[0], "True", "true or false")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.learning_rat=1", ("training.learning_rat", "did you mean 'learning_rate'?")),
        ("trainings.seed=1", ("trainings", "did you mean 'training'?", "schedule")),
        ("training.zzzzzz=1", ("unknown key training.zzzzzz", "known: num_steps")),
        ("unet.chanels=1", ("unet.chanels", "did you mean 'channels'?")),
        ("seed=1", ("unknown key seed",)),
    ],
)
def test_unknown_keys_name_the_nearest(override, parts):
    names(refused(overrides=(override,)), *parts)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.batch_size=0", ("training.batch_size", "greater than 0", "got 0")),
        ("training.batch_size=2.5", ("training.batch_size", "integer", "got 2.5")),
        ("training.batch_size=many", ("training.batch_size", "integer", "got 'many'")),
        ("training.learning_rate=nan", ("training.learning_rate", "got nan")),
        ("training.learning_rate=inf", ("training.learning_rate", "finite", "got inf")),
        ("training.seed=-1", ("training.seed", "greater than or equal to 0", "got -1")),
        ("training.condition_dropout=1.5", ("condition_dropout", "less than or equal to 1")),
        ("training.ema_momentum=1", ("training.ema_momentum", "less than 1", "got 1")),
        ("data.background=blue", ("data.background", "'white' or 'random'", "got 'blue'")),
        ("data.validation_fraction=1", ("data.validation_fraction", "less than 1")),
        ("text.context_length=78", ("text.context_length", "77", "got 78")),
        ("text.source=clap", ("text.source", "'clip'", "got 'clap'")),
        ("schedule.prediction_type=eps", ("schedule.prediction_type", "'epsilon'", "'eps'")),
        ("unet.channel_multipliers=[1, a]", ("unet.channel_multipliers.1", "got 'a'")),
        ("unet.channel_multipliers=3", ("unet.channel_multipliers", "list", "got 3")),
        ("unet.channel_multipliers=[]", ("unet.channel_multipliers", "at least 1")),
        ("unet.channel_multipliers=[1, 0]", ("unet.channel_multipliers.1", "greater than 0")),
        ("data=3", ("data", "got 3")),
    ],
)
def test_wrong_values_say_what_is_expected(override, parts):
    names(refused(overrides=(override,)), *parts)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("perceptual.weight=-1", ("perceptual.weight", "greater than or equal to 0", "got -1")),
        ("adversarial.weight=-0.5", ("adversarial.weight", "greater than or equal to 0")),
        ("adversarial.loss=wgan", ("adversarial.loss", "'hinge' or 'vanilla'", "got 'wgan'")),
        ("discriminator.norm=batch", ("discriminator.norm", "'group'", "got 'batch'")),
        ("discriminator.betas=[0.5]", ("discriminator.betas", "at least 2 items")),
        ("training.train=encoder", ("training.train", "'all' or 'decoder'", "got 'encoder'")),
    ],
)
def test_wrong_values_of_the_recipe(override, parts):
    names(refused(AutoencoderRun, overrides=(override,)), *parts)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_configuration_of_the_other_command_is_called_so(path):
    vae = "vae" in path.stem
    other, own = ("train-vae", "train-diffusion") if vae else ("train-diffusion", "train-vae")
    text = refused(DiffusionRun if vae else AutoencoderRun, path)
    names(text, path.name, f"this is one of {other}", f"a configuration of {own}")
    assert "did you mean" not in text, f"{text!r} guesses at a key"


@pytest.mark.parametrize(
    ("kind", "override", "other"),
    [
        (AutoencoderRun, "unet.channels=8", "train-diffusion"),
        (AutoencoderRun, "training.min_snr_gamma=5", "train-diffusion"),
        (AutoencoderRun, "data.aspect_buckets=true", "train-diffusion"),
        (DiffusionRun, "autoencoder.channels=8", "train-vae"),
        (DiffusionRun, "training.kl_weight=0.1", "train-vae"),
    ],
)
def test_a_setting_of_the_other_command_is_called_so(kind, override, other, tmp_path):
    own = {"training": {"reconstruction_loss" if kind is AutoencoderRun else "offset_noise": None}}
    path = write(tmp_path, "training: {num_steps: 3}\n")
    names(refused(kind, path, (override,)), f"one of {other}", override.partition("=")[0][:4])
    more = next(iter(own["training"]))
    value = "l1" if more == "reconstruction_loss" else 0.1
    text = refused(kind, path, (override, f"training.{more}={value}"))
    names(text, f"is a setting of {other}, not of ")


@pytest.mark.parametrize("override", ["training.seed", "=3", "", "training.seed 3"])
def test_an_override_needs_a_key_and_a_value(override):
    names(refused(overrides=(override,)), f"--set {override}", "section.key=value")


def test_an_override_cannot_go_below_a_value(tmp_path):
    path = write(tmp_path, "training: 3\n")
    names(refused(path=path, overrides=("training.seed=1",)), "training.seed=1", "not a section")
    names(refused(overrides=("training.seed=[1",)), "--set training.seed=[1", "not a YAML value")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("data: [", ("not YAML",)),
        ("- data\n", ("expected sections",)),
        ("just words", ("expected sections", "just words")),
        ("data:\n  1: 2\n", ("data.1",)),
        ("1: 2\n", ("1",)),
        ("data:\n  resolutoin: 64\n", ("data.resolutoin", "did you mean 'resolution'?")),
        ("training: !!python/object/apply:os.system ['touch executed']\n", ("not YAML",)),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, monkeypatch, text, parts):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, text)
    names(refused(path=path), str(path), *parts)
    assert not (tmp_path / "executed").exists(), "a YAML file has run a command"


def test_missing_and_undecodable_files_are_refused_by_name(tmp_path):
    names(refused(path=tmp_path / "no.yaml"), str(tmp_path / "no.yaml"), "no such config file")
    (tmp_path / "latin.yaml").write_bytes("data: caf\xe9".encode("latin-1"))
    names(refused(path=tmp_path / "latin.yaml"), "latin.yaml", "not YAML")


def test_the_source_is_named():
    with pytest.raises(UserError, match=r"^model\.yaml: unknown key x"):
        parse_config(AutoencoderRun, {"x": 1}, "model.yaml: ")


# --- The sections are the constructors -----------------------------------------------------


def test_sections_fit_the_constructors_they_feed():
    import inspect

    from latentddpm.diffusion.schedules import CLASSES, schedule_from_config
    from latentddpm.models.autoencoder.autoencoder import Autoencoder
    from latentddpm.models.denoisers.unet import UNet
    from latentddpm.models.discriminator import PatchDiscriminator
    from latentddpm.training.step.adversarial import Adversary

    of_its_optimizer = {"learning_rate", "betas"}
    for section, target, others in (
        (AutoencoderConfig, Autoencoder, set()),
        (AdversarialConfig, Adversary, set()),
        (DiscriminatorConfig, PatchDiscriminator, of_its_optimizer),
        (UNetConfig, UNet, {"kind"}),
    ):
        parameters = inspect.signature(target).parameters
        strangers = set(section.model_fields) - set(parameters) - others
        assert not strangers, f"{section.__name__}: {target.__name__} takes no {strangers}"
    for kind, schedule in CLASSES.items():
        found = set(ScheduleConfig(kind=kind).arguments()) - {"kind"}
        assert found == set(inspect.signature(schedule).parameters), f"{kind}: arguments {found}"
    default = schedule_from_config(ScheduleConfig().arguments()).get_config()
    expected = CLASSES["ddpm"]().get_config()
    assert default == expected, "the default schedule of a run is not the default NoiseSchedule"
