"""The walk of docs/federation.md, word by word in an empty folder."""

import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("nvflare")

from deployment import ROOT, environment, find_processes, free_port


def walk():
    """The commands of the page's section, as one script."""
    page = (ROOT / "docs" / "federation.md").read_text(encoding="utf-8")
    section = page.split("## A federation, step by step\n")[1].split("\n## ")[0]
    return "\n".join(line.removeprefix("    ") for line in section.splitlines() if line.startswith("    "))


@pytest.mark.slow
def test_the_walk_from_provisioning_to_the_audit(tmp_path):
    """As it stands there; only there are fewer images, and the port is one that is free."""
    script = walk()
    for old, new in (
        ("make_demo_cohort.py", "make_demo_cohort.py --shrink 16"),
        ("nvflare provision", f"sed -i s/8002/{free_port()}/ project.yml\nnvflare provision"),
    ):
        assert script.count(old) == 1
        script = script.replace(old, new)
    try:
        done = subprocess.run(
            ["bash", "-ec", script], cwd=tmp_path, env=environment() | {"REPO": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=900,
        )  # fmt: skip
    finally:
        left = find_processes(tmp_path)
        for process in left:
            process.kill()
    print(done.stdout)
    assert done.returncode == 0
    assert not left
    assert "2 of 2 centers are there: hospital-1, hospital-2" in done.stdout
    assert re.search(r"hospital-1: train, \d+\.\d s, answered", done.stdout)
    assert re.search(r"cycle 2, hospital-2: batch, \d images?, FPR \d\.\d{3}, FNR \d\.\d{3}", done.stdout)
    assert "consistent: 2 cycles (2 to 3)" in done.stdout
    assert list(pd.read_csv(tmp_path / "run" / "inference_metrics.csv")["cycle"].unique()) == [2, 3]
    modes = {path: Path(tmp_path, path).stat().st_mode & 0o777 for path in (
        "federation/travelling/state/cert.json", "federation/travelling/prod_00/hospital-1/log.txt",
        "private/hospital-1/center.log", "run/qc.csv",
    )}  # fmt: skip
    assert set(modes.values()) == {0o600}, modes
