"""What the script that submits jobs prints while one runs."""

from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare")

from travelling_quality_control.federated.job import show_progress


def session(*centers):
    """A lead's session with a server to which these centers are connected."""
    info = SimpleNamespace(client_info=[SimpleNamespace(name=center) for center in centers])
    return SimpleNamespace(get_system_info=lambda: info)


def test_centers_and_whole_lines_of_the_log_are_printed_once(tmp_path, capsys):
    log = tmp_path / "training.log"
    log.write_text("before\n")
    show = show_progress(SimpleNamespace(output_folder=tmp_path, centers=["c0", "c1"]))
    assert show(session("c1", "stranger"), "job", {})  # the run goes on: what was there is known
    assert capsys.readouterr().out == "1 of 2 centers are there: c1\n"
    for written, printed in (
        ("before\ncycle 8, c0\ncyc", ["2 of 2 centers are there: c0, c1", "cycle 8, c0"]),
        ("before\ncycle 8, c0\ncycle 8, c1\n", ["cycle 8, c1"]),
        ("begun anew\n", ["begun anew"]),
    ):
        log.write_text(written)
        show(session("c0", "c1"), "job", {})
        assert capsys.readouterr().out.splitlines() == printed
