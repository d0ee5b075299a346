"""Every private name of Keras, TensorFlow and tf2onnx that the package uses.

Such names may go with any release. When one has gone, this fails with the list of them; when the
package comes to use another one, that has to be listed here.
"""

import ast
from pathlib import Path

import keras
import pytest
import tensorflow as tf

import latentddpm

PACKAGE = Path(latentddpm.__file__).parent


def worker_strategy():
    from tensorflow.python.distribute import collective_all_reduce_strategy

    return collective_all_reduce_strategy.CollectiveAllReduceExtended


def compiled_model():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("adam", loss="mse")
    return model


def functional_model():
    inputs = keras.Input((1,))
    return keras.Model(inputs, keras.layers.Dense(1)(inputs))


def averaging_optimizer():
    optimizer = keras.optimizers.AdamW(use_ema=True)
    optimizer.build([keras.Variable([1.0])])
    return optimizer


def distributed_values():
    from tensorflow.python.distribute.values import PerReplicaSpec

    return PerReplicaSpec(tf.TensorSpec(()))


def onnx_rewriter():
    return pytest.importorskip("tf2onnx.optimizer")


# What has the names → the names: read, called, overridden or assigned by the package.
PRIVATE = {
    compiled_model: {
        "_compile_metrics",
        "_compute_loss",
        "_flatten_layers",
        "_get_metrics_result_or_logs",
        "_loss_tracker",
        "_maybe_symbolic_build",
        "_symbolic_build",
    },
    functional_model: {"_run_through_graph"},
    averaging_optimizer: {
        "_all_reduce_sum_gradients",
        "_backend_apply_gradients",
        "_distribution_strategy",
        "_iterations",
        "_model_variables_moving_average",
        "_overwrite_model_variables_with_average_value",
        "_trainable_variables",
        "_trainable_variables_indices",
        "_update_model_variables_moving_average",
        "_use_weight_decay",
        "_var_key",
    },
    worker_strategy: {"_check_health_interval"},
    distributed_values: {"_value_specs"},
    onnx_rewriter: {"_get_optimizers"},
}
ELSEWHERE = {"_replace"}  # of Python's named tuples
LISTED = set().union(*PRIVATE.values(), ELSEWHERE)


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def names_used():
    """Private names that the package takes from objects, or overrides, and does not define."""
    used, own, overridden = set(), set(), set()
    bases = compiled_model(), averaging_optimizer(), keras.metrics.Mean(), keras.losses.Loss()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, DEFINED) and is_private(node.name):
                own.add(node.name)
            if isinstance(node, ast.ClassDef):
                methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
                overridden |= {
                    name
                    for name in filter(is_private, methods)
                    if any(hasattr(base, name) for base in bases)
                }
            if isinstance(node, ast.Attribute) and is_private(node.attr):
                of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
                mine = of_self and isinstance(node.ctx, ast.Store)
                (own if mine and node.attr not in LISTED else used).add(node.attr)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own.add(node.target.id)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                name = getattr(node.args[1], "value", "")
                if isinstance(name, str) and is_private(name):
                    used.add(name)
    return (used - own) | overridden


def test_all_are_there():
    gone = []
    for owner, names in PRIVATE.items():
        thing = owner()
        gone += [f"{name} ({owner.__name__})" for name in names if not hasattr(thing, name)]
    versions = f"Keras {keras.__version__}, TensorFlow {tf.__version__}"
    assert not gone, f"{versions} lack what the package uses: {', '.join(sorted(gone))}"


def test_all_are_listed():
    used = names_used()
    assert used <= LISTED, f"private names that PRIVATE does not list: {sorted(used - LISTED)}"
    assert used >= LISTED, f"listed, but not used any more: {sorted(LISTED - used)}"
