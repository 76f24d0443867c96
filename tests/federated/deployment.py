"""A federation on this machine as hospitals would have it: provisioned, one process for each site, mutual TLS."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
FEDERATED = ROOT / "travelling_quality_control" / "federated"
ADMIN = "lead@example.org"
CONNECTED = "Successfully registered client"  # what a center prints


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment():
    """Of a site's process: the Python of this one."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def find_processes(folder):
    """The processes that have a folder in their command line."""
    found = psutil.process_iter(["cmdline"])
    return [one for one in found if str(folder) in " ".join(one.info["cmdline"] or ()) and one.pid != os.getpid()]


class Deployment:
    """Folders, certificates and processes of a server and its centers; a context manager that ends all of them."""

    def __init__(self, folder, centers, port=None):
        self.folder = Path(folder)
        self.centers = list(centers)
        self.port = port or free_port()
        self.kits = None
        self.said = {}  # site -> what prepare_site.py has printed
        self._running = {}

    def provision(self):
        """Make the folders of all participants from the project file that the repository ships."""
        project = yaml.safe_load((FEDERATED / "project.yml").read_text())
        server, client, *_, admin = project["participants"]
        clients = [client | {"name": center} for center in self.centers]
        project["participants"] = [server | {"fed_learn_port": self.port}, *clients, admin]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "project.yml").write_text(yaml.safe_dump(project))
        self.command("nvflare", "provision", "-p", "project.yml", "-w", ".")
        (self.kits,) = (self.folder / project["name"]).glob("prod_*")

    def prepare(self, training_csv, server_settings):
        """Give every center its part of a training set, and the server its configuration."""
        training_set = pd.read_csv(training_csv)
        training_set["Path"] = [str(Path(training_csv).parent / path) for path in training_set["Path"]]
        script = FEDERATED / "prepare_site.py"
        self.said["localhost"] = self.command(sys.executable, script, "server", self.kits / "localhost").stdout
        (self.kits / "localhost" / "local" / "travelling_server.json").write_text(json.dumps(server_settings))
        for center, cohort in training_set.groupby("Study", sort=False):
            if center not in self.centers:
                continue
            data = self.folder / "hospitals" / center
            data.mkdir(parents=True, exist_ok=True)
            cohort.to_csv(data / "training_set.csv", index=False)
            self.said[center] = self.command(
                sys.executable, script, "center", self.kits / center,
                "--training-set", data / "training_set.csv", "--private-folder", data / "private",
            ).stdout  # fmt: skip

    def command(self, *words, check=True, timeout=600):
        """Run a command in the deployment's folder; returns the finished process, its output in stdout."""
        done = subprocess.run(
            [str(word) for word in words], cwd=self.folder, env=environment(), text=True, timeout=timeout,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{words}: status {done.returncode}\n{done.stdout}")
        return done

    def start(self, name, kit=None):
        """Start a site, as its ``startup/start.sh`` does."""
        kit = kit or self.kits / name
        output = open(self.folder / f"{name}.out", "wb")
        self._running[name] = subprocess.Popen(
            ["bash", kit / "startup" / "sub_start.sh"],
            cwd=kit, env=environment(), stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
        output.close()

    def kill(self, name):
        """End a site at once, with all processes that it has started, as a power cut does.

        Its jobs are in sessions of their own: to end its process group would leave them alive.
        """
        process = self._running.pop(name)
        site = psutil.Process(process.pid)
        for one in (site, *site.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()

    def output(self, name):
        """What a site has printed since its start."""
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def start_all(self):
        """Start the server and all centers, and wait until these are connected."""
        for name in ("localhost", *self.centers):
            self.start(name)
        for name in self.centers:
            self.wait_for(CONNECTED, name)

    def wait_for(self, text, name):
        """Wait until a site has printed some text."""
        wait_until(lambda: text in self.output(name), f"{name} has not printed '{text}'")

    def run_jobs(self, *options, check=True, timeout=600):
        """Run the script that submits jobs until the run is done."""
        return self.command(
            sys.executable, FEDERATED / "job.py", "--server", self.kits / "localhost", "--admin", self.kits / ADMIN,
            *options, check=check, timeout=timeout,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for name in list(self._running):
            self.kill(name)


def wait_until(condition, otherwise="it has not come", seconds=300):
    """Wait until a condition holds; returns what it gives."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, otherwise
        time.sleep(0.005)
    return found
