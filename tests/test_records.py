"""A result shows itself, and becomes a table of xarray or pandas with the same numbers."""

import json
import sys
import warnings
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from sharpness.errors import InputError
from sharpness.records import layout
from sharpness.results import (
    RESULTS,
    BatchEigenvalues,
    ClassStructure,
    Comparison,
    Convexity,
    Cut,
    Density,
    Diagonal,
    Eigenpairs,
    EpsilonTrend,
    Estimate,
    Invariance,
    Layers,
    Line,
    Measured,
    Plane,
    Result,
    Run,
    Sharpness,
    Solution,
    Trajectory,
)
from sharpness.store import load, save

KINDS = pytest.mark.parametrize("kind", RESULTS)
ALPHAS = torch.linspace(0, 1, 3, dtype=torch.float64)
LINE = Line(ALPHAS, {"train_loss": ALPHAS.square(), "test_loss": 2 * ALPHAS}, 2.5, {"a": "<i>"})


class Text(HTMLParser):
    """What a page shows, and whether all that is opened is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.shown, self.spec = "", ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        assert not {name for name, _ in attrs} & {"src", "href"}, "a page that asks the network"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.shown += data
        self.spec += data if "pre" in self.open else ""


def test_there_is_an_example_of_each_kind(results: dict[str, Result]) -> None:
    assert results.keys() == RESULTS.keys()


@KINDS
def test_a_result_tells_all_its_fields_in_few_words(kind: str, results: dict[str, Result]) -> None:
    told = repr(results[kind])
    assert told.startswith(f"{kind}(")
    assert all(f"{field.name}=" in told for field in fields(results[kind]))
    assert len(told) < 1500
    assert "tensor" not in told


def test_small_arrays_are_told_by_their_numbers_and_large_ones_by_their_shape() -> None:
    assert repr(LINE) == (
        "Line(alphas=[0, 0.5, 1] float64 (3,), values={'train_loss', 'test_loss'}, distance=2.5, "
        "spec={'a'})"
    )
    assert repr(Solution(torch.zeros(11), {})) == "Solution(theta=float32 (11,), buffers={})"


@KINDS
def test_a_notebook_shows_a_page_of_its_own_with_the_spec_folded_up(
    kind: str, results: dict[str, Result]
) -> None:
    result = results[kind]
    page = Text(result._repr_html_())
    assert not page.open
    assert {"table", "details", "summary"} <= page.tags
    assert not page.tags & {"b", "i", "script", "style", "link", "img"}
    assert page.shown.startswith(kind)
    assert json.loads(page.spec) == result.spec
    assert all(field.name in page.shown for field in fields(result))


def test_what_a_spec_says_is_shown_as_it_is_written() -> None:
    page = Text(LINE._repr_html_())
    assert '"a": "<i>"' in page.shown
    assert "i" not in page.tags


@pytest.mark.parametrize("engine", ["h5netcdf", "netcdf4"])
@KINDS
def test_a_result_and_its_file_are_one_dataset(
    kind: str, engine: str, results: dict[str, Result], tmp_path: Path
) -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip({"netcdf4": "netCDF4"}.get(engine, engine))
    save(tmp_path / "r.h5", results[kind], request={"command": "x"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with xarray.open_dataset(tmp_path / "r.h5", engine=engine) as opened:
            there = opened.load()
    for name in ("format", "versions", "request"):
        del there.attrs[name]
    made = results[kind].to_xarray()
    xarray.testing.assert_identical(load(tmp_path / "r.h5").to_xarray(), made)
    xarray.testing.assert_identical(made, there)
    assert all(made[name].dtype == there[name].dtype for name in made.variables)
    assert json.loads(made.attrs["spec"]) == results[kind].spec


@pytest.mark.parametrize(
    ("kind", "coordinates"),
    [
        ("Line", {"alphas"}),
        ("Cut", {"alphas"}),
        ("Run", {"update"}),
        ("Trajectory", {"updates"}),
        ("Comparison", {"groups", "seeds", "contrasts"}),
        ("Layers", {"layer"}),
    ],
)
def test_a_grid_has_its_coordinates(
    kind: str, coordinates: set[str], results: dict[str, Result]
) -> None:
    pytest.importorskip("xarray")
    assert set(results[kind].to_xarray().coords) == coordinates


def test_numbers_are_found_by_their_coordinates(results: dict[str, Result]) -> None:
    pytest.importorskip("xarray")
    data = results["Comparison"].to_xarray()
    assert data.lambda_1.sel(groups="LB 600", seeds=1).item() == 5.0
    assert LINE.to_xarray().train_loss.sel(alphas=0.5).item() == 0.25


@KINDS
def test_a_table_has_the_numbers_of_the_result(kind: str, results: dict[str, Result]) -> None:
    pytest.importorskip("pandas")
    result = results[kind]
    frame = result.to_pandas()
    if isinstance(result, Comparison):
        assert list(frame.columns) == ["group", "seed", "reached", "measure", "value"]
        assert len(frame) == sum(numbers.numel() for numbers in result.values.values())
        row = frame[(frame.group == "LB 600") & (frame.seed == 1) & (frame.measure == "lambda_1")]
        assert row.value.tolist() == [5.0]
        assert frame[frame.group == "LB 600"].reached.tolist() == [True, True, False] * 2
        return
    if isinstance(result, Plane | Convexity):
        q = len(result.betas)
        assert frame.betas.tolist() == result.betas.tolist() * len(result.alphas)
        assert frame.alphas[q : 2 * q].tolist() == [float(result.alphas[1])] * q
        values = result.values if isinstance(result, Plane) else {"largest": result.largest}
        for name, column in values.items():
            assert frame[name].tolist() == column.flatten().tolist()
        return
    if isinstance(result, Density):
        for i, (nodes, weights) in enumerate(zip(result.nodes, result.weights, strict=True)):
            of_probe = frame[frame.probe == i]
            assert of_probe.nodes.tolist() == nodes[~nodes.isnan()].tolist()
            assert of_probe.weights.tolist() == weights[~nodes.isnan()].tolist()
        assert len(frame) == int((~result.nodes.isnan()).sum())
        return
    if isinstance(result, BatchEigenvalues):
        k = result.values.shape[1]
        assert frame.batch.tolist()[: k + 1] == [0] * k + [1]
        assert frame.pair.tolist()[: k + 1] == [*range(k), 0]
        assert frame["values"].tolist() == result.values.flatten().tolist()
        assert frame.converged.tolist() == result.converged.flatten().tolist()
        assert frame.losses.tolist()[::k] == result.losses.tolist()
        return
    if isinstance(result, Invariance):
        assert frame.index.tolist() == result.measures
        assert list(frame.columns) == result.symmetries
        assert frame.to_numpy().tolist() == result.change.tolist()
        return
    if isinstance(result, Sharpness):
        assert frame.pop("start").tolist() == result.start
    columns: dict[str, torch.Tensor] = {
        Run: lambda r: r.history,
        Line: lambda r: {"alphas": r.alphas, **r.values},
        Eigenpairs: lambda r: {
            name: getattr(r, name)
            for name in ("values", "residuals", "sampling_errors", "converged")
        },
        Cut: lambda r: {
            name: getattr(r, name)
            for name in ("lengths", "slopes", "curvatures", "curvature_sampling_errors")
        },
        Trajectory: lambda r: {
            f.name: getattr(r, f.name) for f in fields(r) if f.name not in ("epsilon", "spec")
        },
        EpsilonTrend: lambda r: {
            f.name: getattr(r, f.name)
            for f, (_, kind, axes) in zip(fields(r), layout(EpsilonTrend), strict=True)
            if axes == ("epsilon",)
        },
        Estimate: lambda r: {"samples": r.samples},
        Measured: lambda r: r.samples,
        ClassStructure: lambda r: {
            name: getattr(r, name)
            for name in (
                *("values", "residuals", "converged", "sampling_errors"),
                *("gradient_shares", "gradient_share_errors"),
            )
        },
        Diagonal: lambda r: {"values": r.values, "stderr": r.stderr},
        Layers: lambda r: {
            name: getattr(r, name)
            for name, kind, axes in layout(Layers)
            if kind is torch.Tensor and axes == ("layer",)
        },
    }.get(
        type(result),
        lambda r: {
            f.name: getattr(r, f.name) for f in fields(r) if f.name.startswith(("start_", "draw_"))
        },
    )(result)
    assert list(frame.columns) == list(columns)
    for name, column in columns.items():
        assert frame[name].fillna(-9).tolist() == column.nan_to_num(-9).tolist()


@pytest.mark.parametrize(("library", "call"), [("xarray", "to_xarray"), ("pandas", "to_pandas")])
@pytest.mark.parametrize("kind", ["Line", "Comparison"])
def test_a_library_that_is_not_there_is_named(
    kind: str,
    library: str,
    call: str,
    results: dict[str, Result],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=f"python -m pip install {library}"):
        getattr(results[kind], call)()
