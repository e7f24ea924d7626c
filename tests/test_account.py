"""What products cost is told before a long search and after each, and stays out of files."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from sharpness.cli import account
from sharpness.cli.parameters import Bytes

from sharpness.results import Eigenpairs
from sharpness.store import load_as, save
from sharpness.training import TrainConfig, train

Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    # Above 200 unknowns, so that the search is no dense one.
    path = tmp_path / "sb.h5"
    save(path, train(TrainConfig(model_options={"widths": [8]}, updates=5)))
    return path


def test_a_search_tells_its_products_and_what_they_took(
    run: Path, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = ask("eigs", run, "-k2")
    assert status == 0
    pairs = load_as(run.with_name("sb.eigs.h5"), Eigenpairs)
    total = pairs.products + pairs.check_products
    account_ = re.search(
        r"(\d+) products of ([\d.]+) (?:ms|s), (\d+)% of [\d.]+ (?:ms|s) beside them, "
        r"engine cached, peak memory ([\d,]+) MiB",
        err,
    )
    assert account_
    assert int(account_[1]) == total
    assert 0 < int(account_[3]) < 100
    assert 50 < int(account_[4].replace(",", "")) < 50_000  # torch alone takes more than 50 MiB
    assert "beside them" not in out
    assert "at least" not in err  # no long search

    monkeypatch.setattr(account, "LONG", 0.0)
    _, _, err = ask("eigs", run, "-k2", "--overwrite", "--tol=1e-3")
    assert re.search(r"a product takes about [\d.]+ m?s: at least 17 of them, ", err)
    assert err.index("at least 17") < err.index("beside them")
    _, _, err = ask("eigs", run, "-k2", "--overwrite", "--tol=2e-3", "-q")
    assert not err


def test_the_same_search_has_the_same_bytes_whatever_it_took(run: Path, ask: Ask) -> None:
    out = run.with_name("sb.eigs.h5")
    ask("eigs", run, "-k2")
    first = out.read_bytes()
    out.unlink()
    ask("eigs", run, "-k2")
    assert out.read_bytes() == first


def test_memory_chooses_the_engine_and_the_basis_and_is_part_of_the_request(
    run: Path, ask: Ask
) -> None:
    ask("eigs", run, "-k2")
    status, _, err = ask("eigs", run, "-k2", "--memory=200KB")
    assert status == 2
    assert "memory" in err
    assert ask("eigs", run, "-k2", "--memory=200KB", "--overwrite")[0] == 0
    spec = load_as(run.with_name("sb.eigs.h5"), Eigenpairs).spec
    assert spec["operator"]["engine"] == "fresh"
    assert spec["basis"]["residuals"] == "fresh products"
    assert spec["memory"] == 100_000


@pytest.mark.parametrize(
    ("text", "count"),
    [("1", 1), ("500MB", 500_000_000), ("4GiB", 2**32), ("1.5KiB", 1536), ("2 TB", 2 * 10**12)],
)
def test_amounts_of_memory_have_the_usual_units(text: str, count: int) -> None:
    assert Bytes().convert(text, None, None) == count


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "GiB", "1GiBB", "nan", "1XB", "inf"])
def test_another_amount_is_refused_in_one_line(run: Path, ask: Ask, text: str) -> None:
    status, out, err = ask("eigs", run, f"--memory={text}")
    assert (status, out) == (2, "")
    assert "such as 500MB or 4GiB" in err or "above 0" in err
    assert err.count("\n") == 1
