"""Runs what the pages show: every command line and every block of Python, at small sizes.

    python tests/run_pages.py [PAGE …]
    python tests/run_pages.py 1/2          half of the pages, by what they run; 2/2 the others

The pages share a folder with the files that their reader has: images with captions, the
configurations, finished runs, a ready model, other programs' weights. All of them are tiny; the
networks have the layers of the real ones. The lines run one after the other as they stand on
the page, but for what `SMALL` and `SHORT` change; `ELSEWHERE` lists what is not run, and why.
Each line is shown with its CPU seconds, and at the end those of each page, and the slowest lines.
"""

import collections
import contextlib
import functools
import heapq
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path
from unittest import mock

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
sys.path[:0] = [str(TESTS), str(TESTS / "support"), str(ROOT)]
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import yaml  # noqa: E402
from pages import FENCE, SHELLS, calls  # noqa: E402

from latentddpm.choices import DENOISERS  # noqa: E402

PAGES = [
    *("README.md", "docs/quickstart.md", "docs/index.md"),
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs/guides").glob("*.md")),
    "weights/emoji-128/README.md",
]

ELSEWHERE = {
    "--out run --time 1h": "takes a minute for each share; docs/guides/train.md has such a line",
    "tuxpaint": "wants a package of Debian, and an hour; that page has other lines of `train`",
    "gs://": "wants a bucket; tests/data/test_shards.py reads storage through fsspec",
    "multi-worker": "wants several processes; tests/distribution/test_multi_worker.py starts them",
    "--strategy mirrored": "wants a process of its own; tests/distribution/test_replicas.py",
    "inception": "is downloaded; tests/evaluation/test_extractors.py",
    "serve ": "goes on until a signal; tests/serve starts it and asks it what its page shows",
}
"""Words of a line that is not run here → why, and where what it shows is tested."""

LONGER = {
    "train": 8,
    "train-vae": 4,
    "train-diffusion": 4,
    "evaluate": 3,
    "export": 3,
    "python": 2,
}
"""Kind of a line → about how many times as long as the shortest it takes, to share the pages."""

BEFORE = {
    "saved_model.load": "export --model runs/vae --format saved-model --out exported",
}
"""Words of a block of Python → the command that makes what it reads."""

SMALL_CONFIG = {
    "data": {"resolution": 32},
    "autoencoder": {
        "channels": 8,
        "channel_multipliers": [1, 1],
        "num_res_blocks": 1,
        "norm_groups": 4,
    },
    "discriminator": {"channels": 8, "num_layers": 1, "norm_groups": 4},
    "unet": {
        "channels": 16,
        "channel_multipliers": [1],
        "num_res_blocks": 1,
        "attention_levels": [],  # the middle attends
        "num_heads": 2,
        "norm_groups": 4,
    },
    "text": {"hidden_dim": 16, "num_layers": 1, "num_heads": 2},
    "training": {
        "num_steps": 2,
        "batch_size": 4,
        "warmup_steps": 0,
        "precision": "float32",
        "validate_every": 2,
        "checkpoint_every": 2,
    },
    "samples": {"images_per_prompt": 1, "num_steps": 1},
}
"""Sizes of every configuration of `configs/`, and of trainings that name none."""

KEPT = "runs-of-the-readme"
"""Folder of copies of the runs that a page begins with."""

SMALL = {
    "train-vae": ("training", "data", "autoencoder"),
    "train-diffusion": ("training", "data", "unet", "text", "samples"),
    "train": ("vae.train-vae", "diffusion.train-diffusion"),
}
"""Sections of `SMALL_CONFIG` that a training without a configuration is given with `--set`."""

SHORT = (
    (r"\b(steps_per_epoch|epochs)=\d+", r"\1=1"),
    (r"\bnum_images=64\b", "num_images=4"),
    (r"\bchannels=64\b", "channels=32"),
    (r"\bnorm_groups=8\b", "norm_groups=4"),
    (
        r"\bUNet\(channels=32\)",
        "UNet(channels=16, norm_groups=4, channel_multipliers=(1,), attention_levels=())",
    ),
    (r"--(height|width) 2048", r"--\1 64"),
    (r"step-00010000", "step-00000002"),
    (r"--steps 20 --frames 6", "--steps 3 --frames 3"),
    (r"(num_steps=|--steps )\d\d+", r"\g<1>2"),
    (
        r"\bAutoencoder\(channels=32, channel_multipliers=\(1, 2, 4\)",
        "Autoencoder(channels=8, channel_multipliers=(1, 1, 1), num_res_blocks=1",
    ),
    (r"\bAutoencoder\(channels=16,", "Autoencoder(channels=8, num_res_blocks=1,"),
    (r'"training", 64, batch_size=16', '"training", 32, batch_size=4'),
    (r"\(128, 128\)", "(32, 32)"),
    (r"\(64, 0, 128, 128\)", "(16, 0, 32, 32)"),
    (r"generate (--model runs/sd15)", r"generate --steps 2 \1"),
    (r"--num-images (184|64|100)", "--num-images 6"),
    (r"prior\.num_images=\d+", "prior.num_images=2"),
    (r"generate (.* --label )", r"generate --steps 1 \1"),
    (r"steps=10,20", "steps=1,2"),
    (r" --(nll|denoise)", r" --\1 --limit 2"),
    (r" --latents", " --latents --limit 16"),
    (r"--validation-fraction 0.03", "--validation-fraction 0.2"),
)
"""Patterns in a block of Python, or a command line → what makes it short."""


def small_configurations(folder):
    """The files of `configs/`, with the sizes of `SMALL_CONFIG`."""
    folder.mkdir()
    for path in (ROOT / "configs").glob("*.yaml"):
        config = yaml.safe_load(path.read_text("utf-8"))
        for section, values in SMALL_CONFIG.items():
            if section == "unet" and section in config:
                taken = DENOISERS[config["unet"].get("kind", "unet")]
                values = {key: value for key, value in values.items() if key in taken}
            if section in config:
                config[section] = {**config[section], **values}
        if config.get("perceptual"):
            config["perceptual"]["source"] = "hed"
        (folder / path.name).write_text(yaml.safe_dump(config), "utf-8")


def files_of_a_reader(world):
    """What lies in the folder of somebody who has read the pages before."""
    from conftest import EMOJI
    from PIL import Image, ImageDraw
    from safetensors.numpy import save_file
    from sklearn.datasets import load_digits
    from tiny import assemble, few_emoji, tiny_autoencoder, tiny_lora
    from vgg import random_vgg16

    import latentddpm

    small_configurations(world / "configs")
    (world / "examples").symlink_to(ROOT / "examples")
    for name in ("photos", "emoji", "drawings", "portraits"):
        (world / name).mkdir()
        few_emoji(world / name, 40)
    for path in [*(world / "portraits").rglob("*.png")]:
        with Image.open(path) as image:
            Image.new("L", image.size, 255).save(path.with_suffix(".mask.png"))
    (world / "digits").mkdir()
    for number, digit in enumerate(load_digits().images[:40]):
        Image.fromarray(np.uint8(16 * digit)).save(world / "digits" / f"{number:04}.png")
    for name, never in {"labelled": 3, "labelled-1": 1}.items():
        some_labelled_digits(world / name, never)
    autoencoder = tiny_autoencoder(channel_multipliers=(1, 1))
    model = assemble(autoencoder, 0, True, {"channel_multipliers": (1,), "attention_levels": ()})
    model.save(world / "emoji-128")
    for name in ("weights/emoji-128", "runs/sd15", "runs/doubled"):
        shutil.copytree(world / "emoji-128", world / name)
    latentddpm.interop.save_diffusers(model, world / "stable-diffusion-v1-5")
    save_file(random_vgg16(), world / "vgg16.safetensors")
    (world / "runs/style").mkdir()
    for name in ("lora", "others", "runs/style/lora", "emoji-128/lcm"):
        tiny_lora(world / f"{name}.safetensors", width=16)
    shutil.copytree(TESTS / "golden/clip_towers/model", world / "clip-vit-base-patch32")
    picture = next((EMOJI / "images/noto").glob("*.png"))
    for name in ("apple.png", "face.png"):
        shutil.copy(picture, world / name)
    with Image.open(picture) as image:
        mask = Image.new("L", image.size)
    ImageDraw.Draw(mask).rectangle((8, 8, 40, 24), fill=255)
    for name in ("eyes", "hole"):
        mask.save(world / f"{name}.png")
    for name in ("cat", "drawing", "lines", "depth"):
        shutil.copy(picture, world / f"{name}.png")
    for name in ("left", "right"):
        mask.resize((32, 32)).save(world / f"{name}.png")
    told_models(world, model)
    pairs(world / "pairs")


@contextlib.contextmanager
def hub_of_a_reader(world):
    """A stub of Hugging Face's Hub with a model, a LoRA and a data set, and somebody logged in."""
    import hub_stub
    import pytest

    from latentddpm.data.pack import pack

    pack(world / "photos", world / "packed", kind="parquet", quiet=True)
    with pytest.MonkeyPatch.context() as patch, hub_stub.running() as hub:
        hub_stub.use(patch, hub, world / "cache", hub_stub.TOKEN)
        hub.add("me/emoji", world / "emoji-128")
        hub.add("me/style", {"lora.safetensors": (world / "lora.safetensors").read_bytes()})
        hub.add("me/photos", world / "packed", "datasets")
        yield


def told_models(world, model):
    """A model of digits that is told labels, and diffusers' ControlNet of a model of text."""
    import latentddpm
    from latentddpm.conditions.classes import ClassCondition
    from latentddpm.conditions.conditions import Conditions
    from latentddpm.interop.diffusers.control import save_control_net
    from latentddpm.models.autoencoder.pixel_space import PixelSpace
    from latentddpm.models.denoisers.control import hint_channels

    digit = Conditions((ClassCondition("digit", words=tuple("0123456789")),))
    unet = latentddpm.UNet(
        8,
        channel_multipliers=(1,),
        attention_levels=(),
        norm_groups=4,
        latent_channels=1,
        conditions=digit.specs(),
    )
    parts = PixelSpace(1), unet, latentddpm.NoiseSchedule()
    digits = latentddpm.LatentDiffusion(*parts, image_size=(32, 32), conditions=digit)
    digits.save(world / "runs/digits")
    hint = hint_channels(model.autoencoder.downsample_factor)
    control = latentddpm.ControlNet.from_unet(model.unet, hint_channels=hint)
    save_control_net(control, world / "sd-controlnet-canny")


def pairs(folder):
    """Emoji with a second picture each, named in the column `depth`."""
    from tiny import few_emoji

    folder.mkdir()
    few_emoji(folder, 10)
    table = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text("utf-8").splitlines()]
    for row in rows:
        row["depth"] = f"depth/{Path(row['file_name']).name}"
        (folder / "depth").mkdir(exist_ok=True)
        shutil.copy(folder / row["file_name"], folder / row["depth"])
    table.write_text("\n".join(map(json.dumps, rows)), "utf-8")


def some_labelled_digits(folder, never):
    """What `examples/labelled_digits.py --never …` writes, of the first of the digits."""
    sys.path.append(str(ROOT / "examples"))
    import labelled_digits

    images, labels, held_back = labelled_digits.course.digits(16)
    few = (images[:40], labels[:40], held_back[:40])
    with mock.patch.object(labelled_digits.course, "digits", return_value=few):
        labelled_digits.write_data(folder, never)


def run_command(words):
    """Run one command line in this process; its output is shown where it fails."""
    from command_line import call

    name, *arguments = [word for word in words if word not in ("…", "...")]
    if ">" in arguments:
        arguments = arguments[: arguments.index(">")]
    arguments = [part for word in arguments for part in expanded(word)]
    if name in SMALL and "--config" not in arguments:
        arguments += [f"--set={key}" for key in settings(name, "--init" in arguments)]
    if name.startswith("train-") or name == "generate":
        for option, value in missing(name, arguments):
            arguments += [option, value]
    if "--resume" not in arguments and "--out" in arguments and name != "evaluate":
        remove(arguments[arguments.index("--out") + 1])
    done = call(name, *arguments)
    if done.code:
        raise SystemExit(f"exit code {done.code}: {done.stderr.strip()}")


def remove(place):
    """Make room for a line that writes where one before it wrote."""
    place = Path(place)
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def expanded(word):
    """A word as the shell would hand it on: patterns of files become the files."""
    found = sorted(map(str, Path().glob(word))) if "*" in word else []
    return found or [word.replace("{000000..000199}", "000000")]


def settings(name, fine_tuning):
    """Settings of a training that make it small; a finished model has its own sizes."""
    if name == "train":
        for part, dot, command in (one.partition(".") for one in SMALL[name]):
            yield from (f"{part}{dot}{one}" for one in settings(command, fine_tuning))
        return
    for section in SMALL[name]:
        if fine_tuning and section not in ("training", "data", "samples"):
            continue
        for key, value in SMALL_CONFIG[section].items():
            yield f"{section}.{key}={value}"


def missing(name, arguments):
    """Options that an ellipsis on the page stands for."""
    needed = {"--data": "photos", "--vae": "runs/vae", "--out": "runs/new"}
    if name == "train-vae":
        del needed["--vae"]
    if name == "generate":
        needed = {"--prompt": "red apple"} if takes_words(arguments) else {}
    if "--init" in arguments:
        needed.pop("--vae", None)
    return [(option, value) for option, value in needed.items() if option not in arguments]


def takes_words(arguments):
    """True for a line of `generate` whose model takes a prompt that is not remembered."""
    if "--from" in arguments:
        return False
    model = arguments[arguments.index("--model") + 1] if "--model" in arguments else "emoji-128"
    manifest = next(Path(model).rglob("pipeline.json"), None)
    return manifest is None or "text_encoder" in manifest.read_text("utf-8")


def run_python(body, names):
    """Run one block of Python among the names of those before it."""
    for words, line in BEFORE.items():
        if words in body:
            run_command(shlex.split(line))
    for place in re.findall(r'(?:out=|export_model\(model, )"([^"]+)"', body):
        remove(place)
    exec(compile(body, "block", "exec"), names)


def names_of_a_reader(page):
    """Names that the blocks of a page use and that the text around them explains."""
    import keras
    import numpy as np
    import tensorflow as tf

    import latentddpm

    numbers = np.random.default_rng(0)
    pixels = numbers.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    images = (pixels / 127.5 - 1).astype(np.float32)
    noise = numbers.standard_normal((4, 8, 8, 4)).astype(np.float32)
    moments = numbers.standard_normal((4, 8, 8, 4)).astype(np.float32)
    inputs = {"noisy_latents": noise, "timesteps": np.arange(4.0, dtype=np.float32)}
    datasets = {
        "docs/guides/autoencoder.md": {"images": images, "noise": moments},
        "docs/guides/distributed.md": (inputs, noise),
    }
    dataset = datasets.get(page)
    if dataset is not None:
        dataset = tf.data.Dataset.from_tensors(dataset)
    return {
        "dataset": dataset,
        "latentddpm": latentddpm,
        "keras": keras,
        "np": np,
        "tf": tf,
        "model": ready_model(),
        "images": pixels if page == "docs/guides/evaluate.md" else images,
        "latents": noise,
        "noise": noise,
        "known_latents": noise,
        "mask": np.ones((32, 32), bool),
        "repaint": np.ones((4, 8, 8, 1), np.float32),
        "denoiser": lambda x, t: 0 * x,
        "captions": ["red apple"] * 4,
        **dict(zip("shwc", (0, 8, 8, 4), strict=True)),
    }


@functools.cache
def ready_model():
    import latentddpm

    return latentddpm.LatentDiffusion.load("emoji-128")


def pieces(text):
    """The command lines and blocks of Python of a page, in its order: (kind, content)."""
    for _, language, body in FENCE.findall(text):
        if language in ("python", "py"):
            yield "python", body
        elif language in SHELLS:
            for words in calls(body):
                yield "command", words


def shown(page):
    """The pieces of a page that are run, with what makes them short: (kind, line)."""
    for kind, content in pieces((ROOT / page).read_text("utf-8")):
        line = shlex.join(content) if kind == "command" else content
        for pattern, short in SHORT:
            line = re.sub(pattern, short, line)
        if not any(word in line for word in ELSEWHERE):
            yield kind, line


def run_page(page, done, seconds, only=""):
    """Run one page, of it lines with the words `only`; yields a line for each that failed."""
    from tiny import step_by_step

    names = names_of_a_reader(page)
    for kind, line in shown(page):
        if line in done or only not in line:
            continue
        done.add(line)
        start, failed = time.process_time(), ""
        try:
            with step_by_step(), contextlib.redirect_stdout(sys.stderr):
                run_command(shlex.split(line)) if kind == "command" else run_python(line, names)
        except (Exception, SystemExit) as error:
            failed = "".join(traceback.format_exception_only(error)).strip()
        took = seconds[page, line] = time.process_time() - start
        print(
            f"{'FAILED' if failed else 'ok':>6} {took:6.1f} s  {page}: {line[:100]!r}", flush=True
        )
        if failed:
            yield f"{page}: {line}\n    {failed}"


def length(page):
    """About how long a page takes, in its shortest lines."""
    kinds = (kind if kind == "python" else line.split()[0] for kind, line in shown(page))
    return sum(LONGER.get(kind, 1) for kind in kinds)


def share_of(pages, number, count):
    """Share `number` of `count` about equally long ones, in the order of the pages."""
    shares = [(0, one) for one in range(1, count + 1)]
    mine = set()
    for page in sorted(pages, key=length, reverse=True):
        so_far, one = heapq.heappop(shares)
        heapq.heappush(shares, (so_far + length(page), one))
        if one == number:
            mine.add(page)
    return [page for page in pages if page in mine]


def chosen(arguments):
    """Pages that are named, or a share of all."""
    if not arguments or "/" not in arguments[0] or not arguments[0][0].isdigit():
        return arguments or PAGES
    return share_of(PAGES, *map(int, arguments[0].split("/")))


def summary(seconds):
    """Lines that say the seconds of each page, and those of the slowest lines."""
    pages = collections.Counter()
    for (page, _), took in seconds.items():
        pages[page] += took
    yield f"{sum(pages.values()):.1f} s in all"
    yield from (f"{took:10.1f} s  {page}" for page, took in pages.most_common())
    slowest = sorted(seconds.items(), key=lambda one: -one[1])[:20]
    yield from (f"{took:10.1f} s  {page}: {line[:100]!r}" for (page, line), took in slowest)


def main(arguments):
    """Run the pages; returns the exit code."""
    failures, done, seconds = [], set(), {}
    pages = chosen(arguments)
    with contextlib.ExitStack() as stack:
        world = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        start = time.process_time()
        files_of_a_reader(world)
        os.chdir(world)
        small = {path.stem: path for path in (world / "configs").glob("*.yaml")}
        ready = mock.patch("latentddpm.config_file.ready_configs", return_value=small)
        stack.enter_context(ready)
        stack.enter_context(hub_of_a_reader(world))
        seconds["the reader's files", ""] = time.process_time() - start
        if arguments[:1] and arguments != pages and PAGES[0] not in pages:
            failures += run_page(PAGES[0], done, seconds, only="--out runs/")
            keep_runs()
        for page in pages:
            failures += run_page(page, done, seconds)
            keep_runs() if page == PAGES[0] else restore_runs()
        os.chdir(ROOT)
    print("\n".join([*summary(seconds), *failures]))
    return 1 if failures else 0


def keep_runs():
    """Keep the runs that the README makes, for every page to find, and two more like them."""
    for name in ("other", "small"):
        shutil.copytree("runs/ldm", f"runs/{name}")
    shutil.copytree("runs", KEPT)


def restore_runs():
    """Make the runs again those that a page begins with, whatever the one before it did."""
    if Path(KEPT).exists():
        remove("runs")
        shutil.copytree(KEPT, "runs")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
