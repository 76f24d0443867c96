"""Exercise a provisioned federation with mutual TLS on loopback, from the project file to the lists at the centers.

    .venv/bin/python tests/federated/provisioned.py COHORT PRETRAINED FOLDER

COHORT holds training_set.csv and test_set.csv, PRETRAINED a model of one cycle. Two cycles of quality control are run,
one job each; before the second one, a center is killed and the server restarted. Then the log is compared with that of
the script. A center with a certificate of somebody else's federation is refused.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import pandas as pd
from deployment import ROOT, Deployment

from travelling.run import model_pairs

CONNECTED = "Successfully registered client"


def main():
    """Run all of it; an AssertionError or RuntimeError says what is wrong."""
    cohort, pretrained, folder = (Path(name).absolute() for name in sys.argv[1:])
    (cycle, (encoder, classifier)) = model_pairs(pretrained, pretrained).popitem()
    centers = list(pd.read_csv(cohort / "training_set.csv")["Study"].unique())
    settings = {
        "centers": centers, "fn_test": str(cohort / "test_set.csv"), "en": str(encoder), "pd": str(classifier),
        "fn_save": str(folder / "home" / "qc"), "cycles": cycle + 3, "revisit": 1, "error": 0.03, "learning_rate": 0.0005,
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

        step("a center with a certificate of another federation")
        with Deployment(folder / "strangers", centers[:1], federation.port) as strangers:
            strangers.provision()
            strangers.prepare(cohort / "training_set.csv", settings)
            strangers.start(centers[0])
            time.sleep(20)
            assert CONNECTED not in strangers.output(centers[0])
            refusals = [line for line in strangers.output(centers[0]).splitlines() if "CERTIFICATE_VERIFY" in line]
            assert refusals, strangers.output(centers[0])[-2000:]
            print("refused:", refusals[0][:200])

        step("all cycles")
        start = time.monotonic()
        print(federation.run_jobs("--poll", 0.1, "--task-timeout", 120).stdout[-500:])
        print(f"{time.monotonic() - start:.0f} s")
    step("the same with the script, in one process")
    options = (
        "-fn_train", cohort / "training_set.csv", "-fn_test", cohort / "test_set.csv", "-cycles", cycle + 3,
        "-en", encoder, "-pd", classifier, "-revisit", 1, "-error", 0.03, "--learning-rate", 0.0005,
        "-fn_save", folder / "script" / "qc",
    )  # fmt: skip
    federation.command(sys.executable, ROOT / "travelling_quality_control" / "enc_PD_quality_control.py", *options)
    compare(folder, centers)
    shutil.rmtree(folder / "strangers")
    print(json.dumps({"provisioned": "ok"}))


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
