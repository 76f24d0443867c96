"""Every image is decoded once: in memory, beyond that on disk, and comes in batches."""

import resource
import time
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from conftest import write_image

from travelling.images import cache, local_trainer, volumes
from travelling.images.cache import free_memory
from travelling.images.local_trainer import LocalTrainer
from travelling.images.volumes import Volumes

SHAPE = (33, 34, 35)
SUBJECTS = ["float", "byte", "short"]
BYTES = [4 * 39270, 39270, 2 * 39270]  # of the decoded images


@pytest.fixture
def images(tmp_path):
    """A cohort of three images of different data types, and their arrays."""
    generator = np.random.default_rng(0)
    arrays = [
        generator.uniform(0, 1, SHAPE).astype(np.float32),
        generator.integers(0, 255, SHAPE).astype(np.uint8),
        generator.integers(-5, 999, SHAPE).astype(np.int16),
    ]
    paths = [
        str(write_image(tmp_path / "images" / f"{subject}.nii.gz", array))
        for subject, array in zip(SUBJECTS, arrays, strict=True)
    ]
    return pd.DataFrame({"Subject": SUBJECTS, "Path": paths}), dict(zip(SUBJECTS, arrays, strict=True))


def decoded(cohort, cache_gb, folder):
    """Volumes of the cohort, and what the log is told of where they are."""
    loaded = Volumes(cache_gb, folder)
    loaded.add(cohort)
    return loaded, [notice for notice in loaded.decode() if "decoded images" in notice]


def assert_right(loaded, arrays):
    batch = loaded.batch(SUBJECTS)
    assert batch.dtype == np.float32
    for image, subject in zip(batch, SUBJECTS, strict=True):
        np.testing.assert_array_equal(image[..., 0], arrays[subject].astype(np.float32))


@pytest.mark.parametrize(
    ("cache_gb", "in_memory"),
    [(None, 3), (sum(BYTES) / 1e9, 3), (sum(BYTES) / 1e9 - 1e-9, 2), (BYTES[1] / 1e9, 1), (0, 0)],
)
def test_what_does_not_fit_into_memory_is_on_disk_and_leaves_nothing_there(cache_gb, in_memory, images, tmp_path):
    cohort, arrays = images
    before = sorted(tmp_path.rglob("*"))
    with mock.patch.object(volumes, "_map_to_disk", side_effect=volumes._map_to_disk) as mapped:
        loaded, notices = decoded(cohort, cache_gb, tmp_path / "none" / "yet")
    assert mapped.call_count == 3 - in_memory
    with mock.patch.object(volumes, "read_voxels", side_effect=AssertionError("decoded again")):
        loaded.expect(SUBJECTS)
        assert_right(loaded, arrays)
    assert sorted(tmp_path.rglob("*")) == before  # files without a name, also while they are in use
    assert [notice.split(" decoded")[0] for notice in notices] == [str(in_memory)] * (in_memory < 3)


def test_a_full_disk_is_named(images, tmp_path):
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, usual[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            decoded(images[0], 0, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert error.value.filename == str(tmp_path)


def test_the_next_batch_is_made_ready_meanwhile_and_the_current_one_stays(images, tmp_path):
    cohort, arrays = images
    loaded, _ = decoded(cohort, None, tmp_path / "cache")
    groups = [["float", "byte"], ["short"], ["byte", "float"], ["short", "byte"]]
    ready = []
    make_ready = loaded.batch
    loaded.batch = lambda group: (make_ready(group), ready.append(group))[0]
    batches = loaded.batches(groups)
    for number, group in enumerate(groups):
        batch = next(batches)
        while len(ready) < min(number + 2, len(groups)):  # without being asked for the next
            time.sleep(0.001)
        for image, subject in zip(batch, group, strict=True):
            np.testing.assert_array_equal(image[..., 0], arrays[subject].astype(np.float32))
    assert next(batches, None) is None
    assert ready == groups


@pytest.mark.parametrize(("at_once", "expected"), [(1, [(1, 1)] * 6), (4, [(3, 3)] * 2), (100, [(6, 6)])])
def test_predictions_come_in_the_order_of_the_test_set(at_once, expected, images, tmp_path):
    cohort, arrays = images
    test_set = pd.concat([cohort] * 2).assign(Subject=[f"s{number}" for number in range(6)])
    loaded, _ = decoded(test_set, None, tmp_path / "cache")
    model = mock.Mock()
    model.predict = lambda batch, largest_batch: sizes.append((len(batch), largest_batch)) or batch[:, 3, 2, 1, 0]
    sizes = []
    with mock.patch.object(local_trainer, "images_at_once", return_value=at_once):
        predictions = LocalTrainer(model, loaded, test_set=test_set).predict()
    assert predictions == [float(arrays[subject][3, 2, 1]) for subject in SUBJECTS] * 2
    assert sizes == expected


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_heeds_the_limits_of_its_control_groups(version, tmp_path):
    """As SLURM sets them: on the job, above the group that the process is in."""
    content = {
        "/proc/self/cgroup": "0::/slurm/job_1/step_0\n" if version == 2 else "4:cpu,memory:/slurm/job_1/step_0\n",
    }
    root = "/sys/fs/cgroup" if version == 2 else "/sys/fs/cgroup/memory"
    limit, usage = ("max", "current") if version == 2 else ("limit_in_bytes", "usage_in_bytes")
    content[f"{root}/slurm/job_1/step_0/memory.{limit}"] = "max\n"
    content[f"{root}/slurm/job_1/memory.{limit}"] = "3000\n"
    content[f"{root}/slurm/job_1/memory.{usage}"] = "1000\n"

    def read_text(path):
        try:
            return content[str(path)]
        except KeyError:
            raise FileNotFoundError(path) from None

    available = mock.Mock(return_value=mock.Mock(available=4_096_000_000))
    with (
        mock.patch.object(cache.Path, "read_text", read_text),
        mock.patch.object(cache.psutil, "virtual_memory", available),
    ):
        assert free_memory() == 2000
        content[f"{root}/slurm/job_1/memory.{limit}"] = "max\n"
        assert free_memory() == 4_096_000_000
        del content["/proc/self/cgroup"]  # as on macOS
        assert free_memory() == 4_096_000_000
