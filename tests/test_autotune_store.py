"""The tuning store: what is recorded is found, and nothing found in the directory can break a lookup."""

import json
import os
import subprocess
import sys
import threading

import pytest

import autotune
from autotune import store

KEY = {"op": "gemm", "shape": (64, 32), "dtype": "float32"}
MEASURED = {"how": "measured", "device": "test"}


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITONCONV_CACHE_DIR", str(tmp_path))
    return tmp_path / "tuned"


def test_a_recorded_config_is_found_in_this_process_and_in_another():
    assert autotune.lookup(KEY) is None
    autotune.record(KEY, {"BM": 64}, MEASURED)
    assert autotune.lookup(KEY) == {"BM": 64}
    program = f"import autotune; print(autotune.lookup({KEY!r}))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "{'BM': 64}\n"


def test_the_order_of_a_key_does_not_matter_and_its_values_do():
    autotune.record(KEY, {"BM": 64}, MEASURED)
    assert autotune.lookup(dict(reversed(KEY.items()))) == {"BM": 64}
    assert autotune.lookup(KEY | {"shape": [64, 33]}) is None


def test_a_later_record_replaces_an_earlier_one():
    autotune.record(KEY, {"BM": 64}, MEASURED)
    assert autotune.lookup(KEY) == {"BM": 64}
    autotune.record(KEY, {"BM": 128}, MEASURED)
    assert autotune.lookup(KEY) == {"BM": 128}


def test_callers_may_change_what_they_got():
    autotune.record(KEY, {"BM": 64}, MEASURED)
    autotune.lookup(KEY)["BM"] = 0
    assert autotune.lookup(KEY) == {"BM": 64}


def test_an_entry_says_where_it_comes_from(directory):
    path = autotune.record(KEY, {"BM": 64}, MEASURED)
    assert path.parent == directory
    assert json.loads(path.read_text()) == {
        "schema": store.SCHEMA,
        "key": KEY | {"shape": [64, 32]},
        "config": {"BM": 64},
        "provenance": MEASURED,
    }


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: json.dumps(entry)[:-9],
        lambda entry: "",
        lambda entry: "\0\0\0",
        lambda entry: "[]",
        lambda entry: json.dumps(entry | {"key": {"op": "other"}}),
        lambda entry: json.dumps(entry | {"config": [64]}),
        lambda entry: json.dumps({k: v for k, v in entry.items() if k != "config"}),
    ],
)
def test_an_unusable_entry_is_skipped_with_one_warning_and_kept(damage):
    path = autotune.record(KEY, {"BM": 64}, MEASURED)
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.warns(UserWarning, match=path.name) as caught:
        assert autotune.lookup(KEY) is None
        assert autotune.lookup(KEY) is None
    assert len(caught) == 1
    assert path.exists()
    autotune.record(KEY, {"BM": 32}, MEASURED)
    assert autotune.lookup(KEY) == {"BM": 32}


def test_a_later_versions_entry_is_skipped_with_one_warning_and_stays():
    path = autotune.record(KEY, {"BM": 64}, MEASURED)
    later = path.read_text().replace('"schema": 1', '"schema": 2')
    path.write_text(later)
    with pytest.warns(UserWarning, match="its schema is 2, not 1: it was written by a later version"):
        assert autotune.lookup(KEY) is None
    with pytest.raises(ValueError, match="was written by a later version, and stays"):
        autotune.record(KEY, {"BM": 32}, MEASURED)
    problem = autotune.Problem(KEY, [{"BM": 16}], [1.0], lambda config: int, lambda result: None, list, lambda run: 1.0)
    (outcome,) = autotune.tune([[KEY]], lambda key: problem, {}).outcomes
    assert (outcome.status, outcome.error) == ("failed", "its entry was written by a later version, and stays")
    assert path.read_text() == later


def test_an_interrupted_write_leaves_the_old_entry_and_no_litter(directory, monkeypatch):
    autotune.record(KEY, {"BM": 64}, MEASURED)

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        autotune.record(KEY, {"BM": 128}, MEASURED)
    assert len(list(directory.iterdir())) == 1
    assert autotune.lookup(KEY) == {"BM": 64}


def test_parallel_writers_of_one_key_leave_one_whole_entry(directory):
    configs = [{"BM": size, "padding": "x" * 10_000} for size in range(16)]
    threads = [threading.Thread(target=autotune.record, args=(KEY, config, MEASURED)) for config in configs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(directory.iterdir())) == 1
    assert autotune.lookup(KEY) in configs


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError):
        autotune.record(KEY, {"BM": object()}, MEASURED)
    with pytest.raises(ValueError):
        autotune.lookup({"size": float("nan")})


def test_without_the_variable_the_users_cache_directory_is_used(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITONCONV_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert store.directory() == tmp_path / "cache" / "tritonconv" / "tuned"
