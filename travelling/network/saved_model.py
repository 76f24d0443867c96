"""Reading saved models: Keras files as :mod:`travelling.network.model` writes them, HDF5 files as published.

The content of a file tells which it is, whatever its name.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from travelling.errors import InputError, first_line
from travelling.network import backend  # first: it prepares Keras

# isort: split
import h5py
import keras

from travelling.network.inference_network import EvaluatedModel
from travelling.network.model_files import MODEL_SHA256, RANDOM_STATE
from travelling.network.pretrained import read_record
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


def load_model(
    encoder_path: Path, classifier_path: Path, shape: tuple[int, ...]
) -> tuple[EvaluatedModel, dict, list[str]]:
    """Read a saved model for images of ``shape`` (z, y, x).

    Takes Keras files as :meth:`EvaluatedModel.save` writes them and HDF5 files as the published code saved them with
    TensorFlow 2.10, whatever their names. Returns (model, record, notices): ``record`` is the dict given to ``save``
    (empty where the file has none) plus ``learning_rate``, Adam's saved one (None where the file has none); ``notices``
    says in words what could not be taken over. Raises InputError for anything that is not such a model or does not fit
    the images.
    """
    (encoder, classifier), adam, record, notices = _read_pair(encoder_path, classifier_path, shape)
    model = EvaluatedModel(encoder, classifier, learning_rate=record["learning_rate"] or 0.0)
    optimizer = model.adam
    optimizer.iterations.assign(adam["steps"])
    try:
        for target, value in zip(optimizer.variables[2:], adam["moments"], strict=bool(adam["moments"])):
            target.assign(value)
        for target, value in zip(model.random_state, record.pop(RANDOM_STATE, []), strict=False):
            target.assign(value)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{encoder_path}: its state of Adam or of the dropout, or that of its classifier, "
            f"is not that of this network ({first_line(error)})"
        ) from None
    for path, values in ((encoder_path, encoder.variables), (classifier_path, classifier.variables)):
        _refuse_not_finite(path, values)
    _refuse_not_finite(f"{encoder_path} and {classifier_path}", optimizer.variables)
    return model, record, notices


def _read_pair(encoder_path, classifier_path, shape):
    """Read both halves: (encoder, classifier), Adam's state of both together, record, notices; raises InputError.

    Adam's state is a dict: ``steps``, ``learning_rate`` (None: not known) and
    ``moments`` (in the order of Keras' Adam, or empty).
    """
    encoder, adam, record, notices = _read_half(encoder_path, (*shape, 1))
    classifier, other_adam, other_record, other_notices = _read_half(classifier_path, encoder.output_shape[1:])
    _refuse_two_models(encoder_path, record, classifier_path, other_record)
    if adam["steps"] and other_adam["steps"] and adam["steps"] != other_adam["steps"]:
        raise InputError(
            f"{classifier_path}: of another model than {encoder_path} "
            f"(trained in {other_adam['steps']} steps, and that in {adam['steps']})"
        )
    both = adam["moments"] and other_adam["moments"]
    moments = adam["moments"] + other_adam["moments"] if both else []
    record["learning_rate"] = adam["learning_rate"]
    return (encoder, classifier), {"steps": adam["steps"], "moments": moments}, record, notices + other_notices


def read_weights(model: EvaluatedModel, encoder_path: Path, classifier_path: Path) -> None:
    """Take over the weights, and only them, of another saved model of the same network; raises InputError."""
    _refuse_two_models(encoder_path, read_record(encoder_path), classifier_path, read_record(classifier_path))
    for part, path in ((model.encoder, encoder_path), (model.classifier, classifier_path)):
        try:
            if h5py.is_hdf5(path):
                _try_hdf5(path)
            _load_weights(part, path)
        except Exception as error:  # whatever the file makes Keras or HDF5 raise, the answer is the same
            raise InputError(
                f"{path}: not a model of the same network as in the cycles before ({first_line(error)})"
            ) from None
        _refuse_not_finite(path, part.variables)


def _refuse_two_models(encoder_path, record, classifier_path, other_record):
    """Raise InputError where the records of two halves are not those of one model."""
    cycle, other_cycle = record.get("cycle"), other_record.get("cycle")
    if cycle != other_cycle:
        raise InputError(f"{classifier_path}: of cycle {other_cycle}, but {encoder_path} is of cycle {cycle}")
    if record.get(MODEL_SHA256) != other_record.get(MODEL_SHA256):
        raise InputError(f"{classifier_path}: of another model than {encoder_path}, though of the same cycle")


def _refuse_not_finite(name, variables):
    """Raise InputError where not all values of some variables of a model are finite."""
    if not backend.are_finite([variable.value for variable in variables]):
        raise InputError(f"{name}: holds values that are not finite; no good can come of this model")


def _read_half(path, input_shape):
    """Read the half that takes inputs of a shape: (Keras model, Adam's state, record, notices).

    The network is built here, in the precision of this run, and the file gives its filters and its values.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such model file")
    try:
        if h5py.is_hdf5(path):
            layers, adam, notices = _read_published(path)
        elif zipfile.is_zipfile(path):
            layers, adam, notices = _read_config(path)
        else:
            raise InputError(f"{path}: neither a Keras nor an HDF5 model file")
        settings = [layer["config"] for layer in layers]
        takes = tuple((settings[0].get("batch_shape") or settings[0]["batch_input_shape"])[1:])
        if takes != input_shape:
            has = "images have" if len(input_shape) > 1 else "encoder gives"
            raise InputError(f"{path}: the model takes inputs of shape {takes}, but the {has} {input_shape}")
        part = _build(path, input_shape, [one["filters"] for one in settings if "filters" in one])
        if adam is None:  # it is read together with the weights
            if [layer["class_name"] for layer in layers] != [type(layer).__name__ for layer in part.layers]:
                raise InputError(f"{path}: its layers are not those of the SFCN's {part.name}")
            part.compile(optimizer=keras.optimizers.Adam(name="adam"), auto_scale_loss=False)
            part.optimizer.build(part.trainable_variables)
        _load_weights(part, path)
        if adam is None:
            steps, rate, *moments = [keras.ops.convert_to_numpy(variable) for variable in part.optimizer.variables]
            adam = {"steps": int(steps), "learning_rate": float(rate), "moments": moments}
    except InputError:
        raise
    except Exception as error:  # whatever the file makes Keras or HDF5 raise, the answer is the same
        raise InputError(f"{path}: not a model that can be read ({first_line(error)})") from None
    return part, adam, read_record(path), notices


def _build(path, input_shape, counts):
    """The encoder (of inputs with four axes) or the classifier."""
    if len(input_shape) == 1:
        return build_classifier(input_shape[0])
    if not counts:
        raise InputError(f"{path}: not an encoder (it has no 3-D convolution)")
    try:
        return build_encoder(input_shape[:-1], width_of(counts))
    except ValueError as error:
        raise InputError(f"{path}: not an encoder of this network ({error})") from None


def _load_weights(part, path):
    """Keras goes by the ending of a name, and the published files have none: it gets a link that has the right one."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"model{'.h5' if h5py.is_hdf5(path) else '.keras'}"
        link.symlink_to(Path(path).resolve())
        part.load_weights(link)


def _read_config(path):
    """Layers of a Keras file, Adam's state (None: it is there, to be read), and notices."""
    with zipfile.ZipFile(path) as archive:
        model = json.loads(archive.read("config.json"))
    layers = model["config"]["layers"]
    if ((model.get("compile_config") or {}).get("optimizer") or {}).get("class_name") == "Adam":
        return layers, None, []
    return layers, _NO_ADAM, [f"{path.name} holds no state of Adam: its moments start at zero"]


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


def _read_published(path):
    """Layers, Adam's state and notices of an HDF5 file saved by Keras 2."""
    _try_hdf5(path)
    with h5py.File(path) as file:
        if "model_config" not in file.attrs or "model_weights" not in file:
            raise InputError(f"{path}: an HDF5 file, but not a saved Keras model")
        layers = json.loads(file.attrs["model_config"])["config"]["layers"]
        return layers, *_read_legacy_adam(path, file)


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
