"""CompVis single files: Stable Diffusion 1.x checkpoints in one `.safetensors` file."""
