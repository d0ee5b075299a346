"""Start of a call: noise, or a picture with its mask, and the latents of the first step."""
