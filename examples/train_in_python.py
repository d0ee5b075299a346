"""The same training as the command line's, from Python: plain Keras `compile` and `fit`.

    python examples/train_in_python.py

Trains a tiny unconditional denoiser on random latents; swap in your own dataset of
`({"noisy_latents", "timesteps"}, target)`.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np

from latentddpm import NoiseSchedule, UNet, samplers


def main(steps: int = 20) -> float:
    schedule = NoiseSchedule(prediction_type="v_prediction")
    numbers = np.random.default_rng(0)
    latents = numbers.standard_normal((64, 8, 8, 4)).astype("float32")
    noise = numbers.standard_normal(latents.shape).astype("float32")
    timesteps = numbers.integers(0, schedule.num_train_timesteps, len(latents))

    unet = UNet(
        channels=16, channel_multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,),
        num_heads=2, norm_groups=8,
    )  # fmt: skip
    unet.compile(keras.optimizers.AdamW(1e-3), loss="mse")
    history = unet.fit(
        {
            "noisy_latents": np.asarray(schedule.add_noise(latents, noise, timesteps)),
            "timesteps": timesteps.astype("int32"),
        },
        np.asarray(schedule.target(latents, noise, timesteps)),
        batch_size=16,
        epochs=max(steps // 4, 1),
        verbose=0,
    )

    sampler = samplers.DDIMSampler(schedule, num_steps=5)
    drawn = sampler.sample(
        lambda noisy_latents, t: unet({"noisy_latents": noisy_latents, "timesteps": t}),
        numbers.standard_normal((2, 8, 8, 4)),
    )
    print(f"loss {history.history['loss'][-1]:.3f}, sampled {tuple(drawn.shape)}")
    return history.history["loss"][-1]


if __name__ == "__main__":
    main()
