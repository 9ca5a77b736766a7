"""`python -m autotune`: each command on a small store."""

import json

import matplotlib.image
import pytest

import autotune
from autotune import __main__ as command
from autotune import quality, store


def provenance(date="2026-01-02", seconds=(0.02, 0.01, 0.04), how="measured"):
    trials = [
        {"config": {"BM": 16 << n}, "cost": 1.0 + n, "seconds": time, "error": None} for n, time in enumerate(seconds)
    ]
    return {"how": how, "device": "here", "date": date, "trials": trials}


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path / "a"))
    for C in (1, 2, 3):
        autotune.record({"op": "fprop", "C": C}, {"BM": 32}, provenance())
    autotune.record({"op": "wgrad", "C": 1}, {"BM": 16}, provenance(seconds=(0.01, 0.02)))
    return tmp_path / "a" / "tuned"


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments, code=0):
        monkeypatch.setattr("sys.argv", ["autotune", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "200")
        assert command.main() == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return run


def test_list_shows_entries_and_what_is_no_entry(run, directory):
    (directory / "bad.json").write_text("{")
    printed = run("list")
    assert "4 entries" in printed
    assert "fprop C=3" in printed
    assert "BM=32" in printed
    assert "10.000" in printed
    assert "bad.json cannot be used" in printed
    (entry,) = json.loads(run("list", "--json", "--where", "op=wgrad"))
    assert entry["key"] == {"op": "wgrad", "C": 1}


def test_export_and_import_carry_entries_to_another_store(run, tmp_path, monkeypatch):
    file = tmp_path / "tuned.json"
    assert run("export", file, "--where", "op=fprop") == f"3 entries written to {file}\n"
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path / "b"))
    autotune.record({"op": "fprop", "C": 1}, {"BM": 64}, provenance(date="2025-12-31"))
    autotune.record({"op": "fprop", "C": 2}, {"BM": 64}, provenance(date="2026-01-03"))
    autotune.record({"op": "dgrad"}, {"BM": 64}, provenance())
    assert run("diff", file).splitlines() == [
        "+ fprop C=3: BM=32 there",
        "> fprop C=1: BM=64 here, BM=32 there",
        "< fprop C=2: BM=64 here, BM=32 there",
        "- dgrad: BM=64 here only",
    ]
    assert run("import", file) == "1 new, 1 replaced, 1 kept as they were\n"
    assert [autotune.lookup({"op": "fprop", "C": C})["BM"] for C in (1, 2, 3)] == [32, 64, 32]
    assert run("import", file) == "0 new, 0 replaced, 3 kept as they were\n"


def test_a_measured_entry_goes_before_a_predicted_one(run, tmp_path):
    file = tmp_path / "tuned.json"
    run("export", file)
    autotune.record({"op": "fprop", "C": 1}, {"BM": 64}, provenance(date="2027-01-01", how="predicted"))
    run("import", file)
    assert autotune.lookup({"op": "fprop", "C": 1}) == {"BM": 32}


@pytest.mark.parametrize(
    ("content", "reason"),
    (
        ({"schema": 2, "entries": []}, "its schema is 2, not 1: it was written by a later version"),
        ({"schema": 1, "entries": [{"schema": 2}]}, "its schema is 2, not 1: it was written by a later version"),
        ({"schema": 1, "entries": [{"schema": 1, "key": {}}]}, "its key, config and provenance are not all objects"),
        ([], "it is no export of tuning entries"),
    ),
)
def test_what_cannot_be_imported_is_refused_in_one_sentence(content, reason, run, tmp_path):
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps(content))
    before = list(store.entries())
    for name in ("import", "diff"):
        assert run(name, file, code=1) == f"error: {file} is not taken: {reason}\n"
    assert list(store.entries()) == before


def test_a_missing_file_is_an_error(run, tmp_path):
    assert "No such file" in run("import", tmp_path / "none.json", code=1)


def test_prune_removes_what_is_selected_or_cannot_be_used(run, directory):
    (directory / "bad.json").write_text("{")
    autotune.record({"op": "fprop", "C": 9}, {"BM": 32}, provenance(date="2025-01-01"))
    assert "2 entries" in run("prune", "--before", "2026-01-01", "--dry-run")
    assert len(list(directory.iterdir())) == 6
    assert "bad.json" in run("prune")
    assert len(list(directory.iterdir())) == 5
    run("prune", "--before", "2026-01-01")
    assert autotune.lookup({"op": "fprop", "C": 9}) is None
    assert autotune.lookup({"op": "fprop", "C": 1}) == {"BM": 32}
    run("prune", "--where", "op=fprop", "--where", "C=1")
    assert autotune.lookup({"op": "fprop", "C": 1}) is None
    assert autotune.lookup({"op": "wgrad", "C": 1}) == {"BM": 16}


def test_quality_by_hand(run):
    printed = run("quality")
    rows = [line for line in printed.splitlines() if "fprop" in line or "wgrad" in line]
    fprop, wgrad = ([cell.strip() for cell in row.split("│")[1:-1]] for row in rows)
    assert fprop == ["fprop", "3", "9", "2.00", "2.00", "2.00", "4.00", "67%", "0.50"]
    assert wgrad == ["wgrad", "1", "2", "1.00", "1.00", "1.00", "2.00", "100%", "1.00"]


def test_what_differs_by_noise_has_no_order():
    trials = provenance(seconds=(1.0, 1.04, 1.02))["trials"]
    assert quality.ordered_rightly(trials) is None
    assert quality.ordered_rightly([*trials, trials[0] | {"seconds": 0.9}]) == 0


def test_percentiles_are_values():
    values = [5.0, 1.0, 2.0, 4.0, 3.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    assert [quality.percentile(values, p) for p in (1, 50, 90, 91, 100)] == [1, 5, 9, 10, 10]


def test_pictures_are_drawn(run, tmp_path):
    out = tmp_path / "new" / "pictures"
    assert run("picture", "--out", out).splitlines() == [str(out / "landscape.png"), str(out / "predicted.png")]
    for name in ("landscape", "predicted"):
        assert matplotlib.image.imread(out / f"{name}.png").std() > 0.05
    assert "nothing to draw" in run("picture", "--where", "op=none", "--out", out, code=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    (
        (("list", "--where", "fprop"), "expected FIELD=VALUE, such as op=fprop; got 'fprop'"),
        (("prune", "--before", "2026-13-01"), "expected a date such as 2026-01-31; got '2026-13-01'"),
    ),
)
def test_a_wrong_option_is_named(arguments, message, run, capsys):
    with pytest.raises(SystemExit):
        run(*arguments)
    assert message in capsys.readouterr().err
