"""Image-to-image and inpainting: closed forms in latents, then pixels of a tiny model."""

import warnings

import numpy as np
import pytest
from analytic import GaussianDenoiser, ddim_solution
from checks import one_line
from PIL import Image
from tiny import SIZE, shared_model

from latentddpm.diffusion import NoiseSchedule, samplers
from latentddpm.diffusion.inpainting import Inpainting, repaint_weights
from latentddpm.diffusion.samplers import DDIMSampler
from latentddpm.errors import UserError
from latentddpm.pipeline.seeds import starting_noise, step_noise
from latentddpm.pipeline.start.init_image import read_init_image
from latentddpm.utils.pixels import from_pixels, to_pixels

SHAPE = (3, 4, 6, 4)
# Left half kept, right half repainted.
REPAINT = np.concatenate([np.zeros((4, 3, 1)), np.ones((4, 3, 1))], axis=1).astype("float32")
KEPT = REPAINT[..., 0] == 0


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def noise(step_index, draw=0):
    return normal([7, step_index, draw])


@pytest.fixture(scope="module")
def model():
    return shared_model()


@pytest.fixture(scope="module")
def picture():
    """uint8 of the model's size, nothing of it flat."""
    return np.random.default_rng(3).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def mask():
    """Black but for a white square that lies across the borders of latents."""
    mask = np.zeros(SIZE, np.uint8)
    mask[5:21, 11:27] = 255
    return mask


def latents_of(model, picture):
    mean, _ = model.autoencoder.encode(from_pixels(picture)[None])
    return np.asarray(model.autoencoder.to_latents(mean))


def difference(images, picture):
    """Mean absolute difference in levels of 255."""
    return float(np.abs(images - picture.astype(float)).mean())


# --- The sampler that knows a part ---------------------------------------------------------


def test_a_learned_variance_is_repainted_with():
    """The wrapped sampler gets the network's variance, and what is kept stays kept."""
    sampler = samplers.DDPMSampler(NoiseSchedule(), 5, variance="learned_range")
    partly = Inpainting(sampler, normal(1, SHAPE[1:]), REPAINT)

    def both(x, t):
        return np.concatenate([0.3 - 0.5 * np.tanh(x), np.tanh(x)], axis=-1)

    found = np.asarray(partly.sample(both, normal(2), noise))
    off = np.abs(found - normal(1, SHAPE[1:]))
    assert off[:, KEPT].max() <= 1e-4, "expected what is known"
    assert off[:, ~KEPT].max() > 0.1, "expected the rest to be repainted"


@pytest.mark.filterwarnings("ignore:starting at timestep:UserWarning")
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("beta_schedule", ["scaled_linear", "linear", "cosine"])
@pytest.mark.parametrize("name", samplers.NAMES)
def test_every_sampler_leads_to_what_is_known(name, beta_schedule, prediction_type):
    """Kept latents stay on x = √ᾱ · known + √(1−ᾱ) · ε, with the ε of the start unless the
    sampler draws another, and end at the known ones. The network is any function."""
    schedule = NoiseSchedule(beta_schedule, prediction_type=prediction_type)
    known, start_noise = normal(1, SHAPE[1:]), normal(2)
    for count, spacing, strength in (
        (7, "leading", 1),
        (20, "linspace", 0.3),
        (12, "trailing", 1),
        (1, "trailing", 1),
    ):
        case = f"{count} steps, {spacing}"
        sampler = samplers.get(name)(schedule, count, spacing)
        partly = Inpainting(sampler, known, REPAINT)
        first = count - int(count * strength)
        off_path = []

        def follow(step_index, timestep, latents, x0, sampler=sampler, off_path=off_path):
            signal_rate, noise_rate = sampler.rates(step_index + 1)
            path = signal_rate * known + noise_rate * start_noise
            off_path.append(np.abs(np.asarray(latents) - path)[:, KEPT].max())

        found = np.asarray(
            partly.sample(
                lambda x, t: 0.3 - 0.5 * np.tanh(x),
                sampler.add_noise(known, start_noise, first),
                noise,
                follow,
                first,
            )
        )
        worst = np.abs(found - known)[:, KEPT].max()
        assert worst <= 1e-4, f"{case}: the kept latents are {worst:.1e} off"
        moved = np.abs(found - known)[:, ~KEPT].max()
        assert moved > 0.1, f"{case}: expected the rest to be repainted"
        # Rounding x to float32 moves x0 = x / √ᾱ − σ · ε by σ times as much; σ is 4096 at
        # cosine's start. PLMS, whose weights are made for even steps, lets that grow.
        tolerance = 1e-5 + 4 * 2.0**-24 * sampler.sigma(first)
        if not sampler.stochastic and (name, beta_schedule) != ("pndm", "cosine"):
            off = max(off_path)
            assert off <= tolerance, f"{case}: {off:.1e} off their path, expected {tolerance:.1e}"


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_repainted_part_is_the_networks_own(prediction_type):
    """With a denoiser that looks at one element at a time the kept part changes nothing there."""
    schedule = NoiseSchedule(prediction_type=prediction_type)
    network = GaussianDenoiser(schedule, 0.4, 0.6)
    sampler = DDIMSampler(schedule, 10)
    partly = Inpainting(sampler, normal(1, SHAPE[1:]), REPAINT)
    alone, part = (np.asarray(s.sample(network, normal(2)))[:, ~KEPT] for s in (sampler, partly))
    np.testing.assert_array_equal(part, alone, "expected the network's own numbers there")


def test_a_weight_between_mixes_the_estimates_of_x0():
    """One step to the end is x0 itself."""
    schedule = NoiseSchedule(prediction_type="v_prediction")
    sampler, known = DDIMSampler(schedule, 1, "trailing"), normal(1)
    network = GaussianDenoiser(schedule, 0.4, 0.6)
    mixed = Inpainting(sampler, known, np.full((1, 1, 1), 0.25)).sample(network, normal(2))
    own = np.asarray(sampler.sample(network, normal(2)))
    np.testing.assert_allclose(mixed, 0.25 * own + 0.75 * known, atol=1e-5)


def test_known_latents_of_another_size_are_refused():
    sampler = Inpainting(DDIMSampler(NoiseSchedule(), 2), normal(1, (2, 2, 4)), REPAINT)
    with pytest.raises(UserError) as error:
        sampler.sample(lambda x, t: x, normal(2))
    one_line(error, "known_latents", (4, 6, 4), (2, 2, 4))


def test_a_mask_becomes_the_mean_over_each_latent():
    mask = np.zeros((16, 24), np.float32)
    mask[:8, :8] = 1  # one latent
    mask[8:, 20:] = 1  # half of another
    mask[0, 8] = 1  # one pixel of a third
    weights = repaint_weights(mask, 8)
    assert weights.shape == (2, 3, 1), f"expected one weight a latent, got {weights.shape}"
    np.testing.assert_array_equal(weights[..., 0], [[1, 1 / 64, 0], [0, 0, 0.5]])


# --- How far it goes -----------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.05, 0.3, 0.5, 0.75, 0.99, 1])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_from_a_picture_on_is_the_closed_form(strength, prediction_type):
    """The exact denoiser of N(μ, s²) maps x = √ᾱ·x0 + √(1−ᾱ)·z to μ + gain · (x − √ᾱ·μ)."""
    schedule = NoiseSchedule(prediction_type=prediction_type)
    sampler = DDIMSampler(schedule, 20, "trailing")
    pixels = np.zeros((8, 8, 3), np.uint8)
    first = read_init_image(pixels, None, strength, (8, 8)).first_step(20)
    assert first == 20 - int(20 * strength), f"expected diffusers' first step, got {first}"
    bar = schedule.alphas_cumprod[sampler.timesteps[first]]
    known, z = normal(1), normal(2)
    gain, _ = ddim_solution(sampler.alphas_cumprod[first:], 0.6, 0)
    expected = 0.4 + gain * (np.sqrt(bar) * (known - 0.4) + np.sqrt(1 - bar) * z)
    start = sampler.add_noise(known, z, first)
    found = sampler.sample(GaussianDenoiser(schedule, 0.4, 0.6), start, first_step=first)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.slow
def test_a_stronger_strength_goes_further(model, picture):
    decoded = to_pixels(model.autoencoder.decode(latents_of(model, picture)))
    ways = [
        difference(
            model.generate("red apple", seed=3, num_steps=20, init_image=picture, strength=share),
            decoded,
        )
        for share in (0.05, 0.3, 0.6, 1)
    ]
    assert ways == sorted(ways), f"expected differences that rise with strength, got {ways}"
    assert ways[-1] > 2 * ways[0], f"expected strength 0.05 to stay close, got {ways}"


def test_strength_one_starts_at_the_level_of_step_zero(model, picture):
    """At T−1 hardly anything of the picture is left; of the seed's noise, everything."""
    latents = model.generate("red apple", seed=3, init_image=picture, strength=1, output="latents")
    shape = latents.shape[1:]
    known = latents_of(model, picture)
    sampler = DDIMSampler(model.schedule, 3, "trailing")
    start = sampler.add_noise(known, starting_noise([3], shape), 0)
    expected = model.generate("red apple", seed=3, latents=start, output="latents")
    np.testing.assert_allclose(latents, expected, atol=1e-5)


# --- Pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_pixels_under_black_are_the_pictures_own(sampler, model, picture, mask):
    images = model.generate(
        "red apple", num_images=3, seed=3, init_image=picture, mask=mask, sampler=sampler
    )
    changed = (images != picture).any(axis=-1)
    assert not changed[:, mask == 0].any(), "expected the picture's own pixels under black"
    share = changed[:, mask == 255].mean()
    assert share > 0.9, f"expected new pixels under white, {share:.0%} are"
    assert (images[0] != images[1]).any(), "expected another repainting from another seed"


def test_a_black_mask_gives_the_picture_and_a_white_one_leaves_nothing(model, picture):
    options = {"seed": 3, "init_image": picture, "strength": 1}
    kept = model.generate("red apple", mask=np.zeros(SIZE, np.uint8), **options)
    assert np.array_equal(kept[0], picture), "expected a black mask to give the picture itself"
    repainted = model.generate("red apple", mask=np.full(SIZE, 255, np.uint8), **options)
    plain = model.generate("red apple", **options)
    assert np.array_equal(repainted, plain), "expected a white mask to be image-to-image"


def test_gray_of_a_mask_mixes_pixels(model, picture):
    start = read_init_image(picture, np.full(SIZE, 51, np.uint8), None, SIZE)
    drawn = np.full((2, *SIZE, 3), 255, np.uint8)
    found = start.composite(drawn)
    expected = np.rint(0.2 * 255 + 0.8 * picture.astype(float))
    worst = np.abs(found - expected).max()
    assert worst <= 1, f"expected a fifth of what was drawn, {worst} levels off"


def test_kept_latents_come_out_as_the_pictures(model, picture, mask):
    found = model.generate(
        "red apple", seed=3, init_image=picture, mask=mask, num_steps=5, output="latents"
    )
    known = latents_of(model, picture)
    kept = repaint_weights(mask / np.float32(255), 8)[..., 0] == 0
    assert kept.sum() == 7, f"expected nine of 4 × 4 latents under the square, kept {kept.sum()}"
    worst = np.abs(found - known)[:, kept].max()
    assert worst <= 1e-4, f"kept latents are {worst:.1e} off"


@pytest.mark.parametrize(
    ("with_mask", "sampler"),
    [
        *((False, "ddim"), (True, "ddpm")),
        pytest.param(False, "ddpm", marks=pytest.mark.slow),
        pytest.param(True, "ddim", marks=pytest.mark.slow),
    ],
)
def test_image_k_of_seed_s_is_the_image_of_seed_s_plus_k(with_mask, sampler, model, picture, mask):
    options = {"init_image": picture, "mask": mask if with_mask else None, "sampler": sampler}
    together = model.generate("red apple", num_images=3, seed=5, batch_size=2, **options)
    alone = np.concatenate([model.generate("red apple", seed=5 + k, **options) for k in range(3)])
    worst = np.abs(together.astype(int) - alone).max()
    assert worst <= 1, f"image k of seed 5 is {worst} levels off the image of seed 5 + k"


def test_latents_are_the_seeds_noise(model):
    shape = (SIZE[0] // 8, SIZE[1] // 8, 4)
    ours = model.generate("red apple", seed=3, num_images=2)
    given = model.generate("red apple", num_images=2, latents=step_noise([3, 4], shape, -1))
    assert np.array_equal(given, ours), "expected the seeds' noise given as latents to be the same"


def test_latents_out_decode_to_the_images(model):
    latents = model.generate("red apple", seed=3, output="latents")
    assert latents.dtype == np.float32, f"expected float32 latents, got {latents.dtype}"
    images = to_pixels(model.autoencoder.decode(latents))
    assert np.array_equal(images, model.generate("red apple", seed=3)), "expected the same images"


# --- Files ---------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path, picture, mask):
    Image.fromarray(picture).save(tmp_path / "picture.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def test_files_are_read_as_arrays(model, files, picture, mask):
    from_files = model.generate(
        "red apple", seed=3, init_image=files / "picture.png", mask=str(files / "mask.png")
    )
    from_arrays = model.generate("red apple", seed=3, init_image=picture, mask=mask)
    assert np.array_equal(from_files, from_arrays), "expected files to be read as they are"


@pytest.mark.parametrize(
    "given",
    [Image.fromarray, lambda picture: picture / 255, lambda picture: picture / np.float32(255)],
)
def test_pictures_of_every_kind_are_the_same(given, picture):
    start = read_init_image(given(picture), None, None, SIZE)
    assert np.array_equal(start.init_image, picture), "expected the picture's own pixels"


@pytest.mark.parametrize(
    "given",
    [
        lambda mask: mask > 0,
        lambda mask: mask / 255,
        lambda mask: mask[..., None],
        lambda mask: np.repeat(mask[..., None], 3, axis=2),
        Image.fromarray,
        lambda mask: Image.fromarray(mask > 0),
        lambda mask: Image.fromarray(mask.astype(np.uint16) * 257),
        lambda mask: Image.fromarray(mask / np.float32(255)),
    ],
)
def test_masks_of_every_kind_are_the_same(given, picture):
    mask = 255 * np.eye(SIZE[0], dtype=np.uint8)
    start = read_init_image(picture, given(mask), None, SIZE)
    assert np.array_equal(start.mask, mask), "expected white where the mask is true"


def test_gray_is_a_picture(tmp_path, picture):
    gray = picture[..., 0]
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for given in (gray, gray[..., None], Image.fromarray(gray), tmp_path / "deep.png"):
        found = read_init_image(given, None, None, SIZE).init_image
        assert np.array_equal(found, np.repeat(gray[..., None], 3, axis=2)), "expected gray"


def test_a_pil_image_of_another_size_is_scaled_and_said():
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.new("RGB", (48, 16))
    sideways.info["exif"] = exif.tobytes()
    sideways.getexif().update(exif)
    with pytest.warns(UserWarning, match="init_image: 16×48 pixels, scaled and cropped to 32×32"):
        read_init_image(sideways, None, None, SIZE)


def test_a_mask_of_one_colour_is_known(picture):
    for value, expected in ((0, "black"), (255, "white"), (128, None)):
        mask = np.full(SIZE, value, np.uint8)
        found = read_init_image(picture, mask, None, SIZE).uniform
        assert found == expected, f"{value}: expected {expected}, got {found}"
    assert read_init_image(picture, None, None, SIZE).uniform is None, "expected no mask"


def test_another_size_is_scaled_cropped_and_said(tmp_path):
    """Picture and mask in the same way: a white square on black is its own mask."""
    square = np.zeros((60, 100), np.uint8)
    square[20:40, 40:60] = 255
    Image.fromarray(square).save(tmp_path / "square.png")
    with pytest.warns(UserWarning, match="square.png: 100×60 pixels, scaled and cropped to 32×32"):
        start = read_init_image(tmp_path / "square.png", tmp_path / "square.png", None, SIZE)
    assert start.init_image.shape == (*SIZE, 3), (
        f"expected the size drawn, got {start.init_image.shape}"
    )
    np.testing.assert_allclose(start.init_image[..., 0] / 255, start.repaint, atol=1e-6)
    rows, columns = (np.flatnonzero(start.mask.max(axis=axis) > 127) for axis in (1, 0))
    assert abs(len(rows) - len(columns)) <= 1, "expected a square to stay one"


def test_the_camera_held_sideways_is_put_upright(tmp_path, mask):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((16, 48, 3), np.uint8)).save(tmp_path / "phone.jpg", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # upright it is 48 high, 16 wide: nothing to scale
        start = read_init_image(tmp_path / "phone.jpg", None, None, (48, 16))
    assert start.init_image.shape == (48, 16, 3), f"expected 48 × 16, got {start.init_image.shape}"


def test_transparent_is_white_in_a_picture_and_repainted_in_a_mask(tmp_path):
    rgba = np.zeros((*SIZE, 4), np.uint8)
    rgba[:, 16:, 3] = 255  # the right half is opaque black
    Image.fromarray(rgba).save(tmp_path / "half.png")
    start = read_init_image(tmp_path / "half.png", tmp_path / "half.png", None, SIZE)
    assert (start.init_image[:, :16] == 255).all(), "expected transparency over white"
    assert (start.mask[:, :16] == 255).all(), "expected a transparent mask to repaint"
    assert (start.mask[:, 16:] == 0).all(), "expected a black mask to keep"


# --- Bad requests --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 0.0}, ("strength", "0.0")),
        ({"strength": 1.1}, ("strength", "1.1")),
        ({"strength": float("nan")}, ("strength", "nan")),
        ({"strength": 0.2}, ("strength", "0.2", "3 steps", "0.333")),
        ({"mask": np.zeros((16, 32), np.uint8)}, ("mask", "32×16", "32×32")),
        ({"mask": np.eye(SIZE[0], dtype=int)}, ("mask", "int64", "uint8, bool")),
        ({"mask": np.eye(SIZE[0], dtype="uint8")}, ("mask", "1 of 255", "mask * 255")),
        ({"init_image": np.zeros((16, 32, 3), np.uint8)}, ("init_image", "32×16", "32×32")),
        ({"init_image": np.full(SIZE, -1.0)}, ("init_image", "[0, 1]", "-1", "(x + 1) / 2")),
        ({"init_image": np.full(SIZE, 255.0)}, ("init_image", "[0, 1]", "255", "x / 255")),
        ({"init_image": np.full(SIZE, 255)}, ("init_image", "int64", "astype('uint8')")),
        ({"init_image": np.full(SIZE, np.nan)}, ("init_image", "[0, 1]", "nan")),
        ({"init_image": np.zeros((1, *SIZE, 3))}, ("init_image", "(1, 32, 32, 3)", "not a batch")),
        ({"init_image": [1, 2]}, ("init_image", "list", "a PIL image")),
        ({"strength": "0.5"}, ("strength", "'0.5'")),
        ({"strength": True}, ("strength", "True")),
        ({"init_image": "nowhere.png"}, ("init_image", "nowhere.png", "no such file")),
        ({"mask": "nowhere.png"}, ("mask", "nowhere.png", "no such file")),
        ({"init_image": None, "strength": 0.5}, ("strength", "init_image")),
        ({"init_image": None, "mask": "mask.png"}, ("mask", "init_image")),
        ({"latents": np.zeros((1, 4, 4, 3))}, ("latents", "(1, 4, 4, 4)", "(1, 4, 4, 3)")),
        ({"output": "pictures"}, ("output", "'pictures'", "'images'")),
        ({"sampler": "ddim", "sampler_options": {"etta": 1}}, ("etta", "did you mean 'eta'")),
        ({"sampler": "ddpm", "sampler_options": {"eta": 1}}, ("eta", "'ddpm'")),
        ({"sampler": "ddim", "sampler_options": {"eta": 2}}, ("eta", "2")),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(options, words, model, picture):
    with pytest.raises(UserError) as error:
        model.generate("red apple", **{"init_image": picture, **options})
    one_line(error, *words)


def test_a_sampler_that_is_made_takes_no_settings_of_a_sampler(model):
    made = DDIMSampler(model.schedule, 2)
    for options in ({"num_steps": 3}, {"timestep_spacing": "leading"}, {"sampler_options": {}}):
        with pytest.raises(UserError) as error:
            model.generate("red apple", sampler=made, **options)
        one_line(error, *options)
