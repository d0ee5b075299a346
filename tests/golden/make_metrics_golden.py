"""What scikit-image, torch-fidelity and SciPy answer to `tests/support/metric_sets.py`.

pip install scikit-image torch-fidelity scipy      (beside the `reference` extra)
python tests/golden/make_metrics_golden.py [FILE]

tests/golden/metrics.json     one list or number for each metric
"""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from scipy.spatial.distance import cdist
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

# torch-fidelity imports torchvision, which its arithmetic of features does not use.
TORCHVISION = ("", ".datasets", ".transforms", ".transforms.functional")
sys.modules.update({f"torchvision{name}": MagicMock() for name in TORCHVISION})

from torch_fidelity.metric_fid import (  # noqa: E402
    fid_features_to_statistics,
    fid_statistics_to_metric,
)
from torch_fidelity.metric_kid import kernel_mmd, kernel_poly, mmd2  # noqa: E402
from torch_fidelity.metric_prc import prc_features_to_metric  # noqa: E402

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from metric_sets import feature_sets, image_pairs  # noqa: E402

WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
KERNEL = {
    "kid_kernel": "poly",
    "kid_kernel_poly_degree": 3,
    "kid_kernel_poly_gamma": None,
    "kid_kernel_poly_coef0": 1,
}
GOLDEN = ROOT / "tests" / "golden" / "metrics.json"


def similarities():
    """RMSE, PSNR and SSIM of every pair, from scikit-image."""
    pairs = list(zip(*image_pairs(), strict=True))
    return {
        "rmse": [float(mean_squared_error(a, b) ** 0.5) for a, b in pairs],
        "psnr": [float(peak_signal_noise_ratio(a, b, data_range=255)) for a, b in pairs],
        "ssim": [
            float(structural_similarity(a, b, data_range=255, channel_axis=-1, **WANG))
            for a, b in pairs
        ],
    }


def distances():
    """Distances of the two sets of features, the second standing for the generated one."""
    real, generated = feature_sets()
    tensors = torch.from_numpy(generated), torch.from_numpy(real)
    statistics = [fid_features_to_statistics(tensor) for tensor in tensors]
    kernels = [
        kernel_poly(*pair, **KERNEL)
        for pair in ((real, real), (real, generated), (generated, generated))
    ]
    precision_recall = prc_features_to_metric(
        *tensors, prc_neighborhood=3, prc_batch_size=64, save_cpu_ram=False, verbose=False
    )
    return {
        "frechet": fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"],
        "kernel": float(kernel_mmd(generated, real, **KERNEL)),
        "paired kernel": float(mmd2(*kernels, mmd_est="u-statistic")),
        "precision": precision_recall["precision"],
        "recall": precision_recall["recall"],
        **density_coverage(real, generated, k=5),
    }


def density_coverage(real, generated, k):
    """Naeem et al.'s equations, on SciPy's distances."""
    radii = np.sort(cdist(real, real), axis=1)[:, k]
    inside = cdist(real, generated) < radii[:, None]
    return {
        "density": float(inside.sum() / (k * len(generated))),
        "coverage": float(inside.any(axis=1).mean()),
    }


def answers():
    """Everything that the golden file holds."""
    return {**similarities(), **distances()}


if __name__ == "__main__":
    target = Path(sys.argv[1]) if sys.argv[1:] else GOLDEN
    target.write_text(json.dumps(answers(), indent=1) + "\n")
