"""Metrics: Fréchet and kernel distance, precision and recall, CLIP score, PSNR, SSIM, edges."""
