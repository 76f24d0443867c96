"""A training step in two halves: a center computes the gradient, and the server takes the step.

Nothing that is not measured on images comes from a center: Adam's moments, the step count, the learning rate and the
random state of the dropout stay the server's, and a center never sees the moments, which hold the gradients of others.
Together the halves make the step of the scripts, bit for bit.
"""

from typing import Any

from travelling.network.inference_network import EvaluatedModel  # first: it prepares Keras

# isort: split
import keras
import numpy as np

ROUNDING = 1e-5  # of float32, and much more


class GradientKeeper(keras.optimizers.Optimizer):
    """An optimizer that takes no step, but keeps the gradients, ``kept``."""

    def build(self, variables: list) -> None:
        """Called by Keras: room for a gradient of each variable."""
        super().build(variables)
        self.kept = self.add_optimizer_variables(variables, "gradient")

    def update_step(self, gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        """Called by Keras, where another optimizer would change the variable."""
        self.assign(self.kept[self._get_variable_index(variable)], gradient)


class CenterModel(EvaluatedModel):
    """The network as a center needs it: :meth:`train` changes the moving statistics of BatchNorm, and no weight."""

    @staticmethod
    def optimizer(learning_rate: float) -> keras.optimizers.Optimizer:
        """No Adam: a center takes no step."""
        return GradientKeeper(learning_rate)

    def import_network(self, arrays: list[np.ndarray]) -> None:
        """Take over what the server's :func:`export_network` gave."""
        for variable, array in zip(self.network.variables, arrays, strict=True):
            variable.assign(array)

    def half_step(self) -> list[np.ndarray]:
        """What the last :meth:`train` has measured: the gradient of every weight, then the moving statistics."""
        return _as_numpy([*self.network.optimizer.kept, *self.network.non_trainable_weights])


def export_network(model: EvaluatedModel) -> list[np.ndarray]:
    """What a center is sent: weights, moving statistics and the dropout's random state, nothing of Adam."""
    return _as_numpy(model.network.variables)


def refuse_half_step(model: EvaluatedModel, arrays: list[np.ndarray]) -> None:
    """Raise ValueError where arrays cannot be a half step that a center has made from the model as it is."""
    network = model.network
    before = [*network.trainable_variables, *network.non_trainable_weights]
    if [(str(array.dtype), array.shape) for array in arrays] != [(one.dtype, tuple(one.shape)) for one in before]:
        raise ValueError("its gradients and statistics are of another number, shape or type")
    with np.errstate(over="ignore"):  # Adam squares gradients, and what is infinite once is never a number again
        if not all(np.isfinite(np.square(array)).all() for array in arrays):
            raise ValueError("its gradients and statistics hold values, or squares of them, that are not finite")
    answered = {id(variable): array for variable, array in zip(before, arrays, strict=True)}
    for norm in model.encoder.layers:
        if isinstance(norm, keras.layers.BatchNormalization):
            kept = norm.momentum * keras.ops.convert_to_numpy(norm.moving_variance)  # whatever the variance of a batch
            if (answered[id(norm.moving_variance)] < kept * (1 - ROUNDING)).any():
                raise ValueError("its moving variances are smaller than any images make them")


def take_step(model: EvaluatedModel, half_step: list[np.ndarray]) -> None:
    """The server's half: one step of Adam along the gradients, and the statistics that came with them."""
    network = model.network
    number = len(network.trainable_variables)
    gradients = [keras.ops.convert_to_tensor(gradient) for gradient in half_step[:number]]
    network.optimizer.apply(gradients, network.trainable_variables)
    for variable, array in zip(network.non_trainable_weights, half_step[number:], strict=True):
        variable.assign(array)
    for layer in model.encoder.layers:
        if getattr(layer, "seed_generator", None) is not None:
            layer.seed_generator.next()  # as the center's dropout did


def _as_numpy(variables):
    return [keras.ops.convert_to_numpy(variable) for variable in variables]
