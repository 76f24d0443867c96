"""The travelling model: encoder, classifier and Adam, and all of their state that travels.

What travels is listed once, in :attr:`TravellingModel.state`: the weights, the moving statistics of
BatchNorm, Adam's moments and step count, the learning rate and the seed of the dropout. Train, predict, keep,
restore, save and load all use that list.
"""

import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Self

from travelling.errors import InputError, name_file
from travelling.network import backend  # first: it prepares Keras

# isort: split
import h5py
import keras
import numpy as np
from numpy.typing import ArrayLike

from travelling.network.inference_network import look_function, prediction_function
from travelling.network.model_files import RECORD, read_record
from travelling.network.sfcn import build_classifier, build_encoder, width_of

HDF5_TIMEOUT = 60  # seconds for a file of at most some 100 MB
_READ_ALL = """
import resource, sys
import h5py

def read(name, item):
    list(item.attrs.values())
    if isinstance(item, h5py.Dataset):
        item[()]

try:
    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
except (OSError, ValueError):  # macOS has no such limit
    pass
with h5py.File(sys.argv[1]) as file:
    read("", file)
    file.visititems(read)
"""
# Keys in a model's record: the state of the dropout's generator, and what tells whether two halves belong together.
_RANDOM = "random_state"
_MODEL = "model_sha256"  # of all that travels, the same in both halves


class TravellingModel:
    """One network that is built and compiled once and then only changes its state."""

    def __init__(self, encoder: keras.Model, classifier: keras.Model, learning_rate: float):
        self.encoder = encoder
        self.classifier = classifier
        for layer in encoder.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                backend.train_like_keras_2(layer)
        self.network = keras.Model(encoder.inputs, classifier(encoder.outputs[0]), name="travelling_model")
        self.network.compile(
            optimizer=self.optimizer(learning_rate),
            loss=keras.losses.BinaryCrossentropy(),
            jit_compile=backend.JIT_COMPILE,
        )
        self.network.optimizer.build(self.network.trainable_variables)
        self._training_step = backend.compile_training_step(self.network)
        self._keep, self._restore = backend.compile_keep_and_restore(self.state)
        self._prediction = backend.compile_prediction(
            *prediction_function(encoder, classifier), self.network.input_shape[1:]
        )
        # Compiled by those who ask for them.
        self._look: Callable[[np.ndarray, int | None], np.ndarray] | None = None

    @staticmethod
    def optimizer(learning_rate: float) -> keras.optimizers.Optimizer:
        """Adam, as published."""
        return keras.optimizers.Adam(learning_rate, name="adam")

    @property
    def state(self) -> list:
        """Everything that travels, a list of Keras variables."""
        return [*self.network.variables, *self.network.optimizer.variables]

    @property
    def filters(self) -> list[int]:
        """Filters of the encoder's convolutions, a list: with the shape of the images, all that defines the network."""
        return [layer.filters for layer in self.encoder.layers if isinstance(layer, keras.layers.Conv3D)]

    @property
    def channels(self) -> list[int]:
        """Channels of the encoder's BatchNorm layers, a list."""
        norms = [layer for layer in self.encoder.layers if isinstance(layer, keras.layers.BatchNormalization)]
        return [norm.input.shape[-1] for norm in norms]

    @property
    def _random_state(self):
        """The variables of the dropout's generator: all that are not weights."""
        weights = {id(weight) for weight in self.network.weights}
        return [variable for variable in self.network.variables if id(variable) not in weights]

    @property
    def _adam(self):
        """Adam itself: in float16, Keras wraps it in an optimizer that scales the loss."""
        return getattr(self.network.optimizer, "inner_optimizer", self.network.optimizer)

    @property
    def learning_rate(self) -> float:
        """Adam's current learning rate."""
        return float(self._adam.learning_rate)

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self._adam.learning_rate = rate

    def train(self, images: np.ndarray, labels: ArrayLike) -> float:
        """One step on one batch: images (batch, z, y, x, 1) float32, labels (batch,) 0 or 1. Returns the loss.

        Raises FloatingPointError where not all values of the state are finite any more.
        """
        loss, finite = self._training_step(images, np.asarray(labels, np.float32)[:, None])
        if not finite:
            raise FloatingPointError("not all that travels is finite any more")
        return loss

    def predict(self, images: np.ndarray, largest_batch: int | None = None) -> np.ndarray:
        """Probability of PD for each of images (batch, z, y, x, 1): float32 of shape (batch,).

        ``largest_batch`` is that of the evaluation that these images are a part of (None: they are all).
        """
        return self._prediction(images, largest_batch)[:, 0]

    def look(self, images: np.ndarray, largest_batch: int | None = None) -> np.ndarray:
        """What the network sees of each of images (batch, z, y, x, 1), beside what BatchNorm has learned of.

        Float32 of shape (batch, 2 x sum of :attr:`channels` + 1), see
        :func:`travelling.network.inference_network.look_function`; ``largest_batch`` as in :meth:`predict`.
        """
        if self._look is None:
            self._look = backend.compile_prediction(
                *look_function(self.encoder, self.classifier), self.network.input_shape[1:]
            )
        return self._look(images, largest_batch)

    def keep(self) -> list:
        """A copy of everything that travels, on the device."""
        return self._keep()

    def restore(self, kept: list) -> None:
        """Make everything that travels what it was at :meth:`keep`."""
        self._restore(kept)

    def export_state(self) -> list[np.ndarray]:
        """Everything that travels, as NumPy arrays: for a checkpoint."""
        return [keras.ops.convert_to_numpy(value) for value in self.keep()]

    def import_state(self, arrays: list[np.ndarray]) -> None:
        """Take over what :meth:`export_state` gave."""
        for variable, array in zip(self.state, arrays, strict=True):
            variable.assign(array)

    def save(self, encoder_path: Path, classifier_path: Path, record: dict) -> None:
        """Write the two halves as ``.keras`` files, each with its part of Adam's state and with ``record``.

        ``record`` is a dict of plain values; ``cycle`` in it is the cycle that the model has just finished. As in the
        published files, its learning rate is that of the next one.
        """
        record = {
            **record,
            _MODEL: hashlib.sha256(b"".join(array.tobytes() for array in self.export_state())).hexdigest(),
            # Keras does not write the state of its random generators.
            _RANDOM: [keras.ops.convert_to_numpy(seed).tolist() for seed in self._random_state],
        }
        optimizer_variables = self._adam.variables
        start = 2  # after Adam's step count and learning rate come two moments for each weight
        for part, path in ((self.encoder, encoder_path), (self.classifier, classifier_path)):
            adam = keras.optimizers.Adam(name="adam")
            part.compile(optimizer=adam, jit_compile=backend.JIT_COMPILE, auto_scale_loss=False)
            part.optimizer.build(part.trainable_variables)
            own = part.optimizer.variables
            end = start + len(own) - 2
            for target, source in zip(own, [*optimizer_variables[:2], *optimizer_variables[start:end]], strict=True):
                target.assign(source)
            start = end
            _write_keras_file(part, Path(path), record)

    @classmethod
    def build(cls, shape: tuple[int, ...], width: float, learning_rate: float) -> Self:
        """A new model for images of ``shape`` (z, y, x) in voxels."""
        encoder = build_encoder(shape, width)
        return cls(encoder, build_classifier(encoder.output_shape[1]), learning_rate)

    @classmethod
    def load(cls, encoder_path: Path, classifier_path: Path, shape: tuple[int, ...]) -> tuple[Self, dict, list[str]]:
        """Read a saved model for images of ``shape`` (z, y, x).

        Takes Keras files as :meth:`save` writes them and HDF5 files as the published code saved them with
        TensorFlow 2.10, whatever their names. Returns (model, record, notices): ``record`` is the dict given to
        :meth:`save` (empty where the file has none) plus ``learning_rate``, Adam's saved one (None where the file has
        none); ``notices`` says in words what could not be taken over.
        Raises InputError for anything that is not such a model or does not fit the images.
        """
        (encoder, classifier), adam, record, notices = _read_pair(encoder_path, classifier_path, shape)
        model = cls(encoder, classifier, learning_rate=record["learning_rate"] or 0.0)
        optimizer = model._adam
        optimizer.iterations.assign(adam["steps"])
        try:
            for target, value in zip(optimizer.variables[2:], adam["moments"], strict=bool(adam["moments"])):
                target.assign(value)
            for target, value in zip(model._random_state, record.pop(_RANDOM, []), strict=False):
                target.assign(value)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{encoder_path}: its state of Adam or of the dropout, or that of its classifier, "
                f"is not that of this network ({_first_line(error)})"
            ) from None
        for path, values in ((encoder_path, encoder.variables), (classifier_path, classifier.variables)):
            _refuse_not_finite(path, values)
        _refuse_not_finite(f"{encoder_path} and {classifier_path}", optimizer.variables)
        return model, record, notices

    def read_weights(self, encoder_path: Path, classifier_path: Path) -> None:
        """Take over the weights, and only them, of another saved model of this size; raises InputError."""
        _refuse_two_models(encoder_path, read_record(encoder_path), classifier_path, read_record(classifier_path))
        for part, path in ((self.encoder, encoder_path), (self.classifier, classifier_path)):
            try:
                if h5py.is_hdf5(path):
                    _try_hdf5(path)
                with _ending(path, ".h5" if h5py.is_hdf5(path) else ".keras") as named:
                    part.load_weights(named)
            except Exception as error:  # whatever the file makes Keras or HDF5 raise, the answer is the same
                raise InputError(
                    f"{path}: not a model of the same network as in the cycles before ({_first_line(error)})"
                ) from None
            _refuse_not_finite(path, part.variables)


def _write_keras_file(part, path, record):
    with name_file(path):
        part.save(path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(RECORD, json.dumps(record))


def _read_pair(encoder_path, classifier_path, shape):
    """Read both halves: (encoder, classifier), Adam's state of both together, record, notices."""
    encoder, adam, record, notices = _read_part(encoder_path, shape, build_encoder)
    classifier, other_adam, other_record, other_notices = _read_part(
        classifier_path, encoder.output_shape[1:], build_classifier
    )
    smallest = build_encoder(shape, width=0.01)
    for path, part, like in (
        (encoder_path, encoder, smallest),
        (classifier_path, classifier, build_classifier(smallest.output_shape[1])),
    ):
        if [type(layer) for layer in part.layers] != [type(layer) for layer in like.layers]:
            raise InputError(f"{path}: its layers are not those of the SFCN's {like.name}")
    if classifier.output_shape != (None, 1):
        raise InputError(f"{classifier_path}: a classifier has one output, this one has {classifier.output_shape[1]}")
    _refuse_two_models(encoder_path, record, classifier_path, other_record)
    if adam["steps"] and other_adam["steps"] and adam["steps"] != other_adam["steps"]:
        raise InputError(
            f"{classifier_path}: of another model than {encoder_path} "
            f"(trained in {other_adam['steps']} steps, and that in {adam['steps']})"
        )
    moments = adam["moments"] + other_adam["moments"] if adam["moments"] and other_adam["moments"] else []
    record["learning_rate"] = adam["learning_rate"]
    return (
        (_in_current_precision(encoder), classifier),
        {"steps": adam["steps"], "moments": moments},
        record,
        notices + other_notices,
    )


def _refuse_two_models(encoder_path, record, classifier_path, other_record):
    """Raise InputError where the records of two halves are not those of one model."""
    cycle, other_cycle = record.get("cycle"), other_record.get("cycle")
    if cycle != other_cycle:
        raise InputError(f"{classifier_path}: of cycle {other_cycle}, but {encoder_path} is of cycle {cycle}")
    if record.get(_MODEL) != other_record.get(_MODEL):
        raise InputError(f"{classifier_path}: of another model than {encoder_path}, though of the same cycle")


def _refuse_not_finite(name, variables):
    if not backend.are_finite([variable.value for variable in variables]):
        raise InputError(f"{name}: holds values that are not finite; no good can come of this model")


def _in_current_precision(encoder):
    """The encoder, computing as the models that are built now do: a file tells the precision of its own run."""
    policy = keras.config.dtype_policy()
    config = encoder.get_config()
    if all(layer["config"]["dtype"] == keras.dtype_policies.serialize(policy) for layer in config["layers"][1:]):
        return encoder
    for layer in config["layers"][1:]:  # after the input
        layer["config"]["dtype"] = policy.name
    converted = keras.Model.from_config(config)
    converted.set_weights(encoder.get_weights())
    return converted


def _read_part(path, input_shape, build_legacy):
    """Read one half: (Keras model, Adam's state, record, notices).

    ``input_shape`` is (z, y, x) for the encoder and (features,) for the classifier. Adam's state is a dict:
    ``steps``, ``learning_rate`` (None: not known) and ``moments`` (in the order of Keras' Adam, or empty).
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such model file")
    try:
        if h5py.is_hdf5(path):
            part, adam, record, notices = _read_legacy_file(path, input_shape, build_legacy)
        else:
            part, adam, record, notices = _read_keras_file(path)
    except InputError:
        raise
    except Exception as error:  # whatever the file makes Keras or HDF5 raise, the answer is the same
        raise InputError(f"{path}: not a model that can be read ({_first_line(error)})") from None
    expected = (*input_shape, 1) if len(input_shape) == 3 else tuple(input_shape)
    if part.input_shape[1:] != expected:
        raise InputError(
            f"{path}: the model takes inputs of shape {part.input_shape[1:]}, "
            f"but the {'images have' if len(input_shape) == 3 else 'encoder gives'} {expected}"
        )
    return part, adam, record, notices


def _first_line(error):
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]


@contextlib.contextmanager
def _ending(path, ending):
    """A path to the same file that has this ending: Keras goes by the name, and the published ones have no ending."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"model{ending}"
        link.symlink_to(Path(path).resolve())
        yield link


def _read_keras_file(path):
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: neither a Keras nor an HDF5 model file")
    with _ending(path, ".keras") as named:
        part = keras.models.load_model(named, safe_mode=True)  # safe mode: a file that carries code is refused
    record = read_record(path)
    optimizer = part.optimizer
    if not isinstance(optimizer, keras.optimizers.Adam):
        return part, _NO_ADAM, record, [f"{path.name} holds no state of Adam: its moments start at zero"]
    steps, rate, *moments = [keras.ops.convert_to_numpy(variable) for variable in optimizer.variables]
    adam: dict = {"steps": int(steps), "learning_rate": float(rate), "moments": moments}
    return part, adam, record, []


def _try_hdf5(path):
    """Raise InputError where an HDF5 file cannot be read to its end.

    HDF5 has no checksum, and its library can hang, crash or take all memory on a damaged file: another process tries.
    """
    try:
        subprocess.run(
            [sys.executable, "-c", _READ_ALL, path], capture_output=True, text=True, check=True, timeout=HDF5_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{path}: damaged HDF5 file (its reading does not end)") from None
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["its reading crashed"])[-1][:200]
        raise InputError(f"{path}: damaged HDF5 file ({reason})") from None


def _read_legacy_file(path, input_shape, build):
    """Weights, learning rate, step count and moments of an HDF5 file saved by Keras 2."""
    _try_hdf5(path)
    with h5py.File(path) as file:
        if "model_config" not in file.attrs or "model_weights" not in file:
            raise InputError(f"{path}: an HDF5 file, but not a saved Keras model")
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        saved_shape = tuple(layers[0]["config"]["batch_input_shape"][1:])
        convolutions = [layer for layer in layers if layer["class_name"] == "Conv3D"]
        adam, notices = _read_legacy_adam(path, file)
    if build is build_encoder:
        if not convolutions:
            raise InputError(f"{path}: not an encoder (it has no 3-D convolution)")
        try:
            width = width_of([layer["config"]["filters"] for layer in convolutions])
        except ValueError as error:
            raise InputError(f"{path}: not an encoder of this network ({error})") from None
        part = build(saved_shape[:-1], width)
    else:
        part = build(saved_shape[0])
    with _ending(path, ".h5") as named:
        part.load_weights(named)
    return part, adam, {}, notices


_NO_ADAM: dict = {"steps": 0, "learning_rate": None, "moments": []}


def _read_legacy_adam(path, file):
    """Adam's state as Keras 2 saved it, to 2.10 (all first moments, then all second ones) and since (in turn)."""
    version = _text(file.attrs.get("keras_version", "2"))
    notices = [
        f"{path.name} (Keras {version}): the random state of the dropout is not in the file; it starts from the seed"
    ]
    adam = dict(_NO_ADAM)
    settings = json.loads(file.attrs.get("training_config", "{}")).get("optimizer_config", {}).get("config", {})
    if isinstance(settings.get("learning_rate"), float):
        adam["learning_rate"] = settings["learning_rate"]
    else:
        notices.append(f"{path.name}: holds no learning rate")
    group = file.get("optimizer_weights")
    firsts, seconds = [], []
    for name in [] if group is None else group.attrs["weight_names"]:
        words = _text(name).split(":")[0].split("/")  # "conv1/kernel/m:0" or "m/conv1/kernel:0"
        if words[-1] in ("iter", "iteration"):
            adam["steps"] = int(group[name][()])
        elif "m" in words:
            firsts.append(group[name][()])
        elif "v" in words:
            seconds.append(group[name][()])
    if firsts and len(firsts) == len(seconds):
        adam["moments"] = [moment for pair in zip(firsts, seconds, strict=True) for moment in pair]
    else:
        notices.append(f"{path.name}: holds no moments of Adam; they start at zero")
    return adam, notices


def _text(attribute):
    """A text of an HDF5 file, which holds either text or bytes."""
    return attribute.decode() if isinstance(attribute, bytes) else attribute
