"""Prior preservation: what is in a batch, what it weighs, what is drawn, and that runs resume."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from safetensors.numpy import load_file
from tiny import few_emoji, pixel_model_of_words, step_by_step

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.config import DiffusionRun
from latentddpm.config_file import parse_config
from latentddpm.data.batches import LatentBatches, PriorImages, joined
from latentddpm.data.captions import CaptionTokens
from latentddpm.data.catalog.split import Selection
from latentddpm.data.latents.cache import LatentsCache
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.diffusion import train_diffusion
from latentddpm.training.plan.plan import plan_diffusion
from latentddpm.training.step.denoising_trainer import DenoisingTrainer
from latentddpm.utils.pixels import read_metadata

TRAINING = {
    "num_steps": 4,
    "batch_size": 5,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "precision": "float32",
    "checkpoint_every": 2,
    "validate_every": 4,
}
DRAWN = {"prompt": "a {dog}", "num_images": 3, "weight": 0.5}
WEIGHT = 0.25
TOKENIZER = CLIPTokenizer(8)


def message(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value), f"expected one line, got {caught.value}"
    return str(caught.value)


# --- Batches -------------------------------------------------------------------------------


def images(count, value, caption):
    """Latents that all are `value`, exactly, with one caption."""
    moments = np.full((count, 4, 4, 4), -np.inf, "float32")
    moments[..., :2] = value
    tokens = CaptionTokens(TOKENIZER([caption] * count + [""]), np.arange(1, count + 1))
    return LatentsCache(count, moments, mirrored=False), tokens


def batches(batch_size=5, **training):
    """Batches of seven cats, whose latents are 1, and three dogs, whose latents are −1."""
    cats, words = images(7, 1.0, "cat")
    dogs, others = images(3, -1.0, "dog")
    config = parse_config(
        DiffusionRun,
        {
            "data": {"resolution": 4},
            "training": {"batch_size": batch_size, "condition_dropout": 0.0, **training},
            "prior": {"prompt": "dog", "weight": WEIGHT},
        },
    )
    return LatentBatches(
        ({(4, 4): Selection(7)}, {(4, 4): Selection(7)}),
        cats,
        NoiseSchedule(prediction_type="sample"),
        LatentSpace(1.0),
        words,
        config,
        prior=PriorImages(Selection(3), dogs, others, WEIGHT),
    )


@pytest.mark.parametrize(("batch_size", "own"), [(2, 1), (5, 3)])
def test_every_batch_has_examples_of_both(batch_size, own):
    cat, dog = TOKENIZER(["cat", "dog"])
    for inputs, target, weight in batches(batch_size).training(3, 9):
        values = target[:, 0, 0, 0].numpy().tolist()
        expected = [1.0] * own + [-1.0] * (batch_size - own)
        assert values == expected, f"targets {values}, expected {own} cats and the rest dogs"
        ids = [dog if value < 0 else cat for value in values]
        np.testing.assert_array_equal(inputs["token_ids"], ids, "expected each its own caption")
        weights = np.where(np.array(expected) > 0, 1.0, WEIGHT)
        np.testing.assert_array_equal(weight, weights[:, None, None], "weights of the loss")
        assert len(inputs["timesteps"]) == batch_size, "expected a timestep for each example"


def test_batches_depend_on_the_step_alone():
    whole = [batch[0]["noisy_latents"] for batch in batches().training(0, 6)]
    resumed = [batch[0]["noisy_latents"] for batch in batches().training(4, 6)]
    np.testing.assert_array_equal(resumed, whole[4:], "a resumed run has other examples")
    assert len({one.numpy().tobytes() for one in whole}) == 6, "expected new noise in every step"


def test_validation_shows_the_subject_alone():
    for _, target in batches().validation():
        assert (target.numpy() == 1).all(), "expected cats alone, unweighted"


def test_timesteps_are_weighed_too():
    schedule = NoiseSchedule(prediction_type="sample")
    gamma = schedule.min_snr_weights(5.0)
    for inputs, _, weight in batches(min_snr_gamma=5.0).training(0, 3):
        own = np.array([1, 1, 1, WEIGHT, WEIGHT]) * gamma[inputs["timesteps"].numpy()]
        np.testing.assert_allclose(weight[:, 0, 0], own, 1e-6, err_msg="expected the product")


def test_weights_of_positions_stay_beside_weights_of_examples():
    """A mask of the subject's images has the axes of space, and the class has no mask."""
    mask = np.linspace(0, 1, 16, dtype="float32").reshape(1, 4, 4)
    x, y = {"noisy_latents": np.ones((1, 4, 4, 2), "float32")}, np.ones((1, 4, 4, 2), "float32")
    first = tf.data.Dataset.from_tensors((x, y, mask))
    second = tf.data.Dataset.from_tensors((x, y, np.full((1, 1, 1), WEIGHT, "float32")))
    ((inputs, _, weight),) = joined(first, second)
    assert inputs["noisy_latents"].shape == (2, 4, 4, 2), "expected both examples"
    np.testing.assert_array_equal(weight[0], mask[0], "expected the mask as it is")
    assert (weight[1].numpy() == WEIGHT).all(), "expected one weight everywhere"


def test_the_loss_is_the_weighted_sum_however_the_batch_is_cut():
    """Cut in two, one half has cats and the other dogs, as on two replicas."""
    inputs, target, weight = next(iter(batches(6).training(0, 1)))
    inputs.pop("token_ids")
    found = []
    for parts in (1, 2):
        keras.utils.set_random_seed(0)
        unet = UNet(
            8,
            channel_multipliers=(1,),
            num_res_blocks=0,
            attention_levels=(),
            norm_groups=4,
            latent_channels=2,
        )
        trainer = DenoisingTrainer(unet, NoiseSchedule(prediction_type="sample"))
        trainer.compile(keras.optimizers.SGD(0.1), accumulation_steps=parts, jit_compile=False)
        error = np.mean((trainer(inputs) - target) ** 2, axis=(1, 2, 3))
        expected = (error[:3].sum() + WEIGHT * error[3:].sum()) / 6
        with step_by_step():
            logs = trainer.train_on_batch(inputs, target, weight, return_dict=True)
        assert logs["loss"] == pytest.approx(expected, rel=1e-5), f"loss of {parts} parts"
        found.append(np.concatenate([np.ravel(v) for v in unet.trainable_variables]))
    np.testing.assert_allclose(found[1], found[0], atol=1e-6, err_msg="other weights when cut")


# --- Runs ----------------------------------------------------------------------------------


def config(lab, prior=DRAWN, **sections):
    own = {"training": TRAINING, "lora": {"rank": 2}, "prior": prior}
    samples = {"images_per_prompt": 1, "num_steps": 1, "prompts": ["x"]}
    return parse_config(
        DiffusionRun, {"init": str(lab / "base"), "samples": samples, **own, **sections}
    )


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with `data`, `others`, a model `base`, and a run `whole` of a LoRA."""
    lab = tmp_path_factory.mktemp("lab")
    few_emoji(lab / "data", 6)
    few_emoji(lab / "others", 4)
    pixel_model_of_words().save(lab / "base")
    with step_by_step():
        train_diffusion(config(lab), lab / "data", None, lab / "whole", quiet=True)
    return lab


def planned(lab, out, **options):
    return plan_diffusion(config(lab, **options), lab / "data", None, out, quiet=True)


def test_the_class_is_drawn_once_by_the_model_itself(lab):
    files = sorted((lab / "whole/prior/images").iterdir())
    assert [file.name for file in files] == [f"{k:08d}.png" for k in range(3)], "one a seed"
    model = LatentDiffusion.load(lab / "base", engine=read_metadata(files[2])["engine"])
    (expected,) = model.generate("a {dog}", seed=2)
    np.testing.assert_array_equal(Image.open(files[2]), expected, "expected the image of seed 2")
    known = read_metadata(files[2])
    told = known["prompts"], known["seed"], known["model_digest"]
    assert told == (["a {dog}"], 2, model.digest), f"metadata says {told}"


def test_a_run_that_was_stopped_ends_in_the_same_bytes(lab):
    """Also one that was stopped while images were drawn: they are not drawn twice."""
    shutil.copytree(lab / "whole", lab / "stopped")
    for name in ("lora.safetensors", "prior/images/00000001.png"):
        (lab / "stopped" / name).unlink()
    shutil.rmtree(lab / "stopped/checkpoints/step-00000004")
    kept = (lab / "stopped/prior/images/00000002.png").stat().st_mtime_ns
    with step_by_step():
        train_diffusion(config(lab), lab / "data", None, lab / "stopped", resume=True, quiet=True)
    again, whole = (load_file(lab / name / "lora.safetensors") for name in ("stopped", "whole"))
    for name, tensor in whole.items():
        np.testing.assert_array_equal(again[name], tensor, f"{name} after resuming")
    now = (lab / "stopped/prior/images/00000002.png").stat().st_mtime_ns
    assert now == kept, "an image that was there was drawn again"


def test_other_images_are_not_taken_for_the_drawn_ones(lab):
    record = lab / "whole/prior/drawn.json"
    facts = json.loads(record.read_text("utf-8"))
    assert facts["prompt"] == "a {dog}", f"drawn.json says {facts}"
    (lab / "third/prior").mkdir(parents=True)
    (lab / "third/prior/drawn.json").write_text(json.dumps({**facts, "seed": 7}), "utf-8")
    text = message(train_diffusion, config(lab), lab / "data", None, lab / "third", quiet=True)
    assert "drawn from another seed" in text, f"{text!r}: expected what differs"


def test_images_of_a_place_bring_their_captions(lab, tmp_path):
    found = planned(lab, tmp_path / "a", prior={"data": str(lab / "others")})
    assert found.prior.captions[0] == found.dataset.captions[0], "expected their own captions"
    note = next(line for line in found.notes if line.startswith("prior"))
    assert "4 images of" in note, f"{note!r}: expected how many"
    assert "2 of a batch of 5" in note, f"{note!r}: expected the share"
    prior = {"data": str(lab / "others"), "prompt": "an {emoji}"}
    found = planned(lab, tmp_path / "b", prior=prior)
    assert found.prior.captions[3] == ("an {emoji}",), "expected the prompt, literally"


def test_changed_images_are_another_run(lab, tmp_path):
    """A resumed run has to agree with the facts of its checkpoint."""
    few_emoji(tmp_path / "others", 4)
    prior = {"data": str(tmp_path / "others")}
    before = planned(lab, tmp_path / "a", prior=prior).facts
    few_emoji(tmp_path / "others", 3)
    after = planned(lab, tmp_path / "b", prior=prior).facts
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"captions of prior"}, f"a caption less: {changed} changed"
    shutil.copy(tmp_path / "others/images/noto/1F34E.png", tmp_path / "others/more.png")
    last = planned(lab, tmp_path / "c", prior=prior).facts
    assert last["images of prior"] != after["images of prior"], "an image more: nothing changed"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"prior": {"weight": 2}}, ("weight", "data", "prompt")),
        ({"prior": {"data": "x", "num_images": 5}}, ("num_images",)),
        ({"prior": {"prompt": "x", "weight": -1}}, ("weight",)),
        ({"init": ""}, ("prior", "--init")),
        ({"training": {**TRAINING, "batch_size": 1}}, ("batch_size", "at least 2")),
        ({"data": {"aspect_buckets": True}}, ("data.aspect_buckets", "prior")),
        ({"lora": {}, "control": {"kind": "edges"}}, ("control", "prior")),
        ({"distill": {"kind": "lcm"}}, ("distill.kind", "prior")),
        ({"prior": {"data": "nowhere"}}, ("nowhere",)),
    ],
)
def test_what_does_not_go_together_is_refused(lab, tmp_path, sections, words):
    text = message(planned, lab, tmp_path / "run", **{"lora": {}, **sections})
    assert all(word in text for word in words), f"{text!r}: expected {words}"


def test_images_without_captions_need_words(lab, tmp_path):
    few_emoji(tmp_path / "bare", 3)
    (tmp_path / "bare/metadata.jsonl").unlink()
    text = message(planned, lab, tmp_path / "run", prior={"data": str(tmp_path / "bare")})
    assert "prior.prompt" in text, f"{text!r}: expected the way out"
