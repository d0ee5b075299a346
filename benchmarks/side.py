"""One side of `vs_diffusers.py`: do one job in this process, print one line of JSON.

    python benchmarks/side.py keras|keras-xla|torch|torch-channels-last JOB FOLDER

    prepare                   random weights, saved as our model folder and as a diffusers folder
    vae-encode, vae-decode    Stable Diffusion's autoencoder, one image of 256×256
    unet-forward, unet-train  25.4 M parameters: widths 64/128/256, latents 16×16×4, batch 16,
                              context 77×256; a training step is MSE, clipping and AdamW
    generate                  20 DDIM steps with guidance of that UNet, a text encoder of
                              width 256 and that autoencoder: one image of 128×128
    cold                      the same from nothing: imports, reading the model, one image

The output lands in FOLDER/JOB-SIDE.npy, channels last, for comparison.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

REPEATS = 5
PROMPT, NEGATIVE, STEPS, GUIDANCE = "a photo of a cat", "a dog", 20, 7.5
RATE, DECAY, CLIP = 1e-4, 0.01, 1.0
EPSILON = 1e-8  # of AdamW: PyTorch's default, Keras's is 1e-7


def arrays() -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    normal = lambda *shape: numbers.standard_normal(shape).astype("float32")  # noqa: E731
    return {
        "image": np.tanh(normal(1, 256, 256, 3)),
        "latent": normal(1, 32, 32, 4),
        "noisy_latents": normal(16, 16, 16, 4),
        "target": normal(16, 16, 16, 4),
        "context": normal(16, 77, 256),
        "start": normal(1, 16, 16, 4),
        "timesteps": numbers.integers(0, 1000, 16).astype("int32"),
    }


def repeat(action: Callable[[], Any], times: int = REPEATS) -> tuple[Any, float, float]:
    """What `action` returns the first time, its first duration, the median of the later ones."""
    start = time.perf_counter()
    result = action()
    first = time.perf_counter() - start
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        action()
        spent.append(time.perf_counter() - start)
    return result, first, statistics.median(spent) if spent else first


# --- Keras ---------------------------------------------------------------------------------


def prepare(folder: Path) -> dict[str, str]:
    import keras
    import tensorflow as tf

    from latentddpm.clip.text_encoder import TextEncoder
    from latentddpm.clip.tokenizer import CLIPTokenizer
    from latentddpm.diffusion.schedule import NoiseSchedule
    from latentddpm.interop import save_diffusers
    from latentddpm.models.autoencoder.autoencoder import Autoencoder
    from latentddpm.models.denoisers.unet import UNet
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion

    keras.utils.set_random_seed(0)
    unet = UNet(64, (1, 2, 4), num_heads=8, context_dim=256, zero_init=False)
    text_encoder = TextEncoder(hidden_dim=256, num_layers=4, num_heads=4)
    model = LatentDiffusion(
        Autoencoder(), unet, NoiseSchedule(), text_encoder, CLIPTokenizer(), (128, 128)
    )
    model.save(folder / "ours")
    save_diffusers(model, folder / "theirs")
    return {"keras": keras.__version__, "tensorflow": tf.__version__}


def keras_job(job: str, folder: Path, xla: bool) -> tuple[Any, float, float]:
    from latentddpm.utils.startup import import_keras

    import_keras()
    import tensorflow as tf

    from latentddpm.pipeline.latent_diffusion import LatentDiffusion
    from latentddpm.training.step.denoising_trainer import DenoisingTrainer
    from latentddpm.training.step.optimizer import FlatAdamW

    model = LatentDiffusion.load(folder / "ours")
    values = {name: tf.constant(value) for name, value in arrays().items()}

    def compiled(function: Callable[..., Any], *inputs: Any) -> Callable[[], np.ndarray]:
        graph = tf.function(function, jit_compile=xla)
        return lambda: np.asarray(graph(*inputs))

    if job == "vae-encode":
        encode = compiled(lambda images: model.autoencoder.encode(images)[0], values["image"])
        return repeat(encode)
    if job == "vae-decode":
        return repeat(compiled(model.autoencoder.decode, values["latent"]))
    inputs = {name: values[name] for name in ("noisy_latents", "timesteps", "context")}
    if job == "unet-forward":
        return repeat(compiled(model.unet, inputs))
    if job == "unet-train":
        optimizer = FlatAdamW(RATE, weight_decay=DECAY, global_clipnorm=CLIP, epsilon=EPSILON)
        trainer = DenoisingTrainer(model.unet, model.schedule)
        trainer.compile(optimizer, jit_compile=xla)
        optimizer.build(trainer.trainable_variables)
        data = tf.data.Dataset.from_tensors((inputs, values["target"])).repeat()
        trainer.make_train_function()
        stream = iter(data)
        losses: list[float] = []

        def step() -> None:
            trainer.reset_metrics()
            losses.append(float(trainer.train_function(stream)["loss"]))

        _, first, later = repeat(step)
        return np.array(losses), first, later
    return repeat(
        lambda: model.generate(
            PROMPT,
            negative_prompt=NEGATIVE,
            latents=np.asarray(values["start"]),
            num_steps=STEPS,
            sampler="ddim",
            timestep_spacing="trailing",
            guidance_scale=GUIDANCE,
        ),
        REPEATS if job == "generate" else 0,
    )


# --- PyTorch -------------------------------------------------------------------------------


def torch_job(job: str, folder: Path, channels_last: bool) -> tuple[Any, float, float]:
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

    layout = torch.channels_last if channels_last else torch.contiguous_format

    def tensor(name: str) -> Any:
        value = torch.from_numpy(arrays()[name])
        if value.ndim == 4:
            value = value.permute(0, 3, 1, 2).contiguous(memory_format=layout)
        return value.long() if name == "timesteps" else value

    def load(cls: Any, part: str) -> Any:
        return cls.from_pretrained(folder / "theirs" / part).to(memory_format=layout)

    def without_gradient(function: Callable[[], Any]) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            with torch.no_grad():
                return function().permute(0, 2, 3, 1).numpy()

        return run

    if job == "vae-encode":
        vae, image = load(AutoencoderKL, "vae"), tensor("image")
        return repeat(without_gradient(lambda: vae.encode(image).latent_dist.mean))
    if job == "vae-decode":
        vae, latent = load(AutoencoderKL, "vae"), tensor("latent")
        return repeat(without_gradient(lambda: vae.decode(latent / 0.18215).sample))
    if job.startswith("unet"):
        unet = load(UNet2DConditionModel, "unet")
        noisy, timesteps, context = map(tensor, ("noisy_latents", "timesteps", "context"))

        def forward() -> Any:
            return unet(noisy, timesteps, encoder_hidden_states=context).sample

        if job == "unet-forward":
            return repeat(without_gradient(forward))
        optimizer = torch.optim.AdamW(
            unet.parameters(), RATE, weight_decay=DECAY, eps=EPSILON, fused=True
        )
        unet.train()
        target, losses = tensor("target"), []

        def step() -> None:
            loss = torch.nn.functional.mse_loss(forward(), target)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())

        _, first, later = repeat(step)
        return np.array(losses), first, later
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "theirs")
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=layout)
    pipeline.vae.to(memory_format=layout)

    def generate() -> np.ndarray:
        images = pipeline(
            PROMPT,
            negative_prompt=NEGATIVE,
            latents=tensor("start"),
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            height=128,
            width=128,
            output_type="np",
        ).images
        return (255 * images).round()

    return repeat(generate, REPEATS if job == "generate" else 0)


def main() -> None:
    side, job, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if job == "prepare":
        print(json.dumps(prepare(folder)))
        return
    if side.startswith("keras"):
        output, first, later = keras_job(job, folder, side == "keras-xla")
    else:
        output, first, later = torch_job(job, folder, side == "torch-channels-last")
    np.save(folder / f"{job}-{side}.npy", np.asarray(output, "float32"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": later, "first": first, "peak_mib": peak}))


if __name__ == "__main__":
    main()
