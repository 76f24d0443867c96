"""Exercise a provisioned federation with mutual TLS on loopback, from the project file to the lists at the centers.

    .venv/bin/python tests/federated/provisioned.py COHORT PRETRAINED FOLDER

COHORT holds training_set.csv and test_set.csv, PRETRAINED a model of one cycle. Clients without a certificate, or with
one of another federation, are refused. Three cycles of quality control are run, one job each; in the first one the
server is killed and started again. The log must be that of the script. Then a second run, in the first cycle of which a
center is killed: it is logged as unreachable, the cycle goes on, and the next one visits it again.
"""

import json
import shutil
import socket
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from deployment import CONNECTED, ROOT, Deployment, wait_for_text

from travelling.method.order import travelling_order
from travelling.network.model_files import model_pairs

PUBLISHED_SEED = 42


def main():
    """Run all of it; an AssertionError or RuntimeError says what is wrong."""
    cohort, pretrained, folder = (Path(name).absolute() for name in sys.argv[1:])
    (cycle, (encoder, classifier)) = model_pairs(pretrained, pretrained).popitem()
    centers = list(pd.read_csv(cohort / "training_set.csv")["Study"].unique())
    settings = {
        "centers": centers, "fn_test": str(cohort / "test_set.csv"), "en": str(encoder), "pd": str(classifier),
        "fn_save": str(folder / "home" / "qc"), "cycles": cycle + 4,
        "revisit": 1, "error": 0.03, "learning_rate": 0.0005,
    }  # fmt: skip
    with Deployment(folder / "federation", centers) as federation:
        step("provisioning")
        federation.provision()
        federation.prepare(cohort / "training_set.csv", settings)
        federation.start("localhost")
        for center in centers:
            federation.start(center)
        for center in centers:
            federation.wait_for(CONNECTED, center)

        step("who is let in")
        own = federation.kits / centers[0] / "startup"
        strangers = Deployment(folder / "strangers", centers[:1], federation.port)
        strangers.provision()
        stranger = strangers.kits / centers[0] / "startup"
        answers = {
            "its own certificate": knock(federation.port, own / "rootCA.pem", own),
            "no certificate": knock(federation.port, own / "rootCA.pem", None),
            "a certificate of another federation": knock(federation.port, own / "rootCA.pem", stranger),
        }
        for certificate, answer in answers.items():
            print(f"a client with {certificate}: {answer}")
        assert answers["its own certificate"] == "let in"
        assert all("refused" in answer for answer in list(answers.values())[1:])
        stranger_center = strangers.kits / centers[0]
        strangers.start(centers[0], stranger_center)
        time.sleep(10)
        strangers.kill(centers[0])
        assert CONNECTED not in strangers.output(centers[0])

        step("the server loses its power in the first cycle")
        options = ("--poll", 0.1, "--task-timeout", 120)
        with ThreadPoolExecutor(1) as pool:
            job = pool.submit(federation.run_jobs, *options, check=False)
            wait_for_rows(folder / "home" / "qc.csv", 3)
            federation.kill("localhost")
            lost = job.result()
        print(lost.stdout[-400:])
        assert lost.returncode != 0
        assert "Traceback" not in lost.stdout
        federation.start("localhost")

        step("the same command goes on")
        start = time.monotonic()
        print(federation.run_jobs(*options, "--wait", 180).stdout[-700:])
        print(f"{time.monotonic() - start:.0f} s")

        step("a center loses its power in a cycle")
        again = settings | {"fn_save": str(folder / "again" / "qc"), "cycles": cycle + 3}
        (federation.kits / "localhost" / "local" / "travelling_server.json").write_text(json.dumps(again))
        start = time.monotonic()
        lose_center(federation, folder / "again" / "qc.csv", centers, cycle + 1)
        print(f"{time.monotonic() - start:.0f} s")
    step("the same with the script, in one process")
    options = (
        "-fn_train", cohort / "training_set.csv", "-fn_test", cohort / "test_set.csv", "-cycles", cycle + 4,
        "-en", encoder, "-pd", classifier, "-revisit", 1, "-error", 0.03, "--learning-rate", 0.0005,
        "-fn_save", folder / "script" / "qc",
    )  # fmt: skip
    federation.command(sys.executable, ROOT / "travelling_quality_control" / "enc_PD_quality_control.py", *options)
    compare(folder, centers)
    shutil.rmtree(folder / "strangers")
    print(json.dumps({"provisioned": "ok"}))


def knock(port, root, startup):
    """Shake hands with the server as a client with the certificate in a startup folder (None: without one)."""
    context = ssl.create_default_context(cafile=str(root))
    if startup:
        context.load_cert_chain(startup / "client.crt", startup / "client.key")
    try:
        with (
            socket.create_connection(("localhost", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return "let in" if secure.recv(100) else "refused (closed)"
    except ssl.SSLError as error:
        return f"refused ({error.reason})"
    except ConnectionError as error:
        return f"refused ({error})"


def lose_center(federation, log, centers, cycle):
    """A run of two cycles, in the first of which the center that is visited last is killed, and started again."""
    ((_, order, _),) = travelling_order(dict.fromkeys(centers, ()), PUBLISHED_SEED, [cycle])
    lost = order[-1]
    with ThreadPoolExecutor(1) as pool:
        jobs = pool.submit(federation.run_jobs, "--poll", 0.1, "--task-timeout", 60)
        wait_for_rows(log, 2)  # the first center's visit has begun
        federation.kill(lost)
        wait_for_text(log, "unreachable")
        federation.start(lost)  # too late for this cycle's job
        federation.wait_for(CONNECTED, lost)
        jobs.result()
    found = pd.read_csv(log)
    first, second = (found[found["Cycle"] == number] for number in (cycle, cycle + 1))
    print(f"{lost} in the first cycle: {list(first[first['Study'] == lost]['Phase'])}")
    print(f"{lost} in the second cycle: {list(second[second['Study'] == lost]['Phase'])}")
    assert list(first[first["Study"] == lost]["Phase"]) == ["unreachable"]
    assert set(first[first["Phase"] == "batch"]["Study"]) == set(centers) - {lost}
    assert set(second[second["Phase"] == "batch"]["Study"]) >= {lost}
    assert "unreachable" not in set(second["Phase"])


def wait_for_rows(path, number, seconds=180):
    """Wait until a log has so many rows."""
    end = time.monotonic() + seconds
    while not path.exists() or path.read_text().count("\n") < number + 1:
        if time.monotonic() > end:
            raise TimeoutError(f"{path}: has not {number} rows")
        time.sleep(0.2)


def compare(folder, centers):
    """The federation's log, with its pseudonyms resolved, is the script's."""
    names = {}
    for center in centers:
        table = pd.read_csv(folder / "federation" / "hospitals" / center / "private" / "pseudonyms.csv", dtype=str)
        names |= dict(zip(table["Pseudonym"], table["Subject"], strict=True))
    logs = []
    for place in ("home", "script"):
        log = pd.read_csv(folder / place / "qc.csv", dtype=str, keep_default_na=False)
        log["Subject"] = log["Subject"].map(lambda name: names.get(name, name))
        log["Subjects"] = [";".join(names.get(name, name) for name in cell.split(";")) for cell in log["Subjects"]]
        logs.append(log)
    pd.testing.assert_frame_equal(*logs)
    print(f"the logs are equal: {len(logs[0])} rows")


def step(text):
    """Say what comes now."""
    print(f"--- {text}", flush=True)


if __name__ == "__main__":
    main()
