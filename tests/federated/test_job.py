"""What the script that submits jobs prints while one runs."""

from types import SimpleNamespace

import pytest

pytest.importorskip("nvflare")

from travelling_quality_control.federated.job import show_progress

HEADER = "Cycle,Subject,Study,PFP,PFN,Ignored,Phase,Subjects\n"


def session(*centers):
    """A lead's session with a server to which these centers are connected."""
    info = SimpleNamespace(client_info=[SimpleNamespace(name=center) for center in centers])
    return SimpleNamespace(get_system_info=lambda: info)


def settings(folder, method="quality_control"):
    return SimpleNamespace(method=method, fn_save=folder / "qc", output_folder=folder, centers=["c0", "c1"])


def test_each_verification_is_printed_once(tmp_path, capsys):
    log = tmp_path / "qc.csv"
    log.write_text(f"{HEADER}0,n/a,n/a,0.5,0.5,0,baseline,\n")
    show = show_progress(settings(tmp_path))  # the run goes on: what was there is known
    assert show(session("c1", "stranger"), "job", {})
    assert capsys.readouterr().out == "1 of 2 centers are there: c1\n"
    with open(log, "a") as file:
        file.write("8,batch,c0,0.25,0.125,1,batch,a;b;c\n8,d,c1,,,1,unreachable,d\n8,a,c0,0.")
        file.flush()
        show(session("c0", "c1"), "job", {})
        assert capsys.readouterr().out.splitlines() == [
            "2 of 2 centers are there: c0, c1",
            "cycle 8, c0: batch, 3 images, FPR 0.250, FNR 0.125, undone",
            "cycle 8, c1: unreachable, 1 image",
        ]
        file.write("5,0.5,0,subject,a\n")
    show(session("c0", "c1"), "job", {})
    assert capsys.readouterr().out == "cycle 8, c0: subject, 1 image, FPR 0.500, FNR 0.500\n"


def test_a_log_that_is_cut_at_a_restart_is_followed_on(tmp_path, capsys):
    log = tmp_path / "qc.csv"
    row = "8,batch,c0,0.25,0.125,0,batch,a\n"
    log.write_text(HEADER + 3 * row)
    show = show_progress(settings(tmp_path))
    for rows, printed in ((1, 0), (2, 1), (2, 0)):
        log.write_text(HEADER + rows * row)
        show(session(), "job", {})
        assert capsys.readouterr().out.count("cycle 8") == printed


def test_the_standard_model_prints_every_question(tmp_path, capsys):
    show = show_progress(settings(tmp_path, "standard"))
    (tmp_path / "visits.csv").write_text(
        "Time,Center,Question,Seconds,Bytes_sent,Bytes_received,Outcome\n1,c0,train,1.24,2,2,answered\n"
    )
    show(session(), "job", {})
    assert capsys.readouterr().out == "c0: train, 1.2 s, answered\n"
