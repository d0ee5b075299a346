"""Peak memory and time of Stable Diffusion's autoencoder at a size, in one pass or in strips.

    python benchmarks/strips.py decode 2048 --strip 16
    python benchmarks/strips.py decode 512 --strip 64 --compare

Random weights and inputs, float32. One way a process, for memory is counted at its most;
`--compare` runs one pass after the strips and prints how far these are from it.
"""

import argparse
import resource
import time

import numpy as np

from latentddpm.utils.startup import import_keras

FACTOR = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("half", choices=("decode", "encode"))
    parser.add_argument("side", type=int, help="of the square image, in pixels")
    parser.add_argument("--strip", type=int, help="height in pixels [default: one pass]")
    parser.add_argument("--compare", action="store_true", help="the strips with one pass")
    options = parser.parse_args()
    import_keras()
    import keras

    from latentddpm.models.autoencoder.encoder_decoder import Decoder, Encoder
    from latentddpm.models.autoencoder.strips import run_in_strips

    keras.utils.set_random_seed(0)
    decodes = options.half == "decode"
    network = Decoder() if decodes else Encoder()
    scale = FACTOR if decodes else 1  # pixels along a side of an input position
    side = options.side // scale
    inputs = np.random.default_rng(0).normal(size=(1, side, side, 4 if decodes else 3))
    inputs = inputs.astype(np.float32)
    print(f"before: {_peak():.2f} GiB")

    wall, cpu = time.perf_counter(), time.process_time()
    if options.strip is None:
        outputs = np.asarray(network(inputs))
    else:
        outputs = run_in_strips(network, inputs, options.strip // scale, progress=True)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{options.half} {options.side}: peak {_peak():.2f} GiB, {wall:.0f} s, CPU {cpu:.0f} s")
    if options.compare:
        whole = np.asarray(network(inputs))
        largest = np.abs(outputs - whole).max()
        print(f"differs from one pass by at most {largest:.1e}; std {whole.std():.2f}")


def _peak() -> float:
    """Resident memory at its most, GiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
