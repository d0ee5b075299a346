"""Where all parts meet: prompts and seeds to pixels, and the model folder they come from."""

import itertools
import json
import shutil

import keras
import numpy as np
import pytest
from checks import one_line
from tiny import SIZE, perturb, quick_model, shared_model, step_by_step, tiny_autoencoder

from latentddpm.diffusion.samplers import DDIMSampler
from latentddpm.errors import UserError
from latentddpm.models.archive import weights_digest
from latentddpm.pipeline import model_folder
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import MANIFEST, find_model, read_model_folder
from latentddpm.pipeline.seeds import MAX_SEED, image_seeds, step_noise

# A batch of another size adds up its sums in another order; after rounding to 8 bits that may
# move a value by one.
ONE_LEVEL = 1


@pytest.fixture(scope="module")
def model():
    return shared_model()


@pytest.fixture(scope="module")
def unconditional():
    return shared_model(text=False)


@pytest.fixture(scope="module")
def quick():
    """A model that is soon read and traced, for what is written of it."""
    return quick_model()


@pytest.fixture(scope="module")
def saved(quick, tmp_path_factory):
    """The folder of the quick model; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    quick.save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "tiny")


@pytest.fixture(scope="module")
def apple(model):
    return model.generate("red apple", seed=3)


def levels(found, expected):
    """The largest difference in levels of 255."""
    return int(np.abs(found.astype(int) - expected.astype(int)).max())


def edit_manifest(folder, change):
    """Write the manifest that `change` makes of the one that is there."""
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest), "utf-8")


# --- Images --------------------------------------------------------------------------------


def test_images_are_bytes_of_the_models_own_size(model):
    images = model.generate(["red apple", "cat face"], num_images=2, seed=0)
    assert images.shape == (4, *SIZE, 3), f"expected 2 prompts × 2 images, got {images.shape}"
    assert images.dtype == np.uint8, f"expected uint8, got {images.dtype}"
    assert images.std() > 1, "expected pictures with something on them"


def test_a_size_of_ones_own(model):
    shape = model.generate("red apple", height=16, width=48, seed=0).shape
    assert shape == (1, 16, 48, 3), f"expected height 16, width 48, got {shape}"


def test_the_same_seed_gives_the_same_bytes(model, apple):
    again = model.generate("red apple", seed=3)
    assert np.array_equal(again, apple), "expected the same bytes from the same seed"


def test_another_seed_gives_another_image(model, apple):
    other = model.generate("red apple", seed=4)
    assert levels(other, apple) > 5, "expected another image from another seed"


def test_without_a_seed_images_differ(model):
    images = [model.generate("red apple") for _ in range(2)]
    assert levels(*images) > 5, "expected a fresh seed at every call without one"


@pytest.mark.parametrize(
    ("sampler", "batch_size"),
    [
        *(("ddim", 2), ("ddpm", 2), ("pc", 2)),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in itertools.product(("ddim", "ddpm"), (1, 16))
        ),
    ],
)
def test_image_k_of_seed_s_is_the_image_of_seed_s_plus_k(model, sampler, batch_size):
    options = {"sampler": sampler, "num_steps": 1 if sampler == "pc" else 3}
    together = model.generate("red apple", num_images=3, seed=5, batch_size=batch_size, **options)
    alone = np.concatenate([model.generate("red apple", seed=5 + k, **options) for k in range(3)])
    worst = levels(together, alone)
    assert worst <= ONE_LEVEL, f"image k of seed 5 is {worst} levels off the image of seed 5 + k"


def test_each_prompt_of_a_list_gives_its_own_images(model, apple):
    images = model.generate(["cat face", "red apple"], seed=[9, 3])
    worst = levels(images[1:], apple)
    assert worst <= ONE_LEVEL, f"a prompt in a list is {worst} levels off the prompt alone"


def test_the_prompt_moves_the_image(model, apple):
    assert levels(model.generate("cat face", seed=3), apple) > 5, "expected words to count"


def test_the_negative_prompt_counts_with_guidance(model, apple):
    away = model.generate("red apple", negative_prompt="cat face", seed=3)
    assert levels(away, apple) > 5, "expected the negative prompt to move the image"


def test_without_guidance_the_negative_prompt_is_nothing(model):
    plain, away = (
        model.generate("red apple", negative_prompt=text, seed=3, guidance_scale=1)
        for text in ("", "cat face")
    )
    assert np.array_equal(plain, away), "expected guidance 1 to leave the negative prompt out"


def test_stochastic_samplers_are_reproducible(model, apple):
    half = DDIMSampler(model.schedule, 3, eta=0.5)
    for sampler in ("ddpm", half):
        images = [model.generate("red apple", seed=3, sampler=sampler) for _ in range(2)]
        assert np.array_equal(*images), f"{sampler}: expected the same bytes from the same seed"
        assert levels(images[0], apple) > 5, f"{sampler}: expected other noise than plain DDIM"


def test_step_noise_is_a_function_of_seed_and_step():
    noise = step_noise([7, 8], (4, 4, 4), 0)
    assert noise.dtype == np.float32, f"expected float32, got {noise.dtype}"
    assert np.array_equal(noise[1:], step_noise([8], (4, 4, 4), 0)), "expected rows by seed"
    assert not np.array_equal(noise, step_noise([7, 8], (4, 4, 4), 1)), "expected rows by step"
    more = [step_noise([7], (64, 64), 0, draw).ravel() for draw in range(3)]
    between = np.abs(np.corrcoef(more) - np.eye(3)).max()
    assert between < 5 / 64, f"expected draws of a step that know nothing of each other: {between}"


@pytest.mark.slow
@step_by_step()
def test_a_start_in_the_middle_is_noise_of_that_level(quick):
    """x = √ᾱ · 0 + √(1 − ᾱ) · ε, and from there on the sampler's own steps."""
    given = {"num_steps": 4, "seed": 3, "output": "latents"}
    found = quick.generate("red apple", start_step=2, **given)
    sampler = quick.make_sampler(quick.settings(num_steps=4))
    noise = step_noise([3], found.shape[1:], -1)
    level = np.sqrt(1 - sampler.alphas_cumprod[2]).astype("float32")
    starts = []

    class Watched(type(sampler)):
        def sample(self, denoiser, latents, *args, **kwargs):
            starts.append((latents, kwargs["first_step"]))
            return super().sample(denoiser, latents, *args, **kwargs)

    watched = Watched(quick.schedule, 4, sampler.timestep_spacing)
    given.pop("num_steps")
    again = quick.generate("red apple", start_step=2, sampler=watched, **given)
    np.testing.assert_allclose(starts[0][0], level * noise, rtol=1e-6, atol=1e-7)
    assert starts[0][1] == 2, f"expected step 2 to be the first, got {starts[0][1]}"
    np.testing.assert_array_equal(found, again, err_msg="expected the sampler of the settings")
    whole = quick.generate("red apple", start_step=0, num_steps=4, **given)
    plain = quick.generate("red apple", num_steps=4, **given)
    np.testing.assert_array_equal(whole, plain, err_msg="expected 0 to be the first step")
    assert np.abs(whole - found).max() > 1e-3, "expected other latents from another start"


def test_seeds_count_up():
    assert image_seeds(5, 3) == [5, 6, 7], "expected image k to have seed + k"
    assert image_seeds([9, 2], 2) == [9, 2], "expected a list to name each seed"
    assert image_seeds(np.array([9, 2]), 2) == [9, 2], "expected an array to do the same"


def test_numbers_of_numpy_are_numbers(model):
    given = {"num_images": np.int64(2), "num_steps": np.array(2), "height": np.int32(32)}
    given |= {"guidance_scale": np.float32(2), "batch_size": np.uint8(2)}
    found = model.generate("red apple", seed=np.array([5, 6]), **given)
    expected = model.generate("red apple", seed=5, num_images=2, num_steps=2, guidance_scale=2.0)
    assert np.array_equal(found, expected), "expected the pictures of Python's own numbers"


def test_no_prompt_is_the_empty_prompt(model):
    found = model.generate(None, negative_prompt=None, seed=3)
    assert np.array_equal(found, model.generate("", seed=3)), "expected the same picture"


def test_each_prompt_may_have_its_own_negative_prompt(model):
    prompts = np.array(["red apple", "cat"])
    several = model.generate(prompts, negative_prompt=("cat", "dog"), num_images=2, seed=3)
    for k, negative in enumerate(["cat", "cat", "dog", "dog"]):
        alone = model.generate(prompts[k // 2 : k // 2 + 1], negative_prompt=negative, seed=3 + k)
        assert levels(several[k : k + 1], alone) <= 1, f"image {k}: expected it with {negative!r}"
    settings = model.settings(num_steps=3)
    again = model.generate(prompts, negative_prompt=["cat", "dog"], settings=settings, seed=3)
    assert levels(again[:1], several[:1]) <= 1, "expected the same beside settings"


# --- Bad requests --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"height": 30}, ("height 30", "24 or 32")),
        ({"height": 0}, ("height 0",)),
        ({"num_steps": 0}, ("num_steps", "1 to 1000", "0")),
        ({"num_steps": 1001}, ("num_steps", "1 to 1000", "1001")),
        ({"sampler": "ddin"}, ("'ddin'", "did you mean 'ddim'", "'ddpm'")),
        ({"guidance_scale": -1.0}, ("guidance_scale", "-1")),
        ({"num_steps": 5, "start_step": 5}, ("start_step: expected 0 to 4 for 5 steps, got 5",)),
        ({"start_step": -1}, ("start_step", "got -1")),
        (
            {"start_step": 1, "init_image": np.zeros((32, 32, 3), np.uint8)},
            ("start_step: 1 beside init_image", "expected start_step 0"),
        ),
        (
            {"sampler": "ddim", "num_steps": 3, "sampler_options": {"eta": [1, 0]}},
            ("eta: 2 values for 3 steps",),
        ),
        ({"guidance_scale": float("nan")}, ("guidance_scale", "nan")),
        ({"num_images": 0}, ("num_images", "0")),
        ({"batch_size": 0}, ("batch_size", "0")),
        ({"seed": -1}, ("seed", "-1")),
        ({"seed": MAX_SEED}, ("seed", str(MAX_SEED))),
        ({"seed": [1, 2]}, ("2 seeds for 1 images",)),
        ({"seed": "3"}, ("seed", "whole number", "'3'")),
        ({"prompt": 3}, ("prompt", "expected text", "3")),
        ({"prompt": ["a", 3]}, ("prompt", "expected texts", "3")),
        ({"prompt": []}, ("prompt", "empty list")),
        ({"negative_prompt": 3}, ("negative_prompt", "expected text", "3")),
        ({"negative_prompt": ["a", "b"]}, ("negative_prompt", "2 given for 1 prompt")),
        ({"num_images": 2.0}, ("num_images", "whole number", "2.0")),
        ({"num_images": True}, ("num_images", "whole number", "True")),
        ({"num_steps": 2.5}, ("num_steps", "whole number", "2.5")),
        ({"num_steps": "many"}, ("num_steps", "whole number", "'many'")),
        ({"batch_size": "2"}, ("batch_size", "whole number", "'2'")),
        ({"height": 32.0}, ("height", "whole number", "32.0")),
        ({"guidance_scale": "much"}, ("guidance_scale", "a number", "'much'")),
        ({"tile": 9}, ("tile 9", "8 or 16")),
        ({"tile": None}, ("tile", "'auto'")),
        ({"settings": {"num_steps": 3}}, ("settings", "model.settings()")),
        ({"latents": "noise"}, ("latents", "an array")),
        ({"latents": np.full((1, 4, 4, 4), np.nan)}, ("latents", "not finite")),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(model, options, words):
    with pytest.raises(UserError) as error:
        model.generate(**{"prompt": "red apple", **options})
    one_line(error, *words)


@pytest.mark.parametrize("options", [{"prompt": "red apple"}, {"negative_prompt": "cat"}])
def test_an_unconditional_model_takes_no_prompt(unconditional, options):
    with pytest.raises(UserError) as error:
        unconditional.generate(**options)
    one_line(error, "unconditional")


@pytest.mark.slow
def test_an_unconditional_model_draws_without_words(unconditional):
    images = unconditional.generate(num_images=2, seed=0)
    assert images.shape == (2, *SIZE, 3), f"expected two images, got {images.shape}"


def test_a_model_without_a_size_asks_for_one(model):
    bare = LatentDiffusion(
        model.autoencoder, model.unet, model.schedule, model.text_encoder, model.tokenizer
    )
    with pytest.raises(UserError) as error:
        bare.generate("red apple", num_steps=1)
    one_line(error, "height and width")


# --- Save and load -------------------------------------------------------------------------


def test_a_loaded_model_gives_the_same_bytes(saved, quick):
    loaded = LatentDiffusion.load(saved)
    assert loaded.image_size == SIZE, f"expected the size to be kept, got {loaded.image_size}"
    assert loaded.defaults["num_steps"] == 3, "expected the defaults to be kept"
    again, before = (one.generate("red apple", seed=3) for one in (loaded, quick))
    assert np.array_equal(again, before), "expected the same bytes after save and load"


@pytest.mark.slow
def test_half_precision_storage_stays_close(quick, saved, tmp_path):
    written = quick.save(tmp_path / "half", storage="float16")
    full = read_model_folder(saved)
    assert written.digest == full.digest, "expected the digest not to depend on the storage"
    for name, part in written.parts.items():
        larger = full.parts[name]["bytes"]
        assert part["bytes"] < 0.8 * larger, f"{name}: expected a smaller file than {larger}"
    half = LatentDiffusion.load(tmp_path / "half")
    worst = levels(*(one.generate("red apple", seed=3) for one in (half, quick)))
    assert worst <= 8, f"expected images close to those of full precision, {worst} levels off"
    again = half.save(tmp_path / "again")
    assert again.digest == full.digest, "expected the digest to survive a second saving"


def test_saving_keeps_the_card_and_replaces_the_rest(quick, folder):
    (folder / "README.md").write_text("about this model", "utf-8")
    (folder / "stray.txt").write_text("?", "utf-8")
    quick.save(folder)
    assert (folder / "README.md").read_text("utf-8") == "about this model", "the card is lost"
    assert not (folder / "stray.txt").exists(), "expected the model folder to be replaced"


def test_saving_over_a_folder_of_something_else_is_refused(model, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(UserError) as error:
        model.save(tmp_path)
    one_line(error, tmp_path, MANIFEST)
    found = [path.name for path in tmp_path.iterdir()]
    assert found == ["holiday.jpg"], f"expected the folder untouched, found {found}"


def test_an_autoencoder_alone_is_a_model_folder_that_cannot_generate(tmp_path):
    alone = LatentDiffusion(tiny_autoencoder(), None, None, image_size=SIZE)
    found = alone.save(tmp_path / "vae")
    assert list(found.parts) == ["vae"], f"expected the autoencoder alone, got {found.parts}"
    with pytest.raises(UserError) as error:
        LatentDiffusion.load(tmp_path / "vae")
    one_line(error, "unet.keras", "it holds vae", "train-diffusion --vae")


def test_the_digest_tells_models_apart(quick, saved):
    assert read_model_folder(saved).parts["unet"]["digest"] == weights_digest(quick.unet), (
        "expected the manifest to hold the digest of the weights"
    )
    other = keras.models.clone_model(quick.autoencoder)
    other.set_weights(quick.autoencoder.get_weights())
    assert weights_digest(other) == weights_digest(quick.autoencoder), "same weights, same digest"
    perturb(other, size=0.01)
    assert weights_digest(other) != weights_digest(quick.autoencoder), "expected another digest"


# --- A model folder that is not as it should be --------------------------------------------


@pytest.mark.parametrize("name", ["vae.keras", "unet.keras", "text_encoder.keras"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError) as error:
        LatentDiffusion.load(folder)
    one_line(error, folder / name, "missing")


def test_a_missing_tokenizer_is_named(folder):
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError) as error:
        LatentDiffusion.load(folder)
    one_line(error, folder / "tokenizer")


def test_a_changed_file_is_named(folder):
    file = folder / "unet.keras"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_model_folder(folder)
    one_line(error, file, "digest")


def test_a_unet_of_another_autoencoder_is_refused(folder, tmp_path):
    other = LatentDiffusion(tiny_autoencoder(seed=1), None, None, image_size=SIZE)
    entry = other.save(tmp_path / "other").parts["vae"]
    shutil.copy(tmp_path / "other" / "vae.keras", folder / "vae.keras")
    edit_manifest(folder, lambda manifest: manifest["parts"].update(vae=entry))
    with pytest.raises(UserError) as error:
        LatentDiffusion.load(folder)
    one_line(error, folder, "another autoencoder", entry["digest"][:12])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda manifest: manifest.update(format=2), ("format 2", "reads 1")),
        (lambda manifest: manifest.pop("format"), ("malformed", "format")),
        (lambda manifest: manifest.pop("parts"), ("malformed", "parts")),
        (lambda manifest: manifest.update(parts=5), ("malformed",)),
        (lambda manifest: manifest.update(image_size=7), ("malformed",)),
        (lambda manifest: manifest.update(image_size=["a", "b"]), ("malformed",)),
        (lambda manifest: manifest.update(defaults=3), ("malformed",)),
        (lambda manifest: manifest["parts"].update(vae=None), ("malformed",)),
        (lambda manifest: manifest["parts"]["vae"].pop("sha256"), ("malformed", "sha256")),
        (lambda manifest: manifest["parts"]["vae"].update(file=None), ("malformed", "vae.file")),
        (lambda manifest: manifest["parts"]["vae"].update(file="../x"), ("'../x'",)),
        (lambda manifest: manifest["parts"].update(lora={}), ("'lora'", "vae, unet")),
    ],
)
def test_a_manifest_that_is_not_ours_is_named(folder, change, words):
    edit_manifest(folder, change)
    with pytest.raises(UserError) as error:
        read_model_folder(folder)
    one_line(error, folder / MANIFEST, *words)


@pytest.mark.parametrize("content", ["{", "[]", "null", "\ufeff{}", ""])
def test_a_manifest_that_is_no_json_object_is_named(folder, content):
    (folder / MANIFEST).write_text(content, "utf-8")
    with pytest.raises(UserError) as error:
        read_model_folder(folder)
    one_line(error, folder / MANIFEST, "malformed")


# --- Which model is meant ------------------------------------------------------------------


def test_a_model_is_found_by_its_folder_or_its_run(folder, tmp_path):
    assert find_model(folder) == folder, "expected a model folder to be itself"
    run = tmp_path / "runs" / "one"
    shutil.copytree(folder, run / "model")
    assert find_model(run) == run / "model", "expected a finished run to be its model"


@pytest.fixture
def shipped(folder, monkeypatch):
    """`folder`'s parent as the place of ready models, where it is called "tiny"."""
    monkeypatch.setattr(model_folder, "ready_models", lambda: [folder.parent])
    return folder


@pytest.mark.parametrize("name", ["tiny", "weights/tiny"])
def test_a_ready_model_is_found_by_its_name(shipped, name, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert find_model(name) == shipped, f"expected {name} to be the ready model"


def test_a_missing_folder_does_not_become_a_ready_model_of_that_name(shipped, tmp_path):
    for path in (tmp_path / "runs" / "tiny", "runs/tiny"):
        with pytest.raises(UserError) as error:
            find_model(path)
        one_line(error, path)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        find_model(tmp_path / "runs" / "tiny")
    one_line(error, tmp_path / "runs" / "tiny", "finished run")


def test_an_unknown_name_gets_a_hint(shipped):
    with pytest.raises(UserError) as error:
        find_model("tinny")
    one_line(error, "tinny", "did you mean 'tiny'")
