"""Trainer: a Keras model that holds a network, and the step that `fit` and `evaluate` take.

    L = (1/B) Σᵢ ℓᵢ over the global batch;  g = ∇L;  g ← g · min(1, c / ‖g‖);  one update

A network is a function and knows nothing of its training; `keras.distillation.Distiller` wraps
its student in the same way. Keras's own step gives every replica of a `tf.distribute` strategy
the same weight, however many examples it holds; it clips each replica's gradients before they are
summed, and logs what one replica saw. This step adds sums over examples (see
`distribution.replicas`). So any split of a batch, over replicas and over `accumulation_steps`
micro-batches, gives the same weights and the same logs. A gradient that is not finite changes
nothing. Backends other than TensorFlow take Keras's step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from latentddpm.training.step.metrics import Means

Term = Any | tuple[Any, Any]
"""Mean over examples, or a pair of such a mean and the number of its examples."""


class Trainer(keras.Model):
    """Trainer of any Keras network: `compile`, `fit`, `evaluate`, on one device or on many.

    Make it in the `scope()` of a strategy, as any Keras model. It trains the network that it was
    given: save and use that network.

    The logs of a training step:

        loss, …        the terms of `loss_terms`, means since the metrics were last reset
        gradient_norm  global norm before clipping, such a mean too
        loss_scale     in float16 only
        skipped        1 if this step changed nothing, because something was not finite

    A subclass with other terms names them in `term_names` and returns them from `loss_terms`. One
    with an update of its own overrides `train_step` and builds it from `over_batch`,
    `update.apply_gradients` and `report`.

    Args:
        network: any Keras model.
        kwargs: passed to `keras.Model`, such as `name`.

    Call arguments:
        inputs: those of the network.

    Example:
        ```python
        network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        trainer = Trainer(network)
        trainer.compile("adam", loss="mse", accumulation_steps=2)
        history = trainer.fit(np.ones((8, 4)), np.ones((8, 2)), batch_size=4, verbose=0)
        ```
    """

    term_names: tuple[str, ...] = ("loss",)

    def __init__(self, network: keras.Model | None = None, **kwargs: Any) -> None:
        # Inputs and losses keep their type: each network casts its own inputs.
        super().__init__(autocast=False, **kwargs)
        if network is not None:
            self.network = network
            self.built = network.built

    def call(self, inputs, training=None):
        return self.network(inputs, training=training)

    def compile(
        self,
        optimizer: Any = "adamw",
        loss: Any = None,
        *,
        accumulation_steps: int = 1,
        **kwargs: Any,
    ) -> None:
        """Set up training.

        Where a layer computes in float16, a `keras.optimizers.LossScaleOptimizer` scales the loss.

        Args:
            optimizer, loss: see `keras.Model.compile`.
            accumulation_steps: micro-batches, at least 1, that each replica's share of a batch is
                cut into. They run one after the other before a single update.
            kwargs: further arguments of `keras.Model.compile`.

        Raises:
            ValueError: fewer than one micro-batch, or more than one without TensorFlow.
        """
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps={accumulation_steps}, expected at least 1")
        if accumulation_steps > 1 and not on_tensorflow():
            raise ValueError("accumulation_steps: needs the TensorFlow backend of Keras")
        super().compile(scaling_optimizer(optimizer, self), loss, **kwargs)
        self.accumulation_steps = accumulation_steps
        extra = ("gradient_norm",) if on_tensorflow() else ()
        self._means = Means((*self.term_names, *extra))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Metrics of the model; the loss and its terms count the examples of all replicas."""
        metrics = list(super().metrics)
        if not self.compiled:
            return metrics
        own = dict(self._means.by_name)
        if on_tensorflow():
            metrics.remove(self._loss_tracker)
        else:
            del own["loss"]
        return [*own.values(), *metrics]

    def loss_terms(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool
    ) -> Mapping[str, Term]:
        """Terms of a step's logs by name; `"loss"` is the one that is minimized.

        Args:
            x, y, sample_weight: a micro-batch, examples first; `y` and the weights may be None.
            y_pred: the trainer's output for `x`.
            training: False in `evaluate`.

        Returns:
            A mean over the examples for each of `term_names`, or (mean, number of examples).
        """
        loss = self._compute_loss(x, y, y_pred, sample_weight, training=training)
        # Keras divides the loss by the number of replicas, each of which calls this method.
        from latentddpm.distribution import replicas

        return {"loss": loss * replicas.num_replicas()}

    def train_step(self, *arguments: Any) -> dict[str, Any]:
        if not on_tensorflow():
            return super().train_step(*arguments)
        import tensorflow as tf

        from latentddpm.training.step.update import apply_gradients

        variables = self.trainable_variables

        def gradients(x: Any, y: Any, sample_weight: Any, number: Any) -> Any:
            with tf.GradientTape() as tape:
                y_pred = self(x, training=True)
                terms = self.loss_terms(x, y, y_pred, sample_weight, True)
                loss = self.optimizer.scale_loss(_value(terms["loss"]) * number)
            self.update_compiled_metrics(y, y_pred, sample_weight, number)
            return dense_gradients(tape, loss, variables), terms

        sums, terms, number = self.over_batch(*arguments, gradients)
        finite = tf.math.is_finite(terms["loss"][0])
        norm, updated = apply_gradients(self.optimizer, variables, sums, number, finite)
        return self.report({**terms, "gradient_norm": (norm, 1.0)}, updated)

    def test_step(self, *arguments: Any) -> dict[str, Any]:
        if not on_tensorflow():
            return super().test_step(*arguments)

        def measure(x: Any, y: Any, sample_weight: Any, number: Any) -> Any:
            y_pred = self(x, training=False)
            self.update_compiled_metrics(y, y_pred, sample_weight, number)
            return (), self.loss_terms(x, y, y_pred, sample_weight, False)

        _, terms, _ = self.over_batch(*arguments, measure, slices=1)
        return self.report(terms)

    def over_batch(
        self, data: Any, function: Callable[..., Any], slices: int | None = None
    ) -> tuple[Any, dict[str, tuple[Any, Any]], Any]:
        """Sums of a function over the micro-batches of this replica's share of a batch.

        Args:
            data: a batch as `fit` hands it to a step.
            function: (x, y, sample_weight, number) → (sums, terms), with `sums` any structure of
                tensors, each a sum over the `number` examples, such as gradients, and `terms`
                as `loss_terms` returns them.
            slices: number of micro-batches; None for `accumulation_steps`.

        Returns:
            (sums, terms, number): `sums` of this replica alone, which `update.apply_gradients`
            adds over the replicas; `terms`, name → (mean, number of its examples), over the
            global batch; `number` of examples in the global batch, float32.
        """
        from latentddpm.distribution import replicas

        names: list[str] = []

        def one(part: Any, number: Any) -> Any:
            sums, terms = function(*keras.utils.unpack_x_y_sample_weight(part), number)
            names[:] = terms
            return sums, ops.stack([number, *_pairs(terms, number)])

        sums, numbers = replicas.sum_over_slices(
            one, data, slices or self.accumulation_steps, unroll=bool(self.jit_compile)
        )
        (numbers,) = replicas.all_reduce([numbers])
        number, *pairs = ops.unstack(numbers)
        terms = {
            name: (ops.divide_no_nan(total, weight), weight)
            for name, total, weight in zip(names, pairs[::2], pairs[1::2], strict=True)
        }
        return sums, terms, number

    def report(self, terms: Mapping[str, tuple[Any, Any]], updated: Any = None) -> dict[str, Any]:
        """Logs of a step, name → scalar, with its terms counted into the running means.

        Args:
            terms: name → (mean, number of its examples) over the global batch.
            updated: bool scalar, True where the weights were updated; None outside training.
        """
        from latentddpm.distribution import replicas

        logs = self.count_terms(terms)
        if self._compile_metrics is not None:
            logs.update(self._compile_metrics.result())
        if updated is not None:
            if _scales_loss(self.optimizer):
                logs["loss_scale"] = ops.convert_to_tensor(self.optimizer.dynamic_scale)
            logs["skipped"] = 1.0 - ops.cast(updated, "float32")
        if replicas.in_multi_worker_mode():
            # `fit` takes the mean over the first axis there.
            logs = {name: ops.reshape(value, (1,)) for name, value in logs.items()}
        return logs

    def count_terms(self, terms: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
        """Running means, name → scalar, with the terms of a batch counted.

        Args:
            terms: name → (mean, number of its examples) over the global batch.
        """
        logs = {}
        for name, (value, weight) in terms.items():
            mean = self._means.by_name[name]
            mean.update_state(value, weight)
            logs[name] = mean.result()
        return logs

    def update_compiled_metrics(
        self, y: Any, y_pred: Any, sample_weight: Any, number: Any
    ) -> None:
        """Update the metrics of `compile(metrics=…)` with a micro-batch.

        Args:
            y, y_pred, sample_weight: of the micro-batch, examples first; each may be None.
            number: how many of its first examples are real; the rest is padding, left out.
        """
        if self._compile_metrics is None:
            return
        stop = ops.cast(number, "int32")
        parts = (y, y_pred, sample_weight)
        self._compile_metrics.update_state(
            *keras.tree.map_structure(lambda part: None if part is None else part[:stop], parts)
        )

    def checkpoint_groups(self) -> dict[str, list[Any]]:
        """Variables that the next step depends on, by group: all that a checkpoint holds."""
        return {"model": self.variables, "optimizer": checkpoint_variables(self.optimizer)}

    def _get_metrics_result_or_logs(self, logs: Any) -> dict[str, Any]:
        # Keras takes the metrics only when it finds all of them in the logs.
        results = self.get_metrics_result()
        return {name: results.get(name, value) for name, value in logs.items()}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Build network, metrics and optimizer before the first step.

        Keras reads a batch for that and takes its mean over the replicas, which fails when the
        replicas are in several processes. The shapes are known without reading a batch.
        """
        if not on_tensorflow():
            super()._maybe_symbolic_build(iterator, data_batch)
            return
        with self.distribute_strategy.scope():
            metrics = self._compile_metrics
            if not self.built or (metrics is not None and not metrics.built):
                if data_batch is None:
                    data_batch = _local_spec(iterator.data_adapter.get_tf_dataset())
                self._symbolic_build(data_batch=data_batch)
            if self.optimizer is not None and not self.optimizer.built:
                self.optimizer.build(self.trainable_variables)


def on_tensorflow() -> bool:
    """True where Keras runs on TensorFlow."""
    return keras.backend.backend() == "tensorflow"


def dense_gradients(tape: Any, loss: Any, variables: Sequence[keras.Variable]) -> list[Any]:
    """Dense gradients of a loss, one tensor of each variable's shape.

    Args:
        tape: a `tf.GradientTape` that recorded the loss.
        loss: scalar.
        variables: to differentiate by; zeros where the loss does not depend on one.
    """
    import tensorflow as tf

    tensors = [variable.value for variable in variables]
    gradients = tape.gradient(loss, tensors, unconnected_gradients="zero")
    # Embeddings give `IndexedSlices`; of other gradients TensorFlow may not know the shape.
    dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
    return [
        each if each.shape.is_fully_defined() else tf.ensure_shape(each, variable.shape)
        for each, variable in zip(dense, variables, strict=True)
    ]


def _local_spec(dataset: Any) -> Any:
    """Shapes and dtypes of one replica's batch."""
    import tensorflow as tf

    specs = dataset.element_spec
    return tf.nest.map_structure(lambda spec: getattr(spec, "_value_specs", (spec,))[0], specs)


def _value(term: Term) -> Any:
    return term[0] if isinstance(term, tuple) else term


def _pairs(terms: Mapping[str, Term], number: Any) -> list[Any]:
    """Total and weight of each term, in turn; a padding example weighs nothing."""
    pairs = []
    for term in terms.values():
        value, weight = term if isinstance(term, tuple) else (term, number)
        weight = ops.cast(weight, "float32") * ops.cast(number > 0, "float32")
        value = ops.cast(value, "float32")
        # The mean of zero examples is 0/0.
        pairs += [ops.where(weight > 0, value * weight, 0.0), weight]
    return pairs


def scaling_optimizer(optimizer: Any, network: keras.Model) -> keras.optimizers.Optimizer:
    """Optimizer of a network, with loss scaling where a layer computes in float16.

    Args:
        optimizer: a Keras optimizer, its name or its configuration.
        network: the model that it trains.
    """
    optimizer = keras.optimizers.get(optimizer)
    in_float16 = any(layer.compute_dtype == "float16" for layer in network._flatten_layers())
    if in_float16 and not _scales_loss(optimizer):
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def checkpoint_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """State of an optimizer for a checkpoint, in an order that stays.

    Args:
        optimizer: that is built.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    if not hasattr(inner, "checkpoint_variables"):
        return optimizer.variables
    own = {id(variable) for variable in inner.variables}
    around = [variable for variable in optimizer.variables if id(variable) not in own]
    return [*around, *inner.checkpoint_variables()]


def _scales_loss(optimizer: Any) -> bool:
    return isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
