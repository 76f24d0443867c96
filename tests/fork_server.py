"""Runs the scripts in forked processes, with a fake model and with a fault: the other half of test_faults.py.

Everything slow is imported once and TensorFlow never, so that a complete run takes a fraction of a second. Reads
requests from stdin, a line of JSON each, and answers on stdout: {"start": {...}} with the number of a process,
{"wait": number} with its exit status, its peak memory in bytes and what it wrote to stderr.
"""

import ctypes
import json
import os
import resource
import runpy
import sys
import time
import types
from pathlib import Path

import numpy as np

import travelling.images.itk
import travelling.images.volumes
import travelling.method.trainer
import travelling.runs.record
import travelling.runs.run
from travelling.errors import name_file

CAP_DAC_OVERRIDE = 1  # Linux: what makes root ignore the permissions of files


class FakeModel:
    """Calls an image PD if it is brighter than a threshold, which every training step moves."""

    pause = 0.0  # seconds that a training step takes

    def __init__(self):
        self.threshold = np.array([100.0, 0.0])  # and the number of steps
        self.learning_rate = 0.0

    @classmethod
    def build(cls, *_):
        return cls()

    @classmethod
    def load(cls, *_):
        return cls(), {"cycle": 7, "learning_rate": 1e-4}, []

    def train(self, images, labels):
        time.sleep(self.pause)
        self.threshold += images.mean() / 100, 1
        if images.max() == 255:  # harmful
            self.threshold[0] += 100
        return float(images.mean())

    def predict(self, images, largest_batch):
        return (images.mean((1, 2, 3, 4)) > self.threshold[0]).astype(np.float32)

    def keep(self):
        return self.threshold.copy()

    def restore(self, kept):
        self.threshold[:] = kept

    def export_state(self):
        return [self.threshold.copy(), np.zeros(500)]

    def import_state(self, arrays):
        self.threshold[:] = arrays[0]

    def save(self, *args):
        *paths, _ = args
        for path in paths:
            with name_file(path):
                Path(path).write_bytes(self.threshold.tobytes() * 500)

    def read_weights(self, encoder, _):
        self.threshold[:] = np.fromfile(encoder)[:2]


def inject(event, name, count, **fault):
    """Do the fault at the ``count``-th audit event (open, os.rename) on a file whose name holds ``name``."""
    left = [count]

    def hook(happened, arguments):
        if happened != event or not left[0]:
            return
        paths = [os.fspath(path) for path in arguments if isinstance(path, (str, os.PathLike))]
        if any(name in os.path.basename(path) for path in paths):
            left[0] -= 1
            if not left[0]:
                happen(**fault)

    sys.addaudithook(hook)


def happen(grown=None, room=0, forbid=()):
    """No file grows beyond ``grown``'s size + ``room`` bytes, or folders become read-only."""
    if grown:
        size = os.path.getsize(grown) if os.path.exists(grown) else 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))
    for folder in forbid:
        os.chmod(folder, 0o555)


def obey_permissions():
    """Give up what lets root write to read-only folders."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    sets[0] &= ~(1 << CAP_DAC_OVERRIDE)  # effective
    sets[1] &= ~(1 << CAP_DAC_OVERRIDE)  # permitted
    libc.capset(header, sets)


def run(err, argv, cwd, fault=None, pause=0.0):
    """In the forked process: run a script, and end with its exit status; ``err`` is where stderr goes."""
    status = 99
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(err, 2)
        os.chdir(cwd)
        FakeModel.pause = pause
        if fault and fault.get("forbid"):
            obey_permissions()
        if fault:
            inject(**fault)
        sys.argv = argv
        runpy.run_path(argv[0], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)


def serve():
    """Answer requests until stdin ends."""
    modules = {name: types.ModuleType(f"travelling.network.{name}") for name in ("backend", "model", "saved_model")}
    modules["backend"].start = lambda *_: "no device"
    modules["model"].TravellingModel = FakeModel
    modules["saved_model"].load_model, modules["saved_model"].read_weights = FakeModel.load, FakeModel.read_weights
    for name, module in modules.items():
        sys.modules[module.__name__] = module
        setattr(travelling.network, name, module)
    travelling.runs.record.git_state = lambda: (None, None, None)  # takes longer than the run, and so does
    os.fsync = lambda file: None
    pipes = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            # A pipe, because the limit of a full disk holds for every file; it takes 64 KB, far more than comes.
            read, write = os.pipe()
            answer = os.fork()
            if not answer:
                run(write, **request["start"])
            os.close(write)
            pipes[answer] = read
        else:
            _, status, usage = os.wait4(request["wait"], 0)
            with open(pipes.pop(request["wait"]), encoding="utf-8") as pipe:
                answer = os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, pipe.read()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
