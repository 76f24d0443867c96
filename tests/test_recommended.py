"""The word for the recommended setting: a run that is given it is the one that is given the options it stands for."""

import json
import re
import sys

import pytest
from conftest import run_here

from travelling.option import from_command_line
from travelling.option_values import from_json, to_command_line, to_json
from travelling.runs.control_options import LocalQualityControl
from travelling.runs.record import describe, differences
from travelling_quality_control.auditing.run_record import settings_of
from travelling_quality_control.federated.options import QualityControlServer

GIVEN = ["-fn_train", "a.csv", "-fn_test", "b.csv", "-en", "en", "-pd", "pd", "-fn_save", "log"]
SPELLED = ["--rule", "evidence", "--screen", "--verify-every", "16"]


def record_of(monkeypatch, *words):
    """What ``run.json`` says of a run with this command line."""
    monkeypatch.setattr(sys, "argv", ["enc_PD_quality_control.py", *GIVEN, *words])
    return describe(from_command_line(LocalQualityControl, ""), {}, "folder")


def test_the_record_is_that_of_the_options(monkeypatch):
    word, spelled = record_of(monkeypatch, "--recommended"), record_of(monkeypatch, *SPELLED)
    assert differences(word, spelled) == differences(spelled, word) == []  # the one goes on where the other stopped
    assert word == spelled
    options = word["options"]
    stands_for = {"rule": "evidence", "screen": True, "false_alarms": 0.01, "verify_every": 16}
    assert options | stands_for == options
    assert "recommended" not in options
    found = [type(extension).__name__ for extension in settings_of(word).extensions]  # as an audit reads it
    assert found == ["Evidence", "Groups", "Screen"]


@pytest.mark.parametrize(
    ("more", "same"),
    [
        (["--verify-every", "1"], ["--rule", "evidence", "--screen"]),
        (["--verify-every", "8"], ["--rule", "evidence", "--screen", "--verify-every", "8"]),
        (["--rule", "published"], ["--screen", "--verify-every", "16"]),
        (["--false-alarms", "0.05", "--label-screen"], [*SPELLED, "--false-alarms", "0.05", "--label-screen"]),
    ],
)
def test_what_is_given_beside_it_goes_first(more, same, monkeypatch):
    for words in ([*more, "--recommended"], ["--recommended", *more]):
        assert record_of(monkeypatch, *words) == record_of(monkeypatch, *same)


def test_a_servers_file_knows_it(tmp_path):
    def server(**more):
        path = tmp_path / "server.json"
        given = {"fn_test": "b.csv", "en": "en", "pd": "pd", "fn_save": "log", "centers": ["a", "b"]}
        return from_json(QualityControlServer, path, json.loads(json.dumps(given | more)))

    spelled = server(rule="evidence", screen=True, verify_every=16)
    assert server(recommended=True).values() == spelled.values()
    assert server(recommended=True, verify_every=4).values() == spelled.values() | {"verify_every": 4}
    assert server(recommended=False).values() == server().values()
    files = [to_json(QualityControlServer, one.values()) for one in (server(recommended=True), spelled)]
    assert files[0] == files[1]


def test_help_says_what_it_stands_for(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    done = run_here("quality_control", "--help")
    (options,) = re.findall(r"--recommended\s+the recommended setting: ([^;]*);", done.stdout)
    assert record_of(monkeypatch, *options.split()) == record_of(monkeypatch, "--recommended")
    assert to_command_line(LocalQualityControl, recommended=True) == ["--recommended"]
