"""`--strategy`: on which devices, and in how many processes, a command runs.

    one           a single device
    mirrored      all GPUs of this machine, each holding the model and a share of every batch;
    mirrored:N    the first N of them, or without GPUs N logical CPU devices, for practice
    multi-worker  one process a host, told of each other by TF_CONFIG or by Slurm
    auto          multi-worker with one of those, mirrored with several GPUs, else one

Batch sizes are global whatever the number of replicas, and so are results: see
`distribution.replicas`. Worker 0 of several is the chief, which alone writes; all read its
folders, so these lie on a filesystem that all workers see.
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

from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup
from latentddpm.distribution.replicas import in_multi_worker_mode
from latentddpm.errors import UserError, check_choice

STRATEGIES = ("auto", "one", "mirrored", "multi-worker")
HEALTH_SECONDS = 10
"""Between two looks at whether the other workers live."""
LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)
"""What collective operations raise when one of those they go on between has ended."""
OF_OTHERS = re.compile("collective ops is aborted|incarnation|heartbeat|error received from peer")
"""What an error of any other kind says then, in lower case; else it is this process's own."""
PORT = 8888
"""Of the workers that Slurm starts; the next ones for several on a host."""


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of a name; before anything else in the process uses TensorFlow's devices.

    Raises:
        UserError: an unknown name, more GPUs than there are, devices that are in use already,
            workers that are not told of each other.
    """
    count = None
    if found := re.fullmatch(r"mirrored:(\d+)", name):
        name, count = "mirrored", int(found[1])
        if not count:
            raise UserError("--strategy mirrored:0: expected at least one device")
    check_choice("--strategy", name, STRATEGIES)
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
        # In one memory a sum needs no collective operations, which block a thread each.
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
    """Who the workers are: TF_CONFIG, else Slurm.

    Raises:
        UserError: neither says so.
    """
    text = os.environ.get("TF_CONFIG")
    if text is not None:
        check_tf_config(text)
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if "SLURM_PROCID" not in os.environ:
        raise UserError(
            "--strategy multi-worker: expected TF_CONFIG in the environment, or to be started by "
            "srun; docs/guides/distributed.md shows both"
        )
    try:
        return tf.distribute.cluster_resolver.SlurmClusterResolver(port_base=PORT)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise UserError(f"--strategy multi-worker: Slurm's environment: {error}") from None


def check_tf_config(text: str) -> None:
    """Refuse a TF_CONFIG that TensorFlow would misread or wait on for ever.

    Raises:
        UserError: what is missing or wrong in it.
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
    """Where networks and their optimizers are made; None stands for one device."""
    return (strategy or tf.distribute.get_strategy()).scope()


def process_group(strategy: tf.distribute.Strategy | None) -> ProcessGroup:
    """The processes of a strategy."""
    if strategy is None or not in_multi_worker_mode(strategy):
        return ONE_PROCESS
    resolver = strategy.cluster_resolver
    jobs = resolver.cluster_spec().as_dict()
    before = len(jobs.get("chief", ())) if resolver.task_type == "worker" else 0
    count = sum(map(len, jobs.values()))
    return ProcessGroup(before + resolver.task_id, count, lambda: _summed(strategy)(0.0))


def any_process(strategy: tf.distribute.Strategy | None) -> Callable[[bool], bool] | None:
    """Whether any of the processes says yes, the same answer in all; None for one process."""
    if process_group(strategy) is ONE_PROCESS:
        return None
    return lambda answer: _summed(strategy)(float(answer)) > 0


@functools.cache
def _summed(strategy: tf.distribute.Strategy) -> Callable[[float], float]:
    """A number of each process → their sum, in all of them."""

    @tf.function(input_signature=[tf.TensorSpec((), tf.float32)])
    def total(value: tf.Tensor) -> tf.Tensor:
        return strategy.reduce(
            tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, args=(value,)), axis=None
        )

    return lambda value: float(total(tf.constant(value, tf.float32)))


def distribute_dataset(strategy: tf.distribute.Strategy | None, dataset: tf.data.Dataset) -> Any:
    """What `fit` is given: one process's batches, of which each of its replicas takes a part.

    (Left to itself `fit` fills the parts of one batch up with examples of the next one, which
    may be of another shape.)
    """
    if strategy is None or strategy.num_replicas_in_sync == 1:
        return dataset
    processes = process_group(strategy)
    # Of unknown length: one with fewer batches than others goes on with empty ones.
    own = dataset.filter(lambda *batch: True)
    local = strategy.num_replicas_in_sync // processes.count

    def parts(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return own if local == 1 else own.flat_map(_in_parts(local))

    return strategy.distribute_datasets_from_function(parts)


def _in_parts(count: int) -> Callable[..., tf.data.Dataset]:
    """A batch → `count` parts of it, as equal as can be."""

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
    """Turn what TensorFlow raises when a worker is gone into one line.

    Args:
        resumes: whether what runs in it takes `--resume`.

    Raises:
        ConnectionError: a worker was lost.
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
    """Whether an error says that another worker is gone."""
    return isinstance(error, LOST) or bool(OF_OTHERS.search(error.message.lower()))
