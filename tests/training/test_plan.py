"""What a run is to be is judged and completed before anything is built, and said."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import call, refused, refused_before, succeeds
from PIL import Image
from tiny import QUICK_UNET, quick_model, tiny_autoencoder

from latentddpm.config import AutoencoderRun, DiffusionRun, TextConfig, UNetConfig
from latentddpm.config_file import dump_config, load_config, parse_config
from latentddpm.data.dataset import open_dataset
from latentddpm.diffusion.flow import FlowSchedule
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.denoisers.kinds import make_denoiser
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.discriminator import PatchDiscriminator
from latentddpm.models.perceptual import SMALLEST_SIDE
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.training.plan import resolve, sizes
from latentddpm.training.plan.cost import Cost, cost_of, plan_note, smaller_plan
from latentddpm.training.plan.inherit import inherit_config
from latentddpm.training.plan.plan import plan_diffusion, plan_vae
from latentddpm.training.plan.settle import settle_diffusion, settle_vae
from latentddpm.utils.timing import duration


def pictures(folder, count=8, size=(28, 28), captions=False):
    """A folder of pictures, with a table of captions beside them."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(json.dumps({"file_name": f"{number}.png", "text": f"thing {number}"}))
    if captions:
        (folder / "metadata.jsonl").write_text("\n".join(rows), "utf-8")
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Pictures of 28×28 pixels, `bare` and `captioned`; models, autoencoders with and without a
    size.
    """
    lab = tmp_path_factory.mktemp("lab")
    pictures(lab / "bare")
    pictures(lab / "captioned", captions=True)
    autoencoder = tiny_autoencoder(channel_multipliers=(1, 1), num_res_blocks=0)
    for name, size in (("vae", (32, 32)), ("sizeless", None)):
        LatentDiffusion(autoencoder, None, None, image_size=size).save(lab / name)
    quick_model().save(lab / "model")
    wordless = quick_model(text=False)
    wordless.save(lab / "wordless")
    wordless.schedule = FlowSchedule()
    wordless.save(lab / "flow")
    for name, channels in (("pixels", 3), ("gray", 1)):
        unet = UNet(8, **QUICK_UNET, num_heads=2, norm_groups=4, latent_channels=channels)
        space = PixelSpace(channels)
        LatentDiffusion(space, unet, NoiseSchedule(), image_size=(8, 8)).save(lab / name)
    (lab / "file").write_text("x", "utf-8")
    (lab / "emoji.yaml").write_text(yaml.safe_dump({"unet": {"channels": 32}}), "utf-8")
    return lab


def diffusion(lab, tmp_path, settings=None, data="captioned", vae="vae", **options):
    vae = vae if vae in (None, "none") else lab / vae
    return plan_diffusion(settings or {}, lab / data, vae, tmp_path / "run", quiet=True, **options)


# --- Sizes that are not given --------------------------------------------------------------


def test_a_unet_takes_the_autoencoder_s_size(lab, tmp_path):
    config = diffusion(lab, tmp_path).run.config
    assert config.data.resolution == 32, f"{config.data.resolution}, expected the autoencoder's"
    assert config.unet.channel_multipliers == [1, 2, 3], "expected levels that latents of 16 allow"
    assert config.unet.attention_levels == [1, 2], "expected attention below the first level"


def test_without_the_autoencoder_s_size_it_takes_the_data_s(lab, tmp_path):
    config = diffusion(lab, tmp_path, vae="sizeless").run.config
    assert config.data.resolution == 28, f"{config.data.resolution}, expected the data's"


def test_small_pictures_are_not_enlarged(lab, tmp_path):
    config = plan_vae({}, lab / "bare", tmp_path / "run", quiet=True).run.config
    assert config.data.resolution == 28, f"{config.data.resolution}, expected the data's 28"
    assert config.autoencoder.channel_multipliers == [1, 2], "expected latents of 14×14"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"data": {"resolution": 64}}, (64, [1, 2, 4])),
        ({"data": {"resolution": 128}}, (128, [1, 2, 4])),
        ({"data": {"resolution": 256}}, (256, [1, 2, 4, 4])),
        ({"autoencoder": {"channel_multipliers": [1, 1, 1, 1]}}, (24, [1, 1, 1, 1])),
        ({"data": {"resolution": None}}, (28, [1, 2])),
    ],
)
def test_what_is_given_stays(lab, tmp_path, given, expected):
    config = plan_vae(given, lab / "bare", tmp_path / "run", quiet=True).run.config
    found = config.data.resolution, config.autoencoder.channel_multipliers
    assert found == expected, f"{given}: {found}, expected {expected}"


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1000, 700), 256), ((256, 256), 256), ((72, 72), 64), ((137, 200), 128), ((28, 28), 28)],
)
def test_the_resolution_of_data(tmp_path, size, expected):
    folder = pictures(tmp_path / "data", count=2, size=size)
    catalog = open_dataset(folder, tmp_path / "catalog", quiet=True).catalog
    assert resolve.resolution_of(catalog) == expected, f"{size}: expected {expected}"
    assert resolve.resolution_of(catalog, 8) % 8 == 0, f"{size}: expected a multiple of 8"


def test_levels_fit_every_resolution_that_data_may_have():
    for side in [*range(4, 32, 4), *range(32, 64, 8), *range(64, 1040, 16)]:
        levels = resolve.autoencoder_levels(side)
        factor = sizes.factor_of(levels)
        assert side % factor == 0, f"{side}: {levels} do not divide it"
        unet = resolve.unet_levels(side // factor)
        lowest = side // factor / sizes.factor_of(unet)
        assert lowest >= 4 or len(unet) == 1, f"{side}: {unet} leave {lowest} positions"
        attention = resolve.attention_levels(len(unet), side // factor)
        sizes.check_unet(UNetConfig(channel_multipliers=unet, attention_levels=attention))
    expected = list(resolve.AUTOENCODER_LEVELS), list(resolve.UNET_LEVELS["unet"][0])
    assert (levels, unet) == expected, "expected Stable Diffusion's levels for large images"


def test_a_kind_of_network_decides_what_a_run_may_set(tmp_path):
    """Its sizes, text, a LoRA: each refused by name, before Keras is needed."""
    with pytest.raises(UserError, match=r"text.source: 'scratch', but .* takes no t"):
        sizes.check_text(TextConfig(source="scratch"), "basic")
    model = quick_model(text=False)
    model.unet = make_denoiser(
        "classic", latent_channels=4, channels=2, channel_multipliers=[1, 2]
    )
    model.save(tmp_path / "m")
    base = read_model_folder(tmp_path / "m")

    def inherited(**given):
        return inherit_config(parse_config(DiffusionRun, given), base).unet.model_dump()

    expected = {"kind": "classic", "channels": 2, "channel_multipliers": [1, 2]}
    assert inherited() == expected, f"{inherited()}, expected {expected}"
    for given, message in (
        ({"unet": {"num_heads": 2}}, "unet.num_heads: not a setting of unet.kind=classic"),
        ({"unet": {"kind": "basic"}}, "unet.kind: 'basic', but .* has 'classic'"),
        ({"lora": {"rank": 2}}, "lora.rank: a LoRA changes attention, and .* has none"),
    ):
        with pytest.raises(UserError, match=message):
            inherited(**given)


def test_a_scale_and_a_shift_by_the_timestep_are_those_of_the_model(tmp_path):
    model = quick_model(text=False)
    small = {**QUICK_UNET, "norm_groups": 4}
    for found in (False, True):
        model.unet = UNet(8, **small, time_scale_shift=found)
        model.save(tmp_path / str(found))
        base = read_model_folder(tmp_path / str(found))
        assert inherit_config(DiffusionRun(), base).unet.time_scale_shift is found
        other = parse_config(DiffusionRun, {"unet": {"time_scale_shift": not found}})
        with pytest.raises(UserError, match=f"unet.time_scale_shift: .* has {found}"):
            inherit_config(other, base)


@pytest.mark.parametrize("kind", ["classic", "basic"])
def test_the_cost_of_a_kind_is_that_of_its_convolutions(kind):
    """Multiply-adds of a network, counted by its kernels, within a third."""
    given = {"channels": 8, "channel_multipliers": [1, 2, 2]} if kind == "classic" else {}
    config = parse_config(
        DiffusionRun, {"unet": {"kind": kind, **given}, "data": {"resolution": 32}}
    )
    network = make_denoiser(kind, latent_channels=4, **config.unet.arguments)
    counted = 0
    for layer in network.layers:
        kernels = [one for one in layer.weights if one.path.endswith("kernel")]
        if kernels and len(kernels[0].shape) == 4:
            level = next((int(part) for part in layer.name.split("_") if part.isdigit()), 0)
            side = 32 >> (2 if "bottom" in layer.name else level)
            counted += side**2 * np.prod(kernels[0].shape)
    found = cost_of(config).multiply_adds
    assert 2 / 3 < found / counted < 3 / 2, f"{found:.3g} estimated, {counted:.3g} counted"


def test_the_config_of_a_run_says_it_all_and_gives_the_same(lab, tmp_path):
    plan = diffusion(lab, tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(plan.run.config), "utf-8")
    text = file.read_text("utf-8").replace("trainable: null", "")
    for of_some in ("window", "rate", "guidance_scale"):
        text = text.replace(f"{of_some}: null", "")
    assert "null" not in text, "still open"
    again = plan_diffusion(file, lab / "captioned", lab / "vae", tmp_path / "b", quiet=True)
    assert again.run.config == plan.run.config, "the resolved settings give other ones"
    assert again.notes == [], f"{again.notes}: expected nothing that was left open"


def test_a_resumed_run_keeps_what_it_was_started_with(lab, tmp_path):
    """One of an earlier version, too, whose defaults were others."""
    run = tmp_path / "run"
    run.mkdir()
    earlier = {
        "data": {"resolution": 64},
        "unet": {"channel_multipliers": [1, 2, 3, 4], "attention_levels": [1, 2, 3]},
        "text": {"source": "none"},
    }
    (run / "config.yaml").write_text(dump_config(parse_config(DiffusionRun, earlier)), "utf-8")
    config = diffusion(lab, tmp_path, resume=True).run.config.model_dump()
    for section, values in earlier.items():
        assert config[section].items() >= values.items(), f"{section}: {config[section]}"


# --- Pixels --------------------------------------------------------------------------------


def test_without_an_autoencoder_the_sizes_follow_from_the_pixels(lab, tmp_path):
    plan = diffusion(lab, tmp_path, vae="none")
    config, stage = plan.run.config, plan.sources.first_stage
    assert config.data.resolution == 28, f"{config.data.resolution}, expected the data's"
    assert config.unet.channel_multipliers == [1, 2, 3], "expected 28 → 14 → 7"
    assert stage.downsample_factor == 1, "expected that of pixels"
    assert stage.latent_channels(config.data) == 3, "expected the channels of the pixels"
    assert plan.latents is None, f"a latents cache {plan.latents}"
    assert (tmp_path / "run" / "catalog").is_dir(), "expected the catalog in the run's folder"
    assert plan.facts["autoencoder"] == "none", f"{plan.facts}: expected no digest"


@pytest.mark.parametrize(
    ("side", "levels", "attention"),
    [(256, 4, [3]), (64, 4, [1, 2, 3]), (64, 1, [0]), (16, 2, [1])],
)
def test_attention_stays_where_there_are_few_positions(side, levels, attention):
    assert resolve.attention_levels(levels, side) == attention


def test_a_model_of_pixels_goes_on_from_its_own(lab, tmp_path):
    """Also where it is said again; a folder called `none` is no word."""
    settings = {"init": str(lab / "pixels")}
    for vae in (None, "none"):
        plan = diffusion(lab, tmp_path, settings, data="bare", vae=vae)
        assert plan.sources.first_stage.digest == "none", "expected pixels"
        assert plan.run.config.data.resolution == 8, "expected the model's size"
    with pytest.raises(UserError, match="none: no such model folder"):
        plan_diffusion({}, lab / "bare", Path("none"), tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--vae none --init model", "was trained on latents; leave --vae out"),
        ("--vae vae --init pixels", "was trained on pixels, without an autoencoder; leave --vae"),
        ("--vae pixels", "--vae none trains on pixels from scratch, --init pixels goes on"),
        ("--init gray", "RGB, but the model is gray: its colour would be lost"),
        ("--vae none --latents q", "--latents q: this run trains on pixels, which are not cached"),
    ],
)
def test_what_does_not_fit_pixels_is_refused(lab, monkeypatch, options, said):
    monkeypatch.chdir(lab)
    refused(call("train-diffusion", "--data", "bare", "--out", "q", *options.split()), said)


# --- Captions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "settings", "source", "note"),
    [
        ("captioned", {}, "scratch", "text.source scratch (the data has captions)"),
        ("bare", {}, "none", "none in the data: an unconditional model"),
        ("captioned", {"text": {"source": "none"}}, "none", "of the data are left aside"),
        ("bare", {"text": {"source": "none"}}, "none", "none wanted, and none there"),
        ("bare", {"data": {"caption_templates": ["a cat"]}}, "scratch", "has captions"),
    ],
)
def test_captions_are_used_and_leaving_them_is_said(lab, tmp_path, data, settings, source, note):
    plan = diffusion(lab, tmp_path, settings, data=data)
    assert plan.run.config.text.source == source, f"{plan.run.config.text.source}"
    assert note in "\n".join(plan.notes), f"{plan.notes}: expected {note!r}"


def test_a_run_takes_the_kind_of_schedule_of_its_model(lab, tmp_path):
    for name, kind, predicts in (("wordless", "ddpm", "epsilon"), ("flow", "flow", "velocity")):
        plan = diffusion(lab, tmp_path, {"init": str(lab / name)}, vae=None)
        schedule = plan.run.config.schedule
        found = schedule.kind, schedule.prediction_type
        assert found == (kind, predicts), f"{name}: {schedule}"


def test_a_model_without_words_leaves_captions_aside(lab, tmp_path):
    plan = diffusion(lab, tmp_path, {"init": str(lab / "wordless")}, vae=None)
    assert "has no text encoder" in "\n".join(plan.notes), f"{plan.notes}: expected why"


# --- Refused at once -----------------------------------------------------------------------

TRAIN_VAE = "train-vae --data bare --out q"
TRAIN_UNET = "train-diffusion --data captioned --vae vae --out q"
FLOW = "--set schedule.kind=flow --set schedule.prediction_type=velocity"
EARLY = [
    "train-diffusion --data captioned --out q",
    "train-diffusion --data nowhere --vae vae --out q",
    "train-diffusion --data captioned --vae nowhere --out q",
    "train-diffusion --data captioned --vae vae --out file/q",
    "train-diffusion --data bare --vae vae --out q --set text.source=scratch",
    "train-diffusion --data bare --init model --out q",
    "train-diffusion --data captioned --init vae --out q",
    "train-diffusion --data captioned --init model --out q --set unet.channels=32",
    f"{TRAIN_UNET} --latents file",
    f"{TRAIN_UNET} --catalog file",
    f"{TRAIN_UNET} --strategy two",
    f"{TRAIN_UNET} --set unet.norm_groups=7",
    f"{TRAIN_UNET} --set unet.channels=33",
    f"{TRAIN_UNET} --set unet.num_heads=7",
    f"{TRAIN_UNET} --set unet.num_heads=[1,2]",
    f"{TRAIN_UNET} --set unet.num_res_blocks=0",
    f"{TRAIN_UNET} --set unet.attention_levels=[9]",
    f"{TRAIN_UNET} --set data.resolution=33",
    f"{TRAIN_UNET} --set data.aspect_buckets=true --set data.bucket_step=5",
    f"{TRAIN_UNET} --set text.num_heads=7",
    f"{TRAIN_UNET} --set text.source=clip",
    f"{TRAIN_UNET} --set text.source=clip --set text.path=nowhere",
    f"{TRAIN_UNET} --set text.source=init",
    f"{TRAIN_UNET} --set text.source=scratch --set text.trainable=false",
    f"{TRAIN_UNET} --set lora.rank=4",
    f"{TRAIN_UNET} --set samples.sampler=dimm",
    f"{TRAIN_UNET} --set samples.num_steps=2000",
    f"{TRAIN_UNET} --set schedule.beta_start=0.5",
    f"{TRAIN_UNET} --set schedule.rescale_zero_terminal_snr=true",
    f"{TRAIN_UNET} --set schedule.beta_end=0.9",
    f"{TRAIN_UNET} --set schedule.shift=3",
    f"{TRAIN_UNET} --set schedule.prediction_type=velocity",
    f"{TRAIN_UNET} {FLOW} --set schedule.prediction_type=epsilon",
    f"{TRAIN_UNET} {FLOW} --set schedule.beta_end=0.1",
    f"{TRAIN_UNET} {FLOW} --set samples.sampler=pndm",
    f"{TRAIN_UNET} {FLOW} --set training.min_snr_gamma=5",
    f"{TRAIN_UNET} --set data.validation_fraction=0 --set training.keep_best=true",
    "train-vae --data nowhere --out q",
    "train-vae --data bare --out file",
    "train-vae --data bare --out q --init nowhere",
    f"{TRAIN_VAE} --config emoji.yaml",
    f"{TRAIN_VAE} --set autoencoder.norm_groups=7",
    f"{TRAIN_VAE} --set data.resolution=33",
    f"{TRAIN_VAE} --set training.train=decoder",
    f"{TRAIN_VAE} --set training.best_metric=perceptual",
    f"{TRAIN_VAE} --set perceptual.source=nowhere.h5",
    f"{TRAIN_VAE} --set adversarial.weight=1 --set discriminator.num_layers=5",
    f"{TRAIN_VAE} --set adversarial.weight=1 --set discriminator.norm_groups=48",
    "encode --data nowhere --vae vae --out q",
    "encode --data bare --vae nowhere --out q",
    "encode --data bare --vae vae --out file/q",
    "encode --data bare --vae vae --out q --resolution 33",
    "encode --data bare --vae sizeless --out q",
    "encode --data bare --vae vae --out q --strategy two",
    "evaluate --model vae --data nowhere",
    "evaluate --model flow --data bare --nll",
    f"{TRAIN_UNET} --distill lcm",
    "train-diffusion --data captioned --out q --init model --distill lmc",
    "train-diffusion --data captioned --out q --init flow --distill lcm",
    "train-diffusion --data captioned --out q --init model --distill lcm"
    " --set distill.solver_steps=2000",
    "train-diffusion --data captioned --out q --init model --distill lcm"
    " --set text.trainable=true",
    "train-diffusion --data captioned --out q --init model --distill lcm"
    " --set training.min_snr_gamma=5",
    "train-diffusion --data captioned --out q --init model --distill lcm"
    " --set distill.guidance_scale=[4,2]",
    "train-diffusion --data captioned --out q --init wordless --distill lcm"
    " --set distill.guidance_scale=[1,2]",
    "generate --model flow --sampler pndm",
    "generate --model flow --sampler lcm",
    "generate --model model --sampler lcm --steps 8 --original-steps 4",
    "generate --model wordless --sampler euler --shift 3",
    "train-diffusion --data bare --out q --init wordless --set schedule.kind=flow",
    "evaluate --model nowhere --data bare",
    "evaluate --model vae --data bare --split validation --validation-fraction 0",
    "evaluate --model vae --data bare --extractor nowhere.keras",
    "evaluate --model vae --data bare --perceptual nowhere.h5",
    "evaluate --model vae --data bare --latents --out q --projection pca",
    "evaluate --model model --data bare --generator --extractor hed --out q --num-images 5",
    "evaluate --model model --data bare --generator --extractor hed --out q --caption-template {",
    "evaluate --model model --data bare --generator --extractor hed --out q --clip nowhere",
]


def test_what_needs_no_network_is_refused_before_keras(lab):
    refused_before("keras", [line.split() for line in EARLY], lab)
    left = {path.name for path in (lab / "q").rglob("*")} - {"latents", "catalog"}
    left = {name for name in left if name.endswith((".keras", ".yaml"))}
    assert not left, f"a refused run left {left}"


@pytest.mark.parametrize("widths", range(12))
def test_the_rules_are_those_of_the_networks(widths):
    """Random sizes: what is refused early is what the network refuses, and the other way round."""
    draw = random.Random(widths)
    levels = draw.choice((1, 2))
    settings = {
        "channels": draw.choice((4, 6, 8)),
        "channel_multipliers": [draw.choice((1, 2)) for _ in range(levels)],
        "norm_groups": draw.choice((2, 4, 3)),
        "num_res_blocks": 1,
    }
    unet = {
        **settings,
        "attention_levels": draw.choice(([], [0], [1], [0, 1])),
        "num_heads": draw.choice((1, 2, 4, 3, [1, 2])),
    }
    judged = [
        (lambda: sizes.check_unet(UNetConfig(**unet)), lambda: UNet(**unet)),
        (lambda: settle_vae(vae_run(autoencoder=settings)), lambda: Autoencoder(**settings)),
    ]
    for early, late in judged:
        assert accepts(early) == accepts(late), f"{unet}: judged in two ways"


def accepts(function):
    try:
        function()
    except ValueError:
        return False
    return True


def vae_run(**sections):
    return parse_config(AutoencoderRun, {"data": {"resolution": 32}, **sections})


@pytest.mark.parametrize("groups", [2, 3, 8])
@pytest.mark.parametrize("norm", ["group", "instance", "none"])
def test_the_rules_of_the_discriminator(norm, groups):
    own = {"channels": 4, "num_layers": 2, "norm": norm, "norm_groups": groups}
    config = vae_run(adversarial={"weight": 1.0}, discriminator=own)
    found = accepts(lambda: settle_vae(config)), accepts(lambda: PatchDiscriminator(**own))
    assert found[0] == found[1], f"{own}: judged in two ways"


def test_the_perceptual_distance_s_smallest_side_is_the_network_s():
    assert sizes.SMALLEST_PERCEPTUAL == SMALLEST_SIDE, "expected VGG16's"
    with pytest.raises(UserError, match="at least 16, got 8"):
        settle_vae(vae_run(data={"resolution": 8}, perceptual={"source": "hed"}))


@pytest.mark.parametrize(
    ("override", "nearest"),
    [("norm_groups=7", "nearest valid: 8"), ("num_heads=7", "8"), ("channels=33", "32 or 34")],
)
def test_the_nearest_valid_choice_is_valid(lab, override, nearest):
    def judge(text):
        return settle_diffusion(load_config(DiffusionRun, None, (f"unet.{text}",)), lab / "vae")

    with pytest.raises(UserError, match=nearest) as caught:
        judge(override)
    choice = str(caught.value).rpartition("nearest valid: ")[2].split(" or ")[0]
    judge(f"{override.partition('=')[0]}={choice}")


# --- What it takes -------------------------------------------------------------------------


ON_PIXELS = "--vae none --set unet.channel_multipliers=[1] --set text.source=none"


@pytest.mark.parametrize(
    "command", ["train-vae", "train-diffusion --vae vae", f"train-diffusion {ON_PIXELS}"]
)
def test_a_dry_run_says_all_sizes_and_leaves_nothing(lab, command, tmp_path, monkeypatch):
    monkeypatch.chdir(lab)
    tiny = {"channels": 8, "norm_groups": 4, "num_res_blocks": 1}
    own = {"unet": {**tiny, "num_heads": 2}} if "unet" in command else {}
    own = own or {("unet" if "diffusion" in command else "autoencoder"): dict(tiny)}
    if "unet" in own:
        own["unet"]["num_heads"] = 2
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(own), "utf-8")
    out = tmp_path / "out"
    line = f"{command} --data captioned --out {out} --config {tmp_path / 'tiny.yaml'} --dry-run"
    done = succeeds(call(*line.split()))
    found = yaml.safe_load(done.stdout)
    assert found["data"]["resolution"] in (28, 32), "expected a resolution"
    assert "auto" not in done.stdout.replace("autoencoder", ""), "expected text or none"
    assert not out.exists(), "a dry run left a folder"


def large(**training):
    return vae_run(data={"resolution": 256}, training=training)


def test_a_plan_that_takes_months_is_said_with_smaller_ones():
    config, _ = settle_vae(large())
    note = plan_note(config, cost_of(config), speed=1e11, memory=8 << 30)
    for words in ("years by estimate", "GB of memory", "8.59 GB are free", "small-64-vae"):
        assert words in note, f"{note!r}: expected {words!r}"
    smaller = note.rpartition(", or --set ")[2].split(" --set ")
    config, _ = settle_vae(load_config(AutoencoderRun, None, tuple(smaller)))
    assert cost_of(config).multiply_adds < 1e10, "the smaller plan is not small"
    assert "num_steps" in smaller_plan(config), "expected fewer steps where all else is small"


def test_a_plan_for_pixels_gets_advice_for_pixels():
    config, _ = settle_diffusion(parse_config(DiffusionRun, {"data": {"resolution": 256}}), "none")
    note = plan_note(config, cost_of(config), speed=1e11, memory=8 << 30)
    assert "small-64" not in note, f"{note!r}: expected no configuration for latents"
    smaller = tuple(note.rpartition("smaller: --set ")[2].split(" --set "))
    config, _ = settle_diffusion(load_config(DiffusionRun, None, smaller), "none")
    assert cost_of(config).multiply_adds < 1e10, f"{smaller}: not small"


def test_a_network_without_blocks_has_a_cost(lab):
    """Sizes of a model to start from are those it has."""
    config, _ = settle_diffusion(parse_config(DiffusionRun, {"init": str(lab / "model")}), None)
    assert config.unet.num_res_blocks == 0, "expected the model's"
    assert cost_of(config, 2).multiply_adds > 0, "expected a cost"


def test_a_small_plan_needs_no_note():
    config, _ = settle_vae(load_config(AutoencoderRun, None, ("data.resolution=16",)))
    assert plan_note(config, Cost(1e6, 1e6), speed=1e11, memory=8 << 30) == "", "no note expected"


def test_memory_alone_is_a_note_with_a_remedy_that_fits():
    config, _ = settle_vae(large(num_steps=1))
    cost = cost_of(config)
    note = plan_note(config, cost, speed=1e15, memory=8 << 30)
    steps = int(note.partition("accumulation_steps=")[2].partition(")")[0])
    held = -(-config.training.batch_size // steps)
    assert 4 * cost.numbers * held <= 8 << 30, f"{note!r}: {held} at a time do not fit either"
    assert "estimate" not in note, f"{note!r}: a single step does not take long"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 seconds"), (90, "90 seconds"), (3000, "50 minutes"), (9e4, "25 hours")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text, f"{seconds} s: {duration(seconds)}, expected {text}"
