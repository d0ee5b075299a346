"""Prompts for parts of a picture: masks, what networks are told, and pictures of a tiny model."""

import numpy as np
import pytest
from checks import one_line
from PIL import Image
from tiny import SIZE, perturb, pixel_model, shared_model, signal_model, step_by_step, tiny_model

from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.number import NumberCondition
from latentddpm.diffusion.regions import REGION_WEIGHTS
from latentddpm.errors import UserError
from latentddpm.models.functional import rebuild
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.regions.region import Region, read_regions, weights_of
from latentddpm.pipeline.regions.told import network_in_regions, told_in_regions
from latentddpm.pipeline.seeds import starting_noise
from latentddpm.pipeline.told.told import Told

LEFT = np.zeros(SIZE, bool)
LEFT[:, :16] = True
WHOLE, NOTHING = np.ones(SIZE, bool), np.zeros(SIZE, bool)
SOFT = np.linspace(0, 1, SIZE[1])[None].repeat(SIZE[0], 0)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.fixture(scope="module")
def model():
    return shared_model()


@pytest.fixture(scope="module", autouse=True)
def quick():
    with step_by_step():
        yield


def latents(model, prompt="a forest", **settings):
    return model.generate(prompt, seed=3, output="latents", **settings)


# --- Which prompt is where -----------------------------------------------------------------


def test_a_region_of_the_whole_picture_gives_that_of_its_prompt(model):
    alone = latents(model, "a red apple", num_images=2)
    found = latents(model, num_images=2, regions=[(WHOLE, "a red apple")])
    np.testing.assert_array_equal(found, alone, err_msg="expected every bit")


def test_an_empty_region_gives_the_picture_of_the_main_prompt(model):
    alone = latents(model, num_images=2)
    found = latents(model, num_images=2, regions=[(NOTHING, "a red apple")])
    np.testing.assert_array_equal(found, alone, err_msg="expected every bit")


def test_one_prompt_in_two_halves_is_that_prompt(model):
    alone = latents(model, "a cat")
    found = latents(model, regions=[(LEFT, "a cat"), (~LEFT, "a cat")])
    np.testing.assert_allclose(found, alone, atol=1e-4)
    soft = latents(model, "a cat", regions=[(SOFT, "a cat")])
    np.testing.assert_allclose(soft, alone, atol=1e-4)


def test_regions_are_seen(model):
    main, other = latents(model), latents(model, "a red apple")
    found = latents(model, regions=[(LEFT, "a red apple")])
    for one in (main, other):
        assert np.abs(found - one).max() > 1e-2, "expected another picture than of one prompt"


@pytest.mark.slow
def test_the_order_of_regions_is_of_no_effect(model):
    regions = [(LEFT, "a red apple"), (SOFT, "a cat")]
    one, other = latents(model, regions=regions), latents(model, regions=regions[::-1])
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_network_is_told_the_text_of_each_part(model):
    """Against a loop of its own: texts, weights, network and sampler, without guidance."""
    found = latents(model, guidance_scale=1.0, regions=[(LEFT, "a red apple"), (SOFT, "a cat")])
    prompts = ["a forest", "a red apple", "a cat"]
    context = np.asarray(model.text_encoder({"token_ids": model.tokenizer(prompts)}))
    masks = np.stack([LEFT, np.rint(SOFT * 255) / 255]).reshape(2, 4, 8, 4, 8)
    shares = (masks / np.maximum(masks.sum(0), 1)).mean((2, 4)).transpose(1, 2, 0)
    weights = np.concatenate([1 - shares.sum(-1, keepdims=True), shares], -1)
    network = rebuild(model.unet, regions=3)
    settings = model.settings(guidance_scale=1.0)

    def denoise(noisy_latents, timesteps):
        told = {"context": context[None], "region_weights": weights[None].astype("float32")}
        return network({"noisy_latents": noisy_latents, "timesteps": timesteps, **told})

    noise = starting_noise([3], (4, 4, 4), None)
    expected = model.make_sampler(settings).sample(denoise, noise)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_guidance_leads_away_from_the_same_everywhere(model):
    """With a scale of 0 the negative prompt is all that counts, in every region."""
    given = {"guidance_scale": 0.0, "negative_prompt": "blurry"}
    found = latents(model, **given, regions=[(LEFT, "a red apple"), (~LEFT, "a cat")])
    np.testing.assert_allclose(found, latents(model, **given), atol=1e-4)


@pytest.mark.slow
def test_an_image_does_not_depend_on_its_batch(model):
    prompts, regions = ["a forest", "a lake"], [(LEFT, "a red apple")]
    given = {"num_images": 2, "regions": regions, "negative_prompt": ["dark", "bright"]}
    together = latents(model, prompts, batch_size=3, **given)
    assert len(together) == 4, f"expected four images, got {len(together)}"
    for k, (prompt, negative) in enumerate(zip(prompts, given["negative_prompt"], strict=True)):
        alone = model.generate(
            prompt, seed=3 + 2 * k, num_images=2, regions=regions, negative_prompt=negative,
            output="latents",
        )  # fmt: skip
        np.testing.assert_allclose(together[2 * k : 2 * k + 2], alone, atol=1e-4)


def test_regions_go_with_a_picture_and_its_mask(model):
    picture = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    given = {"init_image": picture, "mask": LEFT, "seed": 3}
    plain = model.generate("a forest", **given)
    found = model.generate("a forest", **given, regions=[(LEFT, "a red apple")])
    np.testing.assert_array_equal(found[0][~LEFT], picture[~LEFT], err_msg="expected black kept")
    assert (found != plain).any(), "expected the region to be seen"


def test_masks_are_scaled_with_the_picture_to_start_from(model):
    wide = Image.new("RGB", (96, 64), "teal")  # scaled to 48×32, of which the middle is taken
    mask = np.zeros((64, 96), bool)
    mask[:, :48] = True
    (found,) = read_regions([(mask, "a cat")], model.facts, SIZE, wide)
    expected = np.where(LEFT, 255, 0)
    edge = slice(13, 19)
    np.testing.assert_array_equal(np.delete(found.mask, edge, 1), np.delete(expected, edge, 1))
    with pytest.raises(UserError) as error:
        read_regions([(LEFT, "a cat")], model.facts, SIZE, wide)
    one_line(error, "region: is 32×32 pixels and the picture to start from is 96×64 pixels")
    with pytest.warns(UserWarning, match="96×64 pixels, scaled and cropped to 32×32"):
        model.generate("a forest", init_image=wide, regions=[(mask, "a cat")])


def test_other_weights_are_followed():
    """The network in regions is a copy, which is never older than the network."""
    unet = tiny_model().unet
    given = told_in_regions(parts(2), weights_of([Region(np.uint8(SOFT * 255))], 8))
    found = network_in_regions(unet, given)
    perturb(unet, seed=5)
    assert network_in_regions(unet, given) is found, "expected a single copy"
    for one, other in zip(found.weights, unet.weights, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)
    more = [Region(np.uint8(255) * mask) for mask in (LEFT, LEFT)]
    given = told_in_regions(parts(3), weights_of(more, 8))
    assert network_in_regions(unet, given).regions == 3, "expected one for three parts"


# --- Conditions ----------------------------------------------------------------------------

DIGIT = ClassCondition("digit", words=("0", "1", "2"))
AGE = NumberCondition("age", null=False)


def model_of(*conditions, text=False):
    """A model that is told conditions; with `text` prompts too."""
    known = Conditions(tuple(conditions))
    made = tiny_model(text=text, conditions=known.specs())
    made.conditions = known
    return made


@pytest.fixture(scope="module")
def of_digits():
    return model_of(DIGIT, AGE)


def test_without_text_the_predictions_are_composed(of_digits):
    """Against a loop of its own, with guidance; the age is that of the picture everywhere."""
    regions = [Region(LEFT, conditions={"digit": 2}), Region(SOFT, conditions={"digit": None})]
    given = {"conditions": {"digit": 1, "age": 0.3}, "guidance_scale": 3.0}
    found = latents(of_digits, "", **given, regions=regions)
    read = read_regions(regions, of_digits.facts, SIZE)
    weights = weights_of(read, 8)
    conditions, unet = of_digits.conditions, of_digits.unet

    def guided(noisy_latents, timesteps, digit):
        predictions = []
        for value in (None, digit):
            told = conditions.vector_arrays([{"digit": value, "age": 0.3}])
            inputs = {"noisy_latents": noisy_latents, "timesteps": timesteps, **told}
            predictions.append(np.asarray(unet(inputs)))
        return predictions[0] + 3 * (predictions[1] - predictions[0])

    def denoise(noisy_latents, timesteps):
        parts = [guided(noisy_latents, timesteps, digit) for digit in ("1", "2", None)]
        return sum(weights[..., k : k + 1] * part for k, part in enumerate(parts))

    noise = starting_noise([3], (4, 4, 4), None)
    sampler = of_digits.make_sampler(of_digits.settings(guidance_scale=3.0))
    np.testing.assert_allclose(found, np.asarray(sampler.sample(denoise, noise)), atol=1e-4)


def test_a_region_of_the_whole_picture_is_told_its_values(of_digits):
    given = {"conditions": {"digit": 1, "age": 0.3}, "num_images": 2}
    found = latents(of_digits, "", **given, regions=[Region(WHOLE, conditions={"digit": 2})])
    given["conditions"] = {"digit": 2, "age": 0.3}
    np.testing.assert_array_equal(found, latents(of_digits, "", **given))


@pytest.mark.slow
def test_images_of_other_values_keep_them_in_a_region(of_digits):
    """A region says one thing; the rest is that of each image."""
    rows = [{"digit": 0, "age": 0.1}, {"digit": 1, "age": 0.9}]
    regions = [Region(LEFT, conditions={"digit": 2})]
    together = latents(of_digits, "", conditions=rows, regions=regions)
    for k, row in enumerate(rows):
        given = {"conditions": row, "regions": regions, "seed": 3 + k, "output": "latents"}
        np.testing.assert_allclose(together[k], of_digits.generate(**given)[0], atol=1e-4)


@pytest.mark.slow
def test_values_in_a_region_of_a_model_with_text_compose_it():
    both = model_of(DIGIT, text=True)
    words = {"digit": 1}
    one = latents(both, "a cat", conditions=words, regions=[(LEFT, "a cat")])
    np.testing.assert_allclose(one, latents(both, "a cat", conditions=words), atol=1e-4)
    same = [Region(LEFT, "a cat", {"digit": 1})]
    one = latents(both, "a cat", conditions=words, regions=same)
    np.testing.assert_allclose(one, latents(both, "a cat", conditions=words), atol=1e-4)
    other = [Region(LEFT, "a cat", {"digit": 2})]
    one = latents(both, "a cat", conditions=words, regions=other)
    off = np.abs(one - latents(both, "a cat", conditions=words)).max()
    assert off > 1e-2, "expected another digit to be seen"


def test_a_scale_of_its_own_asks_for_no_further_stage():
    told = Told(
        {"digit": 0, REGION_WEIGHTS: 1}, {"digit": 2, REGION_WEIGHTS: 1}, {"digit": ["digit"]}
    )
    stages, scales = told.chain({"digit": 2.0}, 5.0)
    assert scales == [2.0], f"expected the condition's scale alone, got {scales}"
    assert stages[-1]["digit"] == 0, f"got {stages}"


# --- What the networks are told ------------------------------------------------------------


def parts(count):
    """What two images are told in each part."""
    return [
        Told(
            {"context": normal(2, 5, 6, seed=k), "digit": normal(2, 3, seed=10 + k)},
            {"context": normal(2, 5, 6, seed=20 + k), "digit": normal(2, 3, seed=30 + k)},
        )
        for k in range(count)
    ]


@pytest.mark.parametrize("names", [(), ("context",)])
def test_each_part_has_its_row(names):
    weights = weights_of([Region(np.uint8(SOFT * 255)), Region(np.uint8(255) * LEFT)], 8)
    given = parts(3)
    found = told_in_regions(given, weights, names)
    assert found.given[REGION_WEIGHTS].shape == (2, 4, 4, 3), "expected a map for each image"
    for side in ("given", "without"):
        theirs = [getattr(one, side) for one in given]
        rows = getattr(found, side)
        for k in range(3):
            np.testing.assert_array_equal(rows["context"][:, k], theirs[k]["context"])
            digit = rows["digit"] if names else rows["digit"][:, k]
            np.testing.assert_array_equal(digit, theirs[0 if names else k]["digit"])


def test_parts_that_cover_nothing_are_left_out():
    halves = [Region(np.uint8(255) * mask) for mask in (LEFT, ~LEFT)]
    given = parts(3)
    found = told_in_regions(given, weights_of(halves, 8))
    assert found.given["context"].shape[:2] == (2, 2), "expected no rest beside two halves"
    np.testing.assert_array_equal(found.given["context"][:, 1], given[2].given["context"])
    whole = weights_of([Region(np.uint8(255) * WHOLE)], 8)
    assert told_in_regions(given[:2], whole) is given[1], "expected one text everywhere"


# --- Masks ---------------------------------------------------------------------------------


def test_a_mask_is_a_file_a_picture_or_an_array(model, tmp_path):
    soft = np.uint8(SOFT * 255)
    Image.fromarray(soft).save(tmp_path / "mask.png")
    kinds = [tmp_path / "mask.png", str(tmp_path / "mask.png"), Image.fromarray(soft), soft]
    clear = np.dstack([np.zeros((*SIZE, 3), np.uint8), 255 - soft])  # transparent counts as white
    for kind in [*kinds, soft / 255, Image.fromarray(clear)]:
        (found,) = read_regions([(kind, "a cat")], model.facts, SIZE)
        assert found.prompt == "a cat", f"got {found.prompt!r}"
        off = np.abs(found.mask.astype(int) - soft).max()
        assert off <= 1, f"{type(kind).__name__}: off by {off} levels"


def test_regions_are_read_once(model):
    found = read_regions([Region(LEFT, "a"), (SOFT, None)], model.facts, SIZE)
    again = read_regions(found, model.facts, SIZE)
    assert [one.prompt for one in again] == ["a", ""], "expected an empty prompt to be allowed"
    for one, other in zip(found, again, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
    for none in (None, []):
        assert read_regions(none, model.facts, SIZE) == [], "expected none"


@pytest.mark.parametrize(
    ("regions", "words"),
    [
        ([("nowhere.png", "a cat")], "region: nowhere.png: no such file"),
        ([(LEFT[:8, :8], "a")], "region: is 8×8 pixels and the picture that is drawn is 32×32"),
        ([(LEFT, "a"), (LEFT[:8, :8], "a")], "region 2: is 8×8 pixels"),
        ([(LEFT * 1, "a cat")], "region: an array of int64"),
        ([(LEFT.astype("uint8"), "a cat")], "region: has no pixel above 1 of 255"),
        ([(LEFT, 7)], "region: prompt: 7, expected text"),
        ([LEFT], "region: ndarray, expected (mask, prompt)"),
        (Region(LEFT, "a cat"), "expected a list of (mask, prompt)"),
        ("mask.png", "regions: str, expected a list"),
        (7, "regions: int, expected a list"),
    ],
)
def test_what_is_no_region_is_refused(regions, words, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        model.generate("a forest", regions=regions)
    one_line(error, words)


@pytest.mark.parametrize(
    ("make", "words"),
    [(pixel_model, "'a cat', but this model is unconditional"), (signal_model, "draws signals")],
)
def test_models_that_have_no_regions_say_so(make, words):
    with pytest.raises(UserError) as error:
        make().generate(regions=[(np.ones((12, 12), bool), "a cat")])
    one_line(error, "region: ", words)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"engine": "onnx"}, {"cache": True}])
def test_networks_that_are_graphs_say_what_regions_need(how, model, tmp_path, monkeypatch):
    monkeypatch.delenv("LATENTDDPM_NO_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model.save(tmp_path / "model")
    graphs = LatentDiffusion.load(tmp_path / "model", **how)
    with pytest.raises(UserError) as error:
        graphs.generate("a forest", regions=[(LEFT, "a cat")])
    one_line(error, "regions: ", "engine='keras'", "without cache")


@pytest.mark.parametrize(
    ("region", "words"),
    [
        (
            Region(LEFT, "a cat"),
            "region: 'a cat', but this model takes no prompt; give conditions",
        ),
        (Region(LEFT, conditions={"digti": 1}), "digti: is no condition of this model"),
        (Region(LEFT, conditions={"digit": 7}), "digit: "),
        (Region(LEFT, conditions={"age": None}), "age: this model has to be told it"),
    ],
)
def test_values_that_the_model_does_not_have_are_refused(region, words, of_digits):
    with pytest.raises(UserError) as error:
        of_digits.generate(conditions={"age": 0.5}, regions=[region])
    one_line(error, words)
