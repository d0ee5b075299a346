"""Devices of a generation: engine and precision, and the processes that share the images.

--engine       else the engine of the PNG that is made again, else auto
--precision    else that of the PNG, else auto: float32 on a processor. Half precision is Keras's
--strategy     several devices or processes are Keras's; so auto means keras with them
--region       masked attention is Keras's; so auto means keras with regions
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from latentddpm.choices import AUTO, HALF, JIT, PRECISIONS
from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup, parse_strategy
from latentddpm.engines.networks import choose_engine
from latentddpm.errors import UserError, check_choice
from latentddpm.pipeline.model_folder import ModelFolder
from latentddpm.utils.machine.accelerators import has_accelerator

ALONE = ("auto", "one")
"""Strategies that do not ask for several devices."""


def precision_of(given: str | None, remembered: str | None = None) -> str:
    """Precision of a generation: "auto" only where the device decides, which Keras knows.

    Args:
        given: on the command line; None for none.
        remembered: of the PNG to make again; None for none.

    Raises:
        UserError: it is not known.
    """
    asked = check_choice("--precision", given or remembered or AUTO, (AUTO, *PRECISIONS))
    return "float32" if asked == AUTO and not has_accelerator() else asked


def engine_of(
    folder: ModelFolder,
    given: str | None,
    remembered: str | None,
    strategy: str,
    precision: str = AUTO,
    regions: bool = False,
) -> tuple[str, str | None]:
    """Engine of a generation, and a sentence for people where it is not the one of the PNG.

    Args:
        folder: of the model.
        given: on the command line; None for none.
        remembered: of the PNG to make again; None for none.
        strategy: as of `--strategy`.
        precision: returned by `precision_of`.
        regions: True where parts of the images have prompts of their own.

    Raises:
        UserError: see `engines.networks.choose_engine`; or an engine that cannot do what the
            strategy or the regions ask for.
    """
    several = parse_strategy(strategy)[0] not in ALONE
    if given == "onnx" and several:
        raise UserError(
            f"--engine onnx: computes on one processor; --strategy {strategy} needs --engine keras"
        )
    if given == "onnx" and regions:
        raise UserError("--engine onnx: its graphs have no regions; --region needs --engine keras")
    layers = several or regions
    if given is None and remembered is not None and not layers and precision not in HALF:
        try:
            return choose_engine(remembered, folder), None
        except UserError:
            note = f"made with the engine {remembered}, which cannot be had here: "
            return "keras", f"{note}keras draws it, and single pixels may differ by one level"
    return choose_engine("keras" if layers else given or AUTO, folder, precision), None


def jit_of(given: str | None, engine: str) -> bool | None:
    """Choice of compiling the networks with XLA; None for Keras's own, which is on GPUs.

    Args:
        given: one of `choices.JIT`; None for "auto".
        engine: returned by `engine_of`.

    Raises:
        UserError: another word, or "on" for an engine that has no XLA.
    """
    check_choice("--jit", given or AUTO, JIT)
    if given == "on" and engine != "keras":
        raise UserError(f"--jit on: the engine {engine} has no XLA; expected --engine keras")
    return {"on": True, "off": False}.get(given)


@contextlib.contextmanager
def devices(engine: str, strategy: str) -> Iterator[ProcessGroup]:
    """Scope of a strategy, whose devices networks made inside use; yields its processes.

    Args:
        engine: returned by `engine_of`.
        strategy: as of `--strategy`.

    Raises:
        UserError: the strategy needs another backend of Keras.
    """
    if engine != "keras":
        yield ONE_PROCESS
        return
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        from latentddpm.distribution.strategy import (
            in_scope,
            make_strategy,
            process_group,
            translate_worker_errors,
        )

        found = make_strategy(strategy)
        with translate_worker_errors(found), in_scope(found):
            yield process_group(found)
    elif strategy in ALONE:
        yield ONE_PROCESS
    else:
        raise UserError(f"--strategy {strategy}: needs KERAS_BACKEND=tensorflow, not {backend}")
