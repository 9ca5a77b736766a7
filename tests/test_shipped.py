"""Entries that come with a package: behind the store's own, on machines alike only, and never in the way."""

import json

import pytest
import torch

import autotune
from autotune import files, shipped, store
from tritonconv import configs, measuring, tuned, tuning

KEY = {"op": "gemm", "M": 64}
HERE = {"processor": "z80", "threads": 2}


def entry(config=None, **machine):
    about = {"how": "measured", "date": "2026-01-01", "trials": [1], **(HERE | machine)}
    return {"schema": store.SCHEMA, "key": KEY, "config": config or {"BM": 32}, "provenance": about}


@pytest.fixture(autouse=True)
def empty(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path / "cache"))
    store.forget()


@pytest.fixture
def ship(tmp_path):
    def ship(*entries, machine=lambda: HERE):
        path = tmp_path / f"{len(shipped._shipped)}.json"
        files.export(path, entries, brief=True)
        autotune.ship(path, machine)
        return path

    return ship


def test_a_shipped_entry_is_found_on_a_machine_alike(ship):
    ship(entry())
    assert autotune.lookup(KEY) == {"BM": 32}
    assert autotune.lookup(KEY | {"M": 65}) is None
    autotune.lookup(KEY)["BM"] = 0
    assert autotune.lookup(KEY) == {"BM": 32}


@pytest.mark.parametrize("other", ({"processor": "6502"}, {"threads": 1}))
def test_what_another_machine_measured_is_not_used(other, ship):
    ship(entry(**other))
    assert autotune.lookup(KEY) is None
    ship(entry({"BM": 64}))
    assert autotune.lookup(KEY) == {"BM": 64}


def test_the_machine_is_that_of_the_look_up(ship):
    machine = dict(HERE)
    ship(entry(), machine=lambda: machine)
    assert autotune.lookup(KEY) == {"BM": 32}
    machine["threads"] = 1  # as torch.set_num_threads makes it
    assert autotune.lookup(KEY) is None


def test_the_users_own_entry_goes_before_and_tuning_measures_what_is_only_shipped(ship):
    ship(entry())
    problem = autotune.Problem(KEY, [{"BM": 16}], [1.0], lambda config: int, lambda result: None, list, lambda run: 1.0)
    tuned = autotune.tune([[KEY]], lambda key: problem, {})
    assert tuned.count("measured") == 1
    assert autotune.lookup(KEY) == {"BM": 16}
    assert autotune.tune([[KEY]], lambda key: problem, {}).count("stored") == 1


def test_a_store_that_is_set_is_all_there_is(ship, tmp_path):
    ship(entry())
    with store.at(tmp_path / "other"):
        assert autotune.lookup(KEY) is None
    assert autotune.lookup(KEY) == {"BM": 32}


@pytest.mark.parametrize("text", ("", "{", "[]", '{"schema": 99, "entries": []}', '{"schema": 1, "entries": [1]}'))
def test_a_broken_shipped_file_is_one_warning(text, ship):
    ship(entry()).write_text(text)
    with pytest.warns(UserWarning, match="shipped tuning entries are not used: .*0.json") as caught:
        assert autotune.lookup(KEY) is None
        assert autotune.lookup(KEY) is None
    assert len(caught) == 1


def test_a_missing_shipped_file_is_one_warning(ship):
    ship(entry()).unlink()
    with pytest.warns(UserWarning, match="shipped tuning entries are not used"):
        assert autotune.lookup(KEY) is None


def test_a_brief_export_has_no_trials(ship):
    ((found,), (line,)) = files.read(path := ship(entry())), path.read_text().splitlines()[1:-1]
    assert json.loads(line) == found
    assert found["provenance"] == {"how": "measured", "date": "2026-01-01", **HERE}


SHIPPED = [entry for path in sorted(tuned.FOLDER.glob("*.json")) for entry in files.read(path)]


def test_entries_are_shipped():
    assert SHIPPED


def test_what_is_shipped_are_tiles_and_algorithms_that_there_are():
    """Of the search spaces as they are now, and with all that tells machines apart."""
    for one in SHIPPED:
        key, about = one["key"], one["provenance"]
        assert about["how"] == "measured" and about["date"] and tuned.machine().keys() <= about.keys()
        if key["op"] in measuring.ALGORITHMS:
            assert one["config"]["algorithm"] in ("gemm", "winograd")
        else:
            assert measuring.OPERATORS[key["op"]] and configs.TileConfig(**one["config"])


def test_what_tuning_says_of_a_machine_is_what_is_compared():
    assert tuned.machine().items() <= tuning.provenance(torch.device("cpu")).items()
