"""The only place that knows which Keras backend runs (TensorFlow by default, JAX with KERAS_BACKEND=jax).

Import it before anything else that imports Keras: it sets what the backends read once, at their import.
"""

import contextlib
import importlib.util
import math
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from travelling.errors import InputError, first_line

BACKEND = os.environ.setdefault("KERAS_BACKEND", "tensorflow")  # not that of the user's keras.json
if BACKEND not in ("tensorflow", "jax"):
    raise InputError(f"KERAS_BACKEND={BACKEND}: is not supported; tensorflow (also where it is not set) and jax are")
if not importlib.util.find_spec(BACKEND):
    file = "requirements.txt" if BACKEND == "tensorflow" else f"requirements-{BACKEND}.txt"
    raise InputError(f"KERAS_BACKEND={BACKEND}: {BACKEND} is not installed; pip install -r {file}")
# TensorFlow leaves its oneDNN kernels and memory pool off on CPUs without AVX-512, where they are worth a
# factor of five for 3-D convolutions just as well.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
_QUIET = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@contextlib.contextmanager
def _quiet_start():
    """Keep the start-up chatter of the C++ libraries off the terminal (TF_CPP_MIN_LOG_LEVEL=0 shows it)."""
    if not _QUIET:
        yield
        return
    sys.stderr.flush()
    terminal = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


try:
    with _quiet_start():
        import keras
except Exception as error:  # whatever a keras.json, a style of figures or another version makes it raise
    reason = f"cannot be imported ({first_line(error)}); is ~/.keras/keras.json sound?"
    raise InputError(f"KERAS_BACKEND={BACKEND}: {reason}") from None

# Nor what else keras.json says: a tip to save memory for another project would change every number here.
keras.config.set_floatx("float32")
keras.config.set_epsilon(1e-7)
keras.config.set_image_data_format("channels_last")
# Keras may choose XLA by itself, which is five times slower for 3-D convolutions on a CPU; JAX has only XLA.
JIT_COMPILE = "auto" if BACKEND == "jax" else False


def start(seed: int, deterministic: bool = False, precision: str = "float32") -> str:
    """Seed everything, let GPU memory grow as needed, and return the device in words.

    ``precision`` is that of the models built or loaded from now on (float32, or Keras' mixed bfloat16 or float16).
    On a CPU equal runs give equal bits in any case; on a GPU they do so if ``deterministic``. Call it before anything
    is computed. Raises InputError where the device cannot compute in this precision.
    """
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    return (_start_tensorflow if BACKEND == "tensorflow" else _start_jax)(deterministic, precision)


def _start_tensorflow(deterministic, precision):
    import tensorflow as tf

    def describe(gpu):
        details = tf.config.experimental.get_device_details(gpu)
        return details.get("device_name", gpu.name), details.get("compute_capability", (0,))[0]

    with _quiet_start():
        gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # devices are up already: the run goes on as they are
            tf.config.experimental.set_memory_growth(gpu, True)
    if precision == "float16" and not gpus:
        raise InputError("--precision float16: TensorFlow pools volumes in float16 on a GPU only")
    if deterministic or not gpus:
        tf.config.experimental.enable_op_determinism()
    rounds = tf.config.experimental.tensor_float_32_execution_enabled()
    names = [_in_words(gpu.name, lambda gpu=gpu: describe(gpu), rounds) for gpu in gpus]
    return ", ".join(names) or "CPU (TensorFlow sees no GPU; TF_CPP_MIN_LOG_LEVEL=0 shows why)"


def _start_jax(deterministic, precision):
    if deterministic:  # read when the first device is used, not at the import
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    import jax

    def describe(device):
        capability = re.match(r"\d+", str(getattr(device, "compute_capability", "")))  # "9.0"; others "gfx90a"
        return f"{device.platform.upper()} {device.device_kind}", int(capability[0]) if capability else 0

    jax.config.update("jax_enable_x64", False)  # of another project's environment
    rounds = jax.config.jax_default_matmul_precision not in ("highest", "float32")
    return ", ".join(_in_words(str(one), lambda one=one: describe(one), rounds) for one in jax.devices())


def _in_words(name, describe, rounds):
    """A device in words, and whether it rounds the factors of products in float32: NVIDIA's cards since Ampere do."""
    generation = 0
    with contextlib.suppress(Exception):  # words for the log must not stop a run
        name, generation = describe()
    forbidden = os.environ.get("NVIDIA_TF32_OVERRIDE") == "0"
    return f"{name} (float32 as TF32)" if rounds and generation >= 8 and not forbidden else name


def train_like_keras_2(norm: keras.layers.BatchNormalization) -> None:
    """Make a BatchNormalization layer of volumes train as it did in the published runs, under Keras 2.10.

    There it was one fused operation, which normalizes by the variance of the batch, but adds the *unbiased* one to the
    moving statistics. Keras 3 composes the layer of simple operations and keeps the biased one. In a batch of few
    voxels, as in the last layers, the two are far apart: decisions of quality control depend on it.
    """
    composed = norm.call

    def call(inputs, training=None, mask=None):
        if not training:
            return composed(inputs, training=training, mask=mask)
        output, moving_mean, moving_variance = _normalize(norm, inputs)
        norm.moving_mean.assign(moving_mean)
        norm.moving_variance.assign(moving_variance)
        return output

    norm.call = call


def _normalize(norm, inputs):
    """A training step of BatchNormalization on (batch, z, y, x, channels): output, new moving mean and variance."""
    if BACKEND == "tensorflow":
        import tensorflow as tf

        # Not on an array reshaped to 4-D, which oneDNN takes: that is faster, but it sums in another order, and at full
        # size its mean and variance of inverted images are less accurate; a published log came out on 5-D alone.
        return tf.compat.v1.nn.fused_batch_norm(
            inputs,
            norm.gamma,
            norm.beta,
            norm.moving_mean,
            norm.moving_variance,
            norm.epsilon,
            data_format="NDHWC",
            exponential_avg_factor=1 - norm.momentum,
        )
    volumes = keras.ops.cast(inputs, "float32")
    mean, variance = keras.ops.moments(volumes, axes=(0, 1, 2, 3))
    output = keras.ops.batch_normalization(volumes, mean, variance, -1, norm.beta, norm.gamma, norm.epsilon)
    number = math.prod(volumes.shape[:-1])
    return (
        keras.ops.cast(output, norm.compute_dtype),
        norm.moving_mean * norm.momentum + mean * (1 - norm.momentum),
        norm.moving_variance * norm.momentum + variance * number / (number - 1) * (1 - norm.momentum),
    )


def compile_training_step(network: keras.Model) -> Callable[[np.ndarray, np.ndarray], tuple[float, bool]]:
    """One compiled step for all batch sizes: f(images, labels) -> (loss, whether all values of the state are finite).

    It changes the network's state. ``network`` is compiled with loss and optimizer. A fixed signature makes it one
    trace: TensorFlow would otherwise trace anew by the sizes it has met so far, and a resumed run meets them in
    another order.
    """
    state = [*network.variables, *network.optimizer.variables]
    if BACKEND != "tensorflow":
        import jax

        look = jax.jit(are_finite)

        def train_and_look(images, labels):
            loss = float(network.train_on_batch(images, labels))
            return loss, bool(look([variable.value for variable in state]))

        return train_and_look

    import tensorflow as tf

    signature = (
        tf.TensorSpec([None, *network.input_shape[1:]], tf.float32),
        tf.TensorSpec([None, 1], tf.float32),
    )

    @tf.function(input_signature=signature, autograph=False)
    def step(images, labels):
        loss = network.train_step((images, labels))["loss"]
        return loss, are_finite([variable.value for variable in state])

    def train(images, labels):
        network.reset_metrics()  # the loss of this batch, not the mean since the first
        loss, finite = step(images, labels)
        return float(loss), bool(finite)

    return train


def are_finite(values: list) -> Any:
    """Whether all numbers of some tensors are finite, as a tensor: those of whole numbers always are."""
    floats = [value for value in values if keras.backend.is_float_dtype(keras.backend.standardize_dtype(value.dtype))]
    return keras.ops.all(keras.ops.stack([keras.ops.all(keras.ops.isfinite(value)) for value in floats]))


def compile_prediction(
    variables: list, predict: Callable[[list, Any], Any], input_shape: tuple[int, ...]
) -> Callable[[np.ndarray, int | None], np.ndarray]:
    """Compile ``predict(values, images)``: f(images, largest_batch) -> probabilities, NumPy (batch, 1).

    ``values`` are those that ``variables`` have when f is called; ``input_shape`` is that of one image. JAX compiles
    for every size of a batch anew, and therefore fills up those that are smaller than the largest.
    """
    if BACKEND == "tensorflow":
        import tensorflow as tf

        @tf.function(input_signature=(tf.TensorSpec([None, *input_shape], tf.float32),), autograph=False)
        def compiled(images):
            return predict([variable.value for variable in variables], images)

        return lambda images, largest_batch: compiled(images).numpy()
    import jax

    predict = jax.jit(predict)

    def padded(images, largest_batch):
        number, missing = len(images), (largest_batch or len(images)) - len(images)
        if missing:  # otherwise images that are on the device stay there
            images = np.pad(images, [(0, missing)] + [(0, 0)] * len(input_shape))
        result = predict([variable.value for variable in variables], images)
        return keras.ops.convert_to_numpy(result)[:number]

    return padded


def compile_keep_and_restore(variables: list) -> tuple[Callable[[], list], Callable[[list], None]]:
    """Functions (keep, restore): copies of all variables on their device, and the way back, in one call each."""
    if BACKEND != "tensorflow":

        def assign(kept):
            for variable, value in zip(variables, kept, strict=True):
                variable.assign(value)

        return lambda: [keras.ops.copy(variable.value) for variable in variables], assign

    import tensorflow as tf

    @tf.function(input_signature=(), autograph=False)
    def keep():
        return [tf.identity(variable.value) for variable in variables]

    @tf.function(autograph=False)
    def restore(kept):
        for variable, value in zip(variables, kept, strict=True):
            variable.value.assign(value)

    return keep, restore
