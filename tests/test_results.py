"""What is stored of benchmarks, and what is made of it: documentation, comparison, report. Nothing is timed here."""

import json

import pytest

from benchmarks import ceilings, compare, measure, pictures, readme, report
from benchmarks.comparison import OURS, PLAIN, Row, figure, geometric_mean, rows_of
from benchmarks.kernels import COLUMNS
from benchmarks.tables import TABLES


def row(ours, *, group="batch 1", name="net", torch=(10.0, 10.0, 10.0), **facts):
    return Row(group, name, "ms", {OURS: ours, "torch NCHW": torch}, facts=facts)


def stored(*rows, benchmark="networks", **more):
    return json.loads(json.dumps(measure.result(benchmark, [row.to_json() for row in rows], **more)))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A folder of results of two layers and two networks, in place of what is stored."""
    limit = ceilings.Ceilings(2e11, {ceilings.MIB: 1e11, 8 * ceilings.MIB: 8e10, 512 * ceilings.MIB: 2e10}, 3.5, 2)
    block = {"networks": ["net"], "flops": 2_000_000, "bytes": 100_000, "least_ms": 0.5}
    layers = (
        row((1, 1, 1), group="forward", name="3×3", kind="3×3", algorithm="Winograd", **block),
        row((20, 20, 20), group="forward", name="1×1", kind="1×1", algorithm="implicit GEMM", **block),
    )
    networks = row((4, 5, 6)), row((12, 20, 21), name="slow")
    axes = [(axis, n) for axis in ("batch", "channels") for n in (1, 2)]
    scales = [row((1, 1, 1), group=axis, name=str(n), value=n, flops=n) for axis, n in axes]
    for one in (
        stored(*layers, benchmark="kernels", ceilings=limit.to_json()),
        stored(*networks),
        stored(*scales, benchmark="scaling"),
    ):
        (tmp_path / f"{one['benchmark']}.json").write_text(json.dumps(one))
    for module in (measure, pictures, readme, report):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return tmp_path


def test_the_documentation_has_the_figures_that_are_stored():
    for document in readme.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert readme.rendered(text) == text, f"python -m benchmarks readme writes {document.name} anew"


def test_documents_take_their_figures_from_what_is_stored(results):
    text = readme.rendered("a <!-- figures: networks -->\nold\n<!-- end --> b <!-- figures: cpu -->\n<!-- end -->")
    assert text.startswith("a <!-- figures: networks -->\n| batch 1 | ours, ms | spread | torch |")
    assert "| net | 5 | 40% | 2.00 | 2.00 |" in text and "| slow | 20 | 45% | 0.50 | 0.50 |" in text
    assert "old" not in text and "`python -m benchmarks cpu` has not been run.\n<!-- end -->" in text
    assert readme.rendered(text) == text


def test_documents_have_the_figures_of_a_gpu_group_by_group(results, monkeypatch):
    text = "<!-- figures: networks-gpu -->\nold\n<!-- end -->"
    assert "`python -m benchmarks networks` has not been run on a GPU.\n<!-- end -->" in readme.rendered(text)
    groups = [f"batch 32, {name}{end}" for name in ("float16", "TF32") for end in ("", ", captured")]
    rows = [row((ours,) * 3, group=group, name=name) for group in groups for name, ours in (("net", 5), ("slow", 20))]
    (results / "networks-gpu.json").write_text(json.dumps(stored(*rows, benchmark="networks-gpu")))
    text = readme.rendered(text)
    for group in groups:
        assert f"| {group} | ours, ms | spread | torch | the best of them |" in text
    assert text.count("| slow | 20 | 0% | 0.50 | 0.50 |") == 4 == text.count("| geometric mean |  |  | 1.00 | 1.00 |")


def test_a_plain_patch_has_a_column_of_its_own(results):
    figures = {OURS: (5,) * 3, PLAIN: (20,) * 3, "torch NCHW": (10,) * 3}
    (results / "networks.json").write_text(json.dumps(stored(Row("batch 1", "net", "ms", figures))))
    text = readme.rendered("<!-- figures: networks -->\n<!-- end -->")
    assert "| batch 1 | ours, ms | spread | torch | the best of them | plain |" in text
    assert "| net | 5 | 0% | 2.00 | 2.00 | 0.50 |" in text and "| geometric mean |  |  | 2.00 | 2.00 | 0.50 |" in text


def test_documents_tell_what_each_benchmark_took(results):
    text = readme.rendered("<!-- figures: minutes -->\n<!-- end -->")
    assert [line.split(" | ")[0] for line in text.splitlines()[3:-1]] == ["| `kernels`", "| `networks`", "| `scaling`"]


def test_results_of_another_schema_are_refused(tmp_path):
    path = tmp_path / "networks.json"
    path.write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="has schema 99; this version reads schema 1"):
        measure.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="is not a benchmark's result"):
        measure.load(path)


def test_what_is_stored_has_its_origin(tmp_path):
    rows = [row((1, 2, 3)).to_json()]
    path = measure.save("networks", rows, tmp_path / "new" / "networks.json", options={"batch": [1]})
    found = measure.load(path)
    assert rows_of(found) == [Row("batch 1", "net", "ms", {OURS: [1, 2, 3], "torch NCHW": [10.0] * 3})]
    assert found["machine"]["threads"] > 0 and found["versions"]["torch"] and found["date"] and found["commit"]
    assert found["options"] == {"batch": [1]} and found["benchmark"] == "networks"


def test_ratios_are_to_the_best_peer():
    one = Row("", "", "ms", {OURS: (1, 2, 3), "a": (3, 8, 9), "b": (4, 4, 4)})
    assert one.best == "b" and one.ratio == 2 and one.over(["a"]) == 4 and one.spread == 1 and not one.slower
    plain = Row("", "", "ms", {OURS: (4, 4, 4), PLAIN: (2, 2, 2), "a": (8, 8, 8)})
    assert plain.best == "a" and plain.ratio == 2 and plain.over(plain.peers, PLAIN) == 4
    assert Row("", "", "ms", {"a": (1, 1, 1)}).ratio is None and Row("", "", "ms", {OURS: (1, 1, 1)}).ratio is None
    assert geometric_mean([2, None, 8]) == pytest.approx(4) and geometric_mean([None]) is None
    assert figure([3]) == (3, 3, 3) and figure([1, 2, 3, 4, 5]) == (2, 3, 4)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((9, 10, 11), (9, 10, 11), ""),
        ((9, 10, 11), (10, 12, 13), ""),  # within the spread
        ((10, 10, 10), (10.2, 10.2, 10.2), ""),  # within the margin
        ((9, 10, 11), (12, 13, 14), "worse"),
        ((9, 10, 11), (6, 7, 8), "better"),
    ],
)
def test_a_change_counts_beyond_spread_and_margin(before, after, verdict):
    old, new = (compare.keyed(stored(row(ours))) for ours in (before, after))
    (change,) = compare.changes(old, new, margin=0.05, scale=compare.drift(old, new))
    assert change.verdict == verdict


def test_a_slower_machine_is_no_regression():
    old = compare.keyed(stored(row((10, 10, 10))))
    new = compare.keyed(stored(row((20, 20, 20), torch=(20, 20, 20))))
    assert compare.drift(old, new) == pytest.approx(2)
    (change,) = compare.changes(old, new, margin=0.05, scale=2)
    assert change.verdict == "" and change.factor == pytest.approx(1)


def test_compare_exits_with_1_only_where_something_is_worse(tmp_path, capsys):
    paths = {}
    for name, ours in {"old": (10, 10, 10), "same": (10, 10, 11), "worse": (20, 20, 20)}.items():
        paths[name] = measure.save("networks", [row(ours).to_json()], tmp_path / f"{name}.json")
    gone = Row("batch 1", "net", "ms", {"torch NCHW": (10, 10, 10)}, {OURS: "wrong"}).to_json()
    paths["gone"] = measure.save("networks", [gone], tmp_path / "gone.json")
    other = measure.save("memory", [], tmp_path / "memory.json")
    compare.main([str(paths["old"]), str(paths["same"])])
    for name in ("worse", "gone"):
        with pytest.raises(SystemExit, match="1 of 1 rows have become worse"):
            compare.main([str(paths["old"]), str(paths[name])])
    with pytest.raises(SystemExit) as error:
        compare.main([str(paths["old"]), str(other)])
    assert error.value.code == 2 and "is of networks" in capsys.readouterr().err


def test_every_stored_result_can_be_compared_with_itself():
    for path in measure.RESULTS.glob("*.json"):
        stored = measure.load(path)
        found = compare.keyed(stored)
        assert len(found) == len(rows_of(stored)), f"{path.name}: rows share a group and a name"
        assert all(change.verdict == "" for change in compare.changes(found, found, 0.05, 1.0))


def test_pictures_are_drawn_of_what_is_stored(results):
    for name, (benchmark, _) in pictures.PICTURES.items():
        path = pictures.draw(name, results)
        assert (path is not None and path.stat().st_size > 1000) == (results / f"{benchmark}.json").exists()


def test_the_report_has_every_row_and_marks_the_slower_ones(results):
    page = report.page()
    assert "<tr><td>net</td><td>5</td>" in page
    assert '<tr class="slower"><td>slow</td><td>20</td><td>45%</td><td>0.50</td>' in page
    assert "<b>1.00×</b>inference, batch 1, against eager torch; faster on 1 of 2 networks" in page
    assert page.count("<img src=") == 3 and "$" not in page.partition("<body>")[2]


def test_shares_are_of_the_ceilings():
    limit = ceilings.Ceilings(1e11, {ceilings.MIB: 1e11, 8 * ceilings.MIB: 5e10, 512 * ceilings.MIB: 1e10}, None, 2)
    assert limit.bytes_per_second(1) == 1e11 and limit.bytes_per_second(2 * ceilings.MIB) == 5e10
    assert limit.bytes_per_second(10**10) == 1e10
    assert limit.least(10**9, 1000) == pytest.approx(0.01) and limit.least(1, 10**9) == pytest.approx(0.1)
    one = row((1, 2, 3), kind="3×3", flops=4_000_000, bytes=2_000_000, least_ms=0.5)
    assert [text(one) for text in COLUMNS.values()] == ["3×3", "2", "1", "25%"]
    assert set(TABLES) > {"networks", "training", "kernels", "memory", "startup"}
