"""`--strategy`: on which devices a training runs.

    one          a single device
    mirrored     all GPUs of this machine, each holding the model and a share of every batch;
    mirrored:N   the first N of them, or without GPUs N logical CPU devices, for practice
    auto         mirrored with several GPUs, else one

Batch sizes are global whatever the number of replicas, and so are results: see `models.replicas`.
"""

from __future__ import annotations

import contextlib
import re

import tensorflow as tf

from latentddpm.errors import UserError, check_choice

STRATEGIES = ("auto", "one", "mirrored")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of a name; before anything else in the process uses TensorFlow's devices.

    Raises:
        UserError: an unknown name, more GPUs than there are, devices that are in use already.
    """
    count = None
    if found := re.fullmatch(r"mirrored:(\d+)", name):
        name, count = "mirrored", int(found[1])
        if not count:
            raise UserError("--strategy mirrored:0: expected at least one device")
    check_choice("--strategy", name, STRATEGIES)
    gpus = tf.config.list_physical_devices("GPU")
    if name == "one" or (name == "auto" and len(gpus) < 2):
        return tf.distribute.get_strategy()
    if not gpus:
        return _mirrored_on_cpu(count or 1)
    if count and count > len(gpus):
        raise UserError(f"--strategy mirrored:{count}: this machine has {len(gpus)} GPUs")
    return tf.distribute.MirroredStrategy([f"GPU:{i}" for i in range(count or len(gpus))])


def _mirrored_on_cpu(count: int) -> tf.distribute.Strategy:
    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration()] * count
    try:
        if tf.config.get_logical_device_configuration(cpu) != devices:
            tf.config.set_logical_device_configuration(cpu, devices)
    except RuntimeError:
        raise UserError(
            f"--strategy mirrored:{count}: TensorFlow runs already with another number of devices"
        ) from None
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(count)],
        # In one memory a sum needs no collective operations, which block a thread each.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def in_scope(strategy: tf.distribute.Strategy | None) -> contextlib.AbstractContextManager:
    """Where networks and their optimizers are made; None stands for one device."""
    return (strategy or tf.distribute.get_strategy()).scope()
