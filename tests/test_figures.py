import pytest

from tritonconv import figures


def test_the_command_prints_a_row_for_each_kernel(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["figures", "gfx942"])
    figures.main()
    heading, *rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("|") and not line.startswith("|-")
    ]
    assert heading == list(figures.HEADINGS)
    assert len(rows) == len(list(figures.cases("gfx942")))
    assert {row[2] for row in rows} == {case[2] for case in figures.cases("gfx942")} > {"fprop", "norm_apply"}
    for row in rows:
        cells = dict(zip(heading, row, strict=True))
        assert int(cells["registers"]) > 0
        assert cells["spills"] == "0"
        assert cells["products"] != "–" or cells["kernel"] not in ("fprop", "dgrad", "wgrad")


def test_an_unknown_target_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["figures", "sm_1"])
    with pytest.raises(SystemExit):
        figures.main()
    assert "no target 'sm_1'; there are sm_80, sm_90, sm_100, gfx942" in capsys.readouterr().err
