"""The real thing, as far as one machine goes: FLARE's simulator, every center a process, every byte recorded."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("nvflare")

from federation import SIZES, in_one_process, made_once, options, plant_salt, read_log, read_names, read_weights, study

SIMULATE = Path(__file__).resolve().parents[2] / "travelling_quality_control" / "federated" / "simulate.py"
# Python runs this file in every process that finds it: whatever goes through a socket is written down.
TAP = """
import os, socket, sys, threading
folder, lock = os.environ["WIRE"], threading.Lock()

def record(name):
    original = getattr(socket.socket, name)
    def recorded(self, data, *words):
        parts = data if name == "sendmsg" else [data]
        with lock, open(os.path.join(folder, f"{os.getpid()}.sent"), "ab") as file:
            for part in parts:
                file.write(part)
        return original(self, data, *words)
    setattr(socket.socket, name, recorded)

for name in ("send", "sendall", "sendmsg"):
    record(name)
with open(os.path.join(folder, f"{os.getpid()}.command"), "w") as file:
    file.write(" ".join(getattr(sys, "orig_argv", [])))
"""


@pytest.fixture(scope="module")
def simulated(options, tmp_path_factory):
    """Folder of a run in the simulator, and the folder with all that went through sockets."""
    folder, wire, tap = (tmp_path_factory.mktemp(name) for name in ("simulated", "wire", "tap"))
    for private in private_folders(folder):
        plant_salt(private)
    (tap / "sitecustomize.py").write_text(TAP)
    path = os.pathsep.join([str(tap), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, SIMULATE, *map(str, options), "-fn_save", "qc", "--cycles-per-job", "3", "--poll", "0.2"],
        cwd=folder, env=os.environ | {"PYTHONPATH": path, "WIRE": str(wire)}, text=True, capture_output=True,
        check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, wire


def private_folders(folder):
    return [folder / "qc_flare" / "centers" / center / "private" for center in (*SIZES, "bad")]


def test_the_log_is_that_of_one_process(simulated, in_one_process):
    folder, _ = simulated
    names = read_names(private_folders(folder))
    pd.testing.assert_frame_equal(read_log(folder / "qc.csv", names), read_log(in_one_process / "qc.csv"))
    for mine, other in zip(read_weights(folder / "qc_run"), read_weights(in_one_process / "qc_run"), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_nothing_on_the_wire_tells_who_or_what(simulated, study):
    folder, wire = simulated
    sent = {path.stem: path.read_bytes() for path in wire.glob("*.sent")}
    by_center = {}
    for center in (*SIZES, "bad"):
        processes = [path.stem for path in wire.glob("*.command") if f"--client {center} " in path.read_text() + " "]
        by_center[center] = b"".join(sent.get(process, b"") for process in processes)
    everything = b"".join(sent.values())
    pseudonyms = read_names(private_folders(folder))
    for pseudonym in pseudonyms:  # the recording is complete, and neither compressed nor encrypted
        assert pseudonym.encode() in everything
    assert all(len(content) > 4e5 for content in by_center.values()), {k: len(v) for k, v in by_center.items()}
    import keras

    assert np.asarray(keras.models.load_model(study.encoder).weights[0]).tobytes() in everything
    assert read_weights(folder / "qc_run")[0].tobytes() not in everything  # the server takes the last step itself

    texts = [*study.table["Subject"], *study.table["Path"], "smith", "upside", "training_set.csv", "Group_bin"]
    for text in [*texts, *(f"{age:.6f}"[:8] for age in study.table["Age"])]:
        assert text.encode() not in everything, text
    for age in study.table["Age"]:
        assert not any(np.array(age, order).tobytes() in everything for order in ("<f8", ">f8"))
    import SimpleITK as sitk

    for path in study.table["Path"]:
        image = sitk.GetArrayFromImage(sitk.ReadImage(str(study.folder / path)))
        for row in (image[5, 5], image[20, 20]):
            assert row[:4].tobytes() not in everything, path
            assert row[:4].astype(np.float64).tobytes() not in everything, path


def test_centers_that_no_memory_can_hold_are_refused_before_anything_is_written(options, tmp_path, monkeypatch):
    from travelling.errors import InputError
    from travelling.images import cache
    from travelling_quality_control.federated import simulate

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cache, "free_memory", lambda: 4e9)
    monkeypatch.setattr("sys.argv", ["simulate.py", *map(str, options), "-fn_save", "qc"])
    with pytest.raises(InputError, match=r"training_set.csv: 4 centers and a server need some 4 GB .*, 4 GB are free"):
        simulate.main()
    assert list(tmp_path.iterdir()) == []
