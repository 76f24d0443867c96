"""Every image is decoded once: in memory, in files beyond that, and never the wrong content."""

import os
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from conftest import write_image

from travelling.errors import InputError
from travelling.images import cache, volumes
from travelling.images.cache import ArrayFiles, free_memory
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
    """Volumes of the cohort; also: how many images were decoded, and what the log is told of where they are."""
    loaded = Volumes(cache_gb, folder)
    loaded.add(cohort)
    with mock.patch.object(volumes, "read_voxels", side_effect=volumes.read_voxels) as check:
        notices = loaded.decode()
    return loaded, check.call_count, [notice for notice in notices if "decoded images" in notice]


def assert_right(loaded, arrays):
    batch = loaded.batch(SUBJECTS)
    assert batch.dtype == np.float32
    for image, subject in zip(batch, SUBJECTS, strict=True):
        np.testing.assert_array_equal(image[..., 0], arrays[subject].astype(np.float32))


@pytest.mark.parametrize(
    ("cache_gb", "in_memory"),
    [(None, 3), (sum(BYTES) / 1e9, 3), (sum(BYTES) / 1e9 - 1e-9, 2), (BYTES[1] / 1e9, 1), (0, 0)],
)
def test_what_does_not_fit_into_memory_is_in_files(cache_gb, in_memory, images, tmp_path):
    cohort, arrays = images
    loaded, checked, notices = decoded(cohort, cache_gb, tmp_path / "cache")
    assert checked == 3
    with mock.patch.object(volumes, "read_voxels", side_effect=AssertionError("decoded again")):
        assert_right(loaded, arrays)
    files = list((tmp_path / "cache").glob("*")) if in_memory < 3 else []
    assert (tmp_path / "cache").exists() == (in_memory < 3)
    assert len(files) == 3 - in_memory
    assert len(notices) == (in_memory < 3)
    if files:
        assert f"{in_memory} decoded images are in memory" in notices[0]
        assert os.stat(tmp_path / "cache").st_mode & 0o77 == 0


def test_a_second_run_decodes_nothing(images, tmp_path):
    cohort, arrays = images
    decoded(cohort, 0, tmp_path / "cache")
    for cache_gb in (0, 1):
        loaded, checked, _ = decoded(cohort, cache_gb, tmp_path / "cache")
        assert checked == 0
        assert_right(loaded, arrays)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1],
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        lambda _: b"",
    ],
)
def test_a_damaged_file_is_made_anew(damage, images, tmp_path):
    cohort, arrays = images
    decoded(cohort, 0, tmp_path / "cache")
    file = min((tmp_path / "cache").iterdir())
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    loaded, checked, _ = decoded(cohort, 0, tmp_path / "cache")
    assert checked == 1
    assert file.read_bytes() == whole
    assert_right(loaded, arrays)


def test_a_changed_original_is_decoded_anew(images, tmp_path):
    cohort, arrays = images
    decoded(cohort, 0, tmp_path / "cache")
    path = Path(cohort["Path"][1])
    write_image(path, 255 - arrays["byte"])
    os.utime(path, ns=(0, 0))
    loaded, checked, _ = decoded(cohort, 0, tmp_path / "cache")
    assert checked == 1
    assert_right(loaded, {**arrays, "byte": 255 - arrays["byte"]})


def test_files_that_are_removed_meanwhile_do_no_harm(images, tmp_path):
    cohort, arrays = images
    loaded, *_ = decoded(cohort, 0, tmp_path / "cache")
    for file in (tmp_path / "cache").iterdir():
        file.unlink()
    loaded.expect(SUBJECTS)
    assert_right(loaded, arrays)


def test_a_bad_image_is_refused_before_it_is_kept(images, tmp_path):
    cohort, _ = images
    write_image(Path(cohort["Path"][0]), np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(InputError, match=r"float\.nii\.gz.*NaN"):
        decoded(cohort, 0, tmp_path / "cache")
    assert not any("float" in str(path) for path in (tmp_path / "cache").glob("*"))
    cohort = cohort[1:]
    _, checked, _ = decoded(cohort, 0, tmp_path / "cache")
    assert checked <= 2  # those that were decoded beside the bad one are there already


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    original = tmp_path / "x.nii"
    original.write_bytes(b"x")
    files = ArrayFiles(tmp_path / "cache")
    with (
        mock.patch.object(cache.os, "replace", side_effect=OSError(28, "No space left on device")),
        pytest.raises(OSError, match=r"No space left on device: '.*\.npy'"),
    ):
        files.store(cache.identity(original), np.arange(9), "0")
    assert list(files.folder.iterdir()) == []


def test_the_next_batch_is_made_ready_meanwhile_and_the_current_one_stays(images, tmp_path):
    cohort, arrays = images
    loaded, *_ = decoded(cohort, None, tmp_path / "cache")
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


@pytest.mark.parametrize("evaluation_batch", [None, 1, 2, 3, 100])
def test_predictions_come_in_the_order_of_the_test_set(evaluation_batch, images, tmp_path):
    cohort, arrays = images
    test_set = pd.concat([cohort] * 2).assign(Subject=[f"s{number}" for number in range(6)])
    loaded, *_ = decoded(test_set, None, tmp_path / "cache")
    model = mock.Mock()
    model.predict = lambda batch, largest_batch: sizes.append((len(batch), largest_batch)) or batch[:, 3, 2, 1, 0]
    sizes = []
    predictions = LocalTrainer(model, loaded, test_set=test_set, evaluation_batch=evaluation_batch).predict()
    assert predictions == [float(arrays[subject][3, 2, 1]) for subject in SUBJECTS] * 2
    assert sizes == {1: [(1, 1)] * 6, 2: [(2, 2)] * 3, 3: [(3, 3)] * 2}.get(evaluation_batch, [(6, 6)])


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
