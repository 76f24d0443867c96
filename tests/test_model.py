"""What travels: the network's shape, undoing a step bit for bit, saving and going on."""

import json
import resource
import shutil
from pathlib import Path
from unittest import mock

import h5py
import keras
import numpy as np
import pytest

import travelling.network.saved_model
from travelling.errors import InputError
from travelling.network import backend, sfcn
from travelling.network.inference_network import EvaluatedModel, can_fold, prediction_function
from travelling.network.saved_model import load_model, read_weights
from travelling.network.sfcn import build_classifier, build_encoder

SHAPE = (33, 36, 34)
LEGACY = Path(__file__).parent / "data"
LABELS = [0, 1, 0, 1]


@pytest.fixture(scope="module")
def images():
    return np.random.RandomState(0).rand(4, *SHAPE, 1).astype(np.float32)


@pytest.fixture(autouse=True)
def float32_again():
    yield
    backend.start(seed=3)


@pytest.fixture
def model():
    backend.start(seed=3)
    return EvaluatedModel.build(SHAPE, width=0.05, learning_rate=1e-3)


@pytest.mark.parametrize("shape", [(1, 2, 2, 2, 3), (5, 2, 2, 2, 3), (1, 33, 34, 35, 3), (5, 33, 34, 35, 3)])
def test_norm_trains_as_in_keras_2(shape):
    """In training, outputs by the variance of the batch, but the unbiased one into the moving variance."""
    generator = np.random.default_rng(1)
    volumes = generator.normal((3, -2, 0), (2, 1, 0.5), shape).astype(np.float32)
    gamma, beta, mean, variance = np.array([[2.0, 0.5, 1], [1.0, -3.0, 0], [0.25, 4.0, 1], [1.5, 0.5, 2]])
    norm = keras.layers.BatchNormalization()
    norm.build((None, *shape[1:]))
    norm.set_weights([gamma, beta, mean, variance])
    backend.train_like_keras_2(norm)
    outputs = keras.ops.convert_to_numpy(norm(volumes, training=True))
    flat = volumes.astype(float).reshape(-1, 3)
    expected = (volumes - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-3) * gamma + beta
    np.testing.assert_allclose(outputs, expected, atol=1e-3)
    moving_mean, moving_variance = (keras.ops.convert_to_numpy(new) for new in (norm.moving_mean, norm.moving_variance))
    np.testing.assert_allclose(moving_mean, 0.99 * mean + 0.01 * flat.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moving_variance, 0.99 * variance + 0.01 * flat.var(0, ddof=1), rtol=1e-5)
    at_inference = keras.ops.convert_to_numpy(norm(volumes, training=False))
    expected = (volumes - moving_mean) / np.sqrt(moving_variance + 1e-3) * gamma + beta
    np.testing.assert_allclose(at_inference, expected, atol=1e-4)


@pytest.mark.skipif(backend.BACKEND != "tensorflow", reason="JAX has no fused operation")
def test_norm_has_the_gradients_of_the_layer():
    import tensorflow as tf

    results = []
    for prepare in (backend.train_like_keras_2, lambda norm: None):
        norm = keras.layers.BatchNormalization()
        norm.build((None, 3, 4, 5, 2))
        norm.set_weights(np.array([[2.0, 0.5], [1.0, -3.0], [0.25, 4.0], [1.5, 0.5]]))
        prepare(norm)
        volume = keras.Variable(np.random.RandomState(1).normal(3, 2, (2, 3, 4, 5, 2)).astype(np.float32))
        with tf.GradientTape() as tape:
            outputs = norm(volume.value, training=True)
            loss = tf.reduce_sum(outputs * outputs * outputs)
        results.append(tape.gradient(loss, [volume.value, norm.gamma.value, norm.beta.value]))
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(backend.BACKEND != "tensorflow", reason="JAX has no fused operation")
def test_norm_runs_on_the_published_array(model, images):
    """Another shape would be summed in another order: see test_golden.py, and backend.py."""
    import tensorflow as tf

    graph = tf.function(model.network).get_concrete_function(tf.constant(images), training=True).graph
    norms = [node for node in graph.get_operations() if node.type.startswith("FusedBatchNorm")]
    assert len(norms) == 6
    assert all(node.get_attr("data_format") == b"NDHWC" for node in norms)


NVIDIA_X = {"device_name": "NVIDIA X"}


@pytest.mark.skipif(backend.BACKEND != "tensorflow", reason="TensorFlow's words and switch")
@pytest.mark.parametrize(
    ("details", "rounds", "deterministic", "told"),
    [
        (NVIDIA_X, True, False, "NVIDIA X"),
        (NVIDIA_X, True, True, "NVIDIA X"),
        (NVIDIA_X | {"compute_capability": (8, 0)}, True, False, "NVIDIA X (float32 as TF32)"),
        (NVIDIA_X | {"compute_capability": (8, 0)}, False, False, "NVIDIA X"),
        (NVIDIA_X | {"compute_capability": (7, 5)}, True, False, "NVIDIA X"),
        # A device that tells nothing of itself stops no run.
        (RuntimeError("no driver"), True, False, "GPU:0"),
        (None, True, False, "GPU:0"),
        ({"compute_capability": ()}, True, False, "GPU:0"),
    ],
)
def test_a_gpu_and_how_it_computes(details, rounds, deterministic, told):
    """Equal bits on demand; on a CPU always."""
    config, gpu = "tensorflow.config.experimental", mock.Mock()
    gpu.name = "GPU:0"
    with (
        mock.patch("tensorflow.config.list_physical_devices", return_value=[gpu]) as devices,
        mock.patch(f"{config}.set_memory_growth") as growth,
        mock.patch(f"{config}.get_device_details", side_effect=[details]),
        mock.patch(f"{config}.tensor_float_32_execution_enabled", return_value=rounds),
        mock.patch(f"{config}.enable_op_determinism") as switch,
    ):
        assert backend.start(seed=1, deterministic=deterministic) == told
        assert (growth.call_count, switch.call_count) == (1, deterministic)
        devices.return_value = []
        assert backend.start(seed=1).startswith("CPU")
        assert (growth.call_count, switch.call_count) == (1, deterministic + 1)


def values(model):
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.state]


def same(one, other):
    return [np.array_equal(a, b) for a, b in zip(one, other, strict=True)]


def test_full_size_network_is_the_published_one():
    encoder = build_encoder((160, 192, 160))
    classifier = build_classifier(encoder.output_shape[1])
    assert encoder.output_shape == (None, 768)
    assert classifier.output_shape == (None, 1)
    assert encoder.count_params() + classifier.count_params() == 2_952_705
    kinds = [type(layer).__name__ for layer in encoder.layers[1:]]
    block = ["Conv3D", "BatchNormalization", "MaxPooling3D", "ReLU"]
    assert kinds == block * 5 + ["Conv3D", "BatchNormalization", "ReLU", "AveragePooling3D", "Dropout", "Flatten"]
    convolutions = [layer for layer in encoder.layers if isinstance(layer, keras.layers.Conv3D)]
    assert [layer.filters for layer in convolutions] == [32, 64, 128, 256, 256, 64]
    shapes = [layer.output.shape[1:4] for layer in encoder.layers if isinstance(layer, keras.layers.MaxPooling3D)]
    assert shapes[0] == (80, 96, 80)
    assert shapes[-1] == (5, 6, 5)


def test_33_voxels_are_enough_and_width_scales_the_filters():
    encoder = build_encoder((33, 33, 33), width=0.5)
    assert encoder.output_shape == (None, 32)
    assert encoder.get_layer("conv1").filters == 16


def test_all_that_travels_is_listed(model):
    names = [variable.path for variable in model.state]
    for needed in ("moving_mean", "moving_variance", "seed_generator_state", "iteration", "learning_rate"):
        assert any(needed in name for name in names), needed
    weights = 6 * 4 + 2  # kernel, bias, gamma, beta of six blocks; the dense layer's two
    assert sum("momentum" in name for name in names) == sum("velocity" in name for name in names) == weights
    assert len(names) == weights + 6 * 2 + 1 + 2 * weights + 2  # + moving statistics, seed, moments, step and rate


def test_a_training_step_changes_all_that_travels(model, images):
    before = values(model)
    model.train(images, LABELS)
    unchanged = [v.path for v, equal in zip(model.state, same(before, values(model)), strict=True) if equal]
    assert all("learning_rate" in name for name in unchanged)


def test_restore_undoes_a_step_bit_for_bit(model, images):
    model.train(images, LABELS)
    kept, before = model.keep(), values(model)
    copies = [np.array(keras.ops.convert_to_numpy(value)) for value in kept]
    prediction = model.predict(images)
    model.learning_rate = 0.5
    model.train(images, LABELS)
    model.train(images[:1] * 255, LABELS[:1])
    assert not np.array_equal(model.predict(images), prediction)
    assert all(same(copies, [keras.ops.convert_to_numpy(value) for value in kept]))  # steps do not change what is kept
    model.restore(kept)
    assert all(same(before, values(model)))
    assert np.array_equal(model.predict(images), prediction)


def test_a_step_after_restore_is_the_step_that_was_rejected(model, images):
    kept = model.keep()
    first = model.train(images, LABELS), values(model)
    model.restore(kept)
    second = model.train(images, LABELS), values(model)
    assert first[0] == second[0]  # the dropout's seed is restored, too
    assert all(same(first[1], second[1]))


def test_mixed_precision_travels_and_diagnoses_in_float32(model, images, tmp_path):
    """bfloat16: the arithmetic of the encoder and nothing else."""
    exact = model.predict(images)
    backend.start(seed=3, precision="bfloat16")
    mixed = EvaluatedModel.build(SHAPE, width=0.05, learning_rate=1e-3)
    assert {layer.compute_dtype for layer in mixed.encoder.layers[1:]} == {"bfloat16"}
    assert all(same(values(model), values(mixed)))
    rounded = mixed.predict(images)
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=0.01)
    assert not np.array_equal(rounded, rounded.astype(np.float16))  # not rounded again at the end
    kept, before = mixed.keep(), values(mixed)
    mixed.train(images, LABELS)
    mixed.restore(kept)
    assert all(same(before, values(mixed)))
    mixed.train(images, LABELS)

    files = tmp_path / "encoder.keras", tmp_path / "classifier.keras"
    mixed.save(*files, {"cycle": 0})
    for precision in ("float32", "bfloat16"):  # the run decides, not the file
        backend.start(seed=3, precision=precision)
        loaded, *_ = load_model(*files, SHAPE)
        assert {layer.compute_dtype for layer in loaded.encoder.layers[1:]} == {precision}
        assert all(same(values(loaded), values(mixed)))
    assert np.array_equal(loaded.predict(images), mixed.predict(images))


def test_float16_scales_the_loss_and_the_scale_travels(images):
    if backend.BACKEND == "tensorflow":
        with (
            mock.patch("tensorflow.config.list_physical_devices", return_value=[]),
            pytest.raises(InputError, match="float16"),
        ):
            backend.start(seed=3, precision="float16")
    else:
        backend.start(seed=3, precision="float16")
    model = EvaluatedModel.build(SHAPE, width=0.05, learning_rate=1e-3)
    names = [variable.path for variable in model.state]
    assert [sum(part in name for name in names) for part in ("dynamic_scale", "momentum", "iteration")] == [1, 26, 2]
    model.learning_rate = 0.25
    assert model.learning_rate == model.network.optimizer.inner_optimizer.learning_rate == 0.25
    if backend.BACKEND != "tensorflow":
        kept, before = model.keep(), values(model)
        model.train(images, LABELS)
        assert not any(np.isnan(value).any() for value in values(model))
        model.restore(kept)
        assert all(same(before, values(model)))


def test_saved_and_loaded_model_goes_on_identically(model, images, tmp_path):
    pair = tmp_path / "encoder_distributed_BS5_04.keras", tmp_path / "classifier_PD_distributed_BS5_04.keras"
    model.train(images, LABELS)
    model.learning_rate = 3.68e-5  # that of the next cycle
    model.save(*pair, {"cycle": 4})
    loaded, record, notices = load_model(*pair, SHAPE)
    assert record["cycle"] == 4
    assert loaded.learning_rate == record["learning_rate"] == pytest.approx(3.68e-5)
    assert notices == []
    assert all(same(values(model), values(loaded)))
    losses = [[one.train(images, LABELS) for _ in range(3)] for one in (model, loaded)]
    assert losses[0] == losses[1]
    assert all(same(values(model), values(loaded)))


def test_prediction_does_not_depend_on_the_batch(model, images):
    together = model.predict(images)
    alone = [model.predict(image[None])[0] for image in images]
    assert together == pytest.approx(alone, abs=1e-5)
    padded = model.predict(images[:1], largest_batch=4)  # JAX fills it up
    assert padded == pytest.approx(together[:1], abs=1e-5)


@pytest.mark.skipif(backend.BACKEND != "tensorflow", reason="JAX compiles for every size of a batch")
def test_one_trace_serves_all_batches(images, monkeypatch):
    """A second one would be memory that grows and time that is lost, unnoticed."""
    traces = []
    network = keras.Model
    monkeypatch.setattr(network, "train_step", counted("step", network.train_step, traces))
    monkeypatch.setattr(network, "stateless_call", counted("prediction", network.stateless_call, traces))
    model = EvaluatedModel.build(SHAPE, width=0.05, learning_rate=1e-3)
    for size in (4, 1, 3, 2, 4, 1):
        kept = model.keep()
        model.train(images[:size], LABELS[:size])
        model.predict(images[:size])
        model.learning_rate = size / 1000
        model.restore(kept)
    assert sorted(traces) == ["prediction", "step"]


def counted(name, function, calls):
    def call(*arguments, **options):
        calls.append(name)
        return function(*arguments, **options)

    return call


def test_evaluation_uses_moving_statistics_and_changes_nothing(model, images):
    before = values(model)
    first = model.predict(images[:1])
    model.predict(images * 255)
    assert np.array_equal(model.predict(images[:1]), first)
    assert all(same(before, values(model)))


def test_the_network_is_folded_wherever_it_comes_from(model, tmp_path):
    paths = tmp_path / "encoder.keras", tmp_path / "classifier.keras"
    model.save(*paths, {"cycle": 1})
    legacy = LEGACY / "encoder_keras_2_15.h5", LEGACY / "classifier_keras_2_15.h5"
    for one in (model, *(load_model(*pair, SHAPE)[0] for pair in (paths, legacy))):
        assert can_fold(one.encoder)
        assert can_fold(one.classifier)


@pytest.mark.parametrize("kind", ["activation", "no bias", "no scale", "branch", "norm first"])
def test_what_cannot_be_folded_is_evaluated_as_it_is(kind, images):
    from keras import layers

    inputs = keras.Input((*SHAPE, 1))
    norm = layers.BatchNormalization(scale=kind != "no scale")
    x = inputs
    if kind == "norm first":
        x = norm(x)
    x = before = layers.Conv3D(2, 3, activation="relu" if kind == "activation" else None, use_bias=kind != "no bias")(x)
    if kind != "norm first":
        x = norm(x)
    if kind == "branch":
        x = layers.Add()([x, before])
    encoder = keras.Model(inputs, layers.GlobalAveragePooling3D()(layers.ReLU()(x)))
    norm.moving_mean.assign(0.1 * np.ones(norm.moving_mean.shape))
    norm.moving_variance.assign(0.5 * np.ones(norm.moving_variance.shape))
    classifier = build_classifier(2)
    assert not can_fold(encoder)
    variables, predict = prediction_function(encoder, classifier)
    expected = classifier(encoder(images, training=False), training=False)
    found = predict([variable.value for variable in variables], images)
    np.testing.assert_allclose(*map(keras.ops.convert_to_numpy, (found, expected)), rtol=1e-5)


def test_files_of_tensorflow_2_10_are_taken_over(images):
    # Saved by the published layers in TensorFlow 2.10.1 after three steps of Adam(1e-4); its own predictions:
    expected = [0.4925523102283478, 0.4921427071094513, 0.4898187220096588, 0.49139153957366943]
    model, record, notices = load_model(
        LEGACY / "encoder_distributed_BS5_09.h5", LEGACY / "classifier_PD_distributed_BS5_09.h5", SHAPE
    )
    assert model.predict(images) == pytest.approx(expected, abs=1e-6)
    assert model.learning_rate == pytest.approx(1e-4)
    assert int(model.network.optimizer.iterations) == 3
    assert "cycle" not in record
    assert any("dropout" in notice for notice in notices)
    moments = [variable for variable in model.network.optimizer.variables if "conv1_kernel_velocity" in variable.path]
    assert np.all(keras.ops.convert_to_numpy(moments[0]) > 0)


def test_files_of_keras_2_15_are_taken_over(images):
    """It saved Adam's moments in another order, under other names (as Keras 2.11 did first)."""
    # Saved by the published layers in TensorFlow 2.15.1 after a step of Adam(1e-4); its own predictions and moments:
    expected = [0.5008731484413147, 0.5007373690605164, 0.5010147094726562, 0.5011278390884399]
    model, _, notices = load_model(LEGACY / "encoder_keras_2_15.h5", LEGACY / "classifier_keras_2_15.h5", SHAPE)
    assert model.predict(images) == pytest.approx(expected, abs=1e-6)
    assert model.learning_rate == pytest.approx(1e-4)
    steps, _, *moments = [keras.ops.convert_to_numpy(variable) for variable in model.network.optimizer.variables]
    assert steps == 1
    first = [moment.ravel()[0] for moment in moments[:4]]
    assert first == pytest.approx([0.0153017, 2.341419e-5, 9.776367e-6, 9.557735e-12], rel=1e-5)
    assert all("Keras 2.15" in notice for notice in notices)


def test_the_content_of_a_model_file_tells_its_format(model, images, tmp_path):
    """The published README names models without an ending."""
    ours, legacy = (
        [tmp_path / f"{part}_{kind}" for part in ("path_encoder", "path_classifier")] for kind in ("ours", "legacy")
    )
    named = [tmp_path / "encoder.keras", tmp_path / "classifier.h5"]
    saved = [tmp_path / "e.keras", tmp_path / "c.keras"]
    model.save(*saved, {"cycle": 3})
    for source, target, misleading in zip(saved, ours, named, strict=True):
        shutil.copy(source, misleading)
        source.rename(target)
    for part, path in zip(("encoder", "classifier_PD"), legacy, strict=True):
        shutil.copy(LEGACY / f"{part}_distributed_BS5_09.h5", path)
    for pair, cycle in ((ours, 3), (named, 3), (legacy, None)):
        loaded, record, _ = load_model(*pair, SHAPE)
        assert record.get("cycle") == cycle
        other = EvaluatedModel.build(SHAPE, sfcn.width_of(loaded.filters), learning_rate=0.0)
        read_weights(other, *pair)
        assert np.array_equal(other.predict(images), loaded.predict(images))


def test_an_hdf5_encoder_of_no_width_is_refused(tmp_path):
    path = tmp_path / "encoder_09.h5"
    shutil.copy(LEGACY / "encoder_distributed_BS5_09.h5", path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        next(layer for layer in config["config"]["layers"] if layer["name"] == "conv3")["config"]["filters"] = 77
        file.attrs["model_config"] = json.dumps(config)
    with pytest.raises(InputError, match=r"filters are those of no width of the network"):
        load_model(path, LEGACY / "classifier_PD_distributed_BS5_09.h5", SHAPE)


def test_a_published_model_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="but the images have"):
        load_model(
            LEGACY / "encoder_distributed_BS5_09.h5", LEGACY / "classifier_PD_distributed_BS5_09.h5", (40, 48, 40)
        )


def test_a_model_without_adam_starts_its_moments_at_zero(model, images, tmp_path):
    pair = tmp_path / "e.keras", tmp_path / "c.keras"
    model.train(images, LABELS)
    for part, path in zip((model.encoder, model.classifier), pair, strict=True):
        part.save(path)
    loaded, record, notices = load_model(*pair, SHAPE)
    assert all(same(values(model)[:30], values(loaded)[:30]))
    assert (record, [notice.split(" holds")[1] for notice in notices]) == (
        {"learning_rate": None}, [" no state of Adam: its moments start at zero"] * 2,
    )  # fmt: skip
    assert not any(np.any(variable) for variable in loaded.export_state()[-52:])


def test_a_model_file_that_carries_code_is_refused(tmp_path):
    inputs = keras.Input((*SHAPE, 1))
    outputs = keras.layers.Lambda(lambda x: x, output_shape=(*SHAPE, 1))(inputs)
    path = tmp_path / "encoder.keras"
    keras.Model(inputs, keras.layers.GlobalAveragePooling3D()(outputs)).save(path)
    with pytest.raises(InputError):
        load_model(path, path, SHAPE)


def test_a_model_that_hdf5_would_read_for_ever_is_one_error(tmp_path):
    content = bytearray((LEGACY / "classifier_PD_distributed_BS5_09.h5").read_bytes())
    content[3640] = 0  # of the table of names
    path = tmp_path / "encoder.h5"
    path.write_bytes(content)
    with (
        mock.patch.object(travelling.network.saved_model, "HDF5_TIMEOUT", 2),
        pytest.raises(InputError, match=rf"{path}: damaged HDF5 file \(its reading does not end\)"),
    ):
        load_model(path, path, SHAPE)


def test_a_model_that_does_not_fit_on_the_disk_is_named(model, tmp_path):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, usual[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            model.save(tmp_path / "encoder.keras", tmp_path / "classifier.keras", {"cycle": 7})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert error.value.filename == str(tmp_path / "encoder.keras")
