"""Strategy of `tf.distribute` by its name in `--strategy`: devices and processes of a command.

    one           a single device
    mirrored      all GPUs of this machine; each holds the model and a share of every batch
    mirrored:N    the first N of them; without GPUs, N logical CPU devices, for tests
    multi-worker  one process on each host; TF_CONFIG or Slurm says which
    auto          multi-worker where TF_CONFIG or Slurm says so, mirrored with several GPUs,
                  else one

Batch sizes are those of all replicas together, and results do not depend on their number: see
`distribution.replicas`. Of several workers number 0 is the chief. It alone writes files and all
read them, so the folders have to be on a filesystem that all workers share.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup, parse_strategy
from latentddpm.distribution.replicas import in_multi_worker_mode
from latentddpm.errors import UserError

HEALTH_SECONDS = 10
"""Interval between two checks that the other workers are alive."""
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
"""Errors of collective operations after another worker has ended."""
OF_OTHERS = re.compile("collective ops is aborted|incarnation|heartbeat|error received from peer")
"""Words, in lower case, in messages of other error types when another worker has ended."""
PORT = 8888
"""TCP port of the first worker on a host that Slurm starts; the others have the next ones."""


def make_strategy(name: str) -> tf.distribute.Strategy:
    """Strategy of a name; has to be made before TensorFlow's devices are used.

    Args:
        name: as of `--strategy`, see the module.

    Raises:
        UserError: an unknown name, more GPUs than there are, devices that are in use already,
            or neither TF_CONFIG nor Slurm describes the workers.
    """
    name, count = parse_strategy(name)
    several = "TF_CONFIG" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1
    if name == "multi-worker" or (name == "auto" and several):
        return _multi_worker()
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
        # In one memory sums need no collective operations, each of which blocks a thread.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def _multi_worker() -> tf.distribute.Strategy:
    resolver = _resolver()
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    except RuntimeError as error:
        raise UserError(f"--strategy multi-worker: {error}") from None
    strategy.extended._check_health_interval = HEALTH_SECONDS
    return strategy


def _resolver() -> tf.distribute.cluster_resolver.ClusterResolver:
    """Addresses of the workers, from TF_CONFIG or else from Slurm's environment.

    Raises:
        UserError: there is neither, or it is malformed.
    """
    text = os.environ.get("TF_CONFIG")
    if text is not None:
        check_tf_config(text)
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if "SLURM_PROCID" not in os.environ:
        raise UserError(
            "--strategy multi-worker: expected TF_CONFIG in the environment, or to be started by "
            "srun; latentddpm help distributed shows both"
        )
    try:
        return tf.distribute.cluster_resolver.SlurmClusterResolver(port_base=PORT)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(f"--strategy multi-worker: Slurm's environment: {error}") from None


def check_tf_config(text: str) -> None:
    """Check a TF_CONFIG for mistakes that make TensorFlow fail obscurely or wait for ever.

    Args:
        text: of the environment variable.

    Raises:
        UserError: something is missing or wrong in it.
    """
    shape = '{"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", "index": N}}'
    try:
        config: Any = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        kind, index = task["type"], int(task["index"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"TF_CONFIG: expected {shape}, got {text!r}") from None
    for job, addresses in cluster.items():
        if job not in ("chief", "worker"):
            raise UserError(f"TF_CONFIG: cluster has {job!r}; expected worker, and chief if any")
        for address in addresses:
            if not re.fullmatch(r".+:\d+", str(address)):
                raise UserError(f"TF_CONFIG: address {address!r}, expected HOST:PORT")
    if kind not in cluster:
        raise UserError(f"TF_CONFIG: task.type {kind!r}, expected {' or '.join(cluster)}")
    if index not in range(len(cluster[kind])):
        raise UserError(
            f"TF_CONFIG: task.index {index}, expected 0 … {len(cluster[kind]) - 1}: "
            f"there are {len(cluster[kind])} addresses of {kind}"
        )


def in_scope(strategy: tf.distribute.Strategy | None) -> contextlib.AbstractContextManager:
    """Scope of a strategy, to make networks and optimizers in; None means one device."""
    return (strategy or tf.distribute.get_strategy()).scope()


def process_group(strategy: tf.distribute.Strategy | None) -> ProcessGroup:
    """Group of the processes of a strategy; None means one device."""
    if strategy is None or not in_multi_worker_mode(strategy):
        return ONE_PROCESS
    resolver = strategy.cluster_resolver
    jobs = resolver.cluster_spec().as_dict()
    before = len(jobs.get("chief", ())) if resolver.task_type == "worker" else 0
    count = sum(map(len, jobs.values()))
    return ProcessGroup(before + resolver.task_id, count, lambda: _summed(strategy)(0.0))


def any_process(strategy: tf.distribute.Strategy | None) -> Callable[[bool], bool] | None:
    """Function answer → true in all processes, if the answer of one of them is true.

    Returns:
        The function, which all processes have to call; None for a strategy of one process.
    """
    if process_group(strategy) is ONE_PROCESS:
        return None
    return lambda answer: _summed(strategy)(float(answer)) > 0


@functools.cache
def _summed(strategy: tf.distribute.Strategy) -> Callable[[float], float]:
    """Function number → sum of the numbers of all processes, which all have to call."""

    @tf.function(input_signature=[tf.TensorSpec((), tf.float32)])
    def total(value: tf.Tensor) -> tf.Tensor:
        return strategy.reduce(
            tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, args=(value,)), axis=None
        )

    return lambda value: float(total(tf.constant(value, tf.float32)))


def distribute_dataset(strategy: tf.distribute.Strategy | None, dataset: tf.data.Dataset) -> Any:
    """Dataset for `fit`, in which the replicas of a process share each of its batches.

    (By default `fit` fills a replica's share of a batch up with examples of the next batch, which
    may have another shape.)

    Args:
        strategy: with the replicas; None means one device.
        dataset: batches of this process.

    Returns:
        A distributed dataset, or for a single replica `dataset` itself.
    """
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return dataset
    processes = process_group(strategy)
    # Of unknown length, so that a process with fewer batches goes on with empty ones.
    own = dataset.filter(lambda *batch: True)
    local = strategy.num_replicas_in_sync // processes.count

    def parts(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return own if local == 1 else own.flat_map(_in_parts(local))

    return strategy.distribute_datasets_from_function(parts)


def _in_parts(count: int) -> Callable[..., tf.data.Dataset]:
    """Function batch → a dataset of `count` parts of it, of about equal size."""

    def cut(*batch: Any) -> tf.data.Dataset:
        batch = batch[0] if len(batch) == 1 else batch
        size = tf.shape(tf.nest.flatten(batch)[0], tf.int64)[0]

        def part(index: tf.Tensor) -> Any:
            start, stop = index * size // count, (index + 1) * size // count
            return tf.nest.map_structure(lambda tensor: tensor[start:stop], batch)

        return tf.data.Dataset.range(count).map(part)

    return cut


@contextlib.contextmanager
def translate_worker_errors(
    strategy: tf.distribute.Strategy | None, resumes: bool = False
) -> Iterator[None]:
    """Replace TensorFlow's errors after the loss of another worker by a single line.

    Args:
        strategy: of the block; None means one device.
        resumes: the command in the block has `--resume`, which the message then mentions.

    Raises:
        ConnectionError: another worker was lost.
    """
    processes = process_group(strategy)
    try:
        yield
    except tf.errors.OpError as error:
        if processes is ONE_PROCESS or not is_lost(error):
            raise
        again = " with --resume to go on from the newest checkpoint" if resumes else ""
        raise ConnectionError(
            f"worker {processes.index} of {processes.count} lost another one "
            f"({type(error).__name__}); start all of them again{again}"
        ) from error


def is_lost(error: tf.errors.OpError) -> bool:
    """True for an error that means another worker has ended."""
    return isinstance(error, LOST) or bool(OF_OTHERS.search(error.message.lower()))
