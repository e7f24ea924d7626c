"""The pages do what they say: their blocks run in order, and nothing is fetched from elsewhere."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import sharpness
from sharpness.averages import AVERAGES
from sharpness.methods import METHODS
from sharpness.results import Eigenpairs
from sharpness.sampling import BATCHES
from sharpness.schedules import SCALINGS, SCHEDULES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [DOCS / "quickstart.md", *sorted((DOCS / "howto").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_in_their_order(page: Path, tmp_path: Path) -> None:
    bin = Path(sys.executable).parent
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "page.py", page],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{bin}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_is_found(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert 2 * len(load(ROOT / "tests" / "page.py").blocks(page)) == text.count("```")


def test_every_promise_names_tests_that_are_there() -> None:
    page = " ".join((DOCS / "promises.md").read_text(encoding="utf-8").split())
    groups = re.findall(r"\*Tests:\* (.*?\))\.(?= |$)", page)
    assert len(groups) > 20
    for group in groups:
        for words, file in re.findall(r"([\w ]+) \(`(test_\w+\.py)`\)", group):
            name = f"test_{words.strip().replace(' ', '_')}"
            text = (ROOT / "tests" / file).read_text(encoding="utf-8")
            assert f"\ndef {name}(" in text, f"{file}: {name}"


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. auto\w+:: sharpness\.(\w+)$", page, re.MULTILINE)
    assert sorted(listed) == sorted([*sharpness.HOMES, *sharpness.MODULES])


def test_the_reference_has_every_function_that_a_training_chooses_by_name() -> None:
    page = (DOCS / "reference.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\.\. autofunction:: (sharpness\.\w+\.\w+)$", page, re.MULTILINE)
    for table in (METHODS, AVERAGES, SCHEDULES, SCALINGS, BATCHES):
        for f in table.values():
            assert f"{f.__module__}.{f.__name__}" in listed


def test_each_page_of_the_gallery_asserts_what_it_claims() -> None:
    for page in (DOCS / "gallery").glob("plot_*.py"):
        assert re.search(r"^ *assert ", page.read_text(encoding="utf-8"), re.MULTILINE), page.name


def test_every_command_has_a_section_with_its_options() -> None:
    pytest.importorskip("docutils")
    from sharpness.cli import COMMANDS, sharpness as group

    commands = load(DOCS / "extensions" / "commands.py")
    found = {
        s["names"][0]: s.astext()
        for s in commands.sections(group, click.Context(group, info_name="s"))
    }
    assert {f"s {name}" for name in COMMANDS} <= found.keys()
    assert "--batch-size INTEGER" in found["s train"]
    assert "[default: 32]" in found["s train"]
    assert "--epsilon NUMBER" in found["s measure epsilon-sharpness"]


def test_the_fields_of_a_record_say_what_their_comments_say() -> None:
    records = load(DOCS / "extensions" / "records.py")
    found = {name: (kind, meaning) for name, kind, meaning in records.fields(Eigenpairs)}
    assert found["vectors"] == ("Tensor over pair, parameter", "(k, n)  orthonormal rows")
    assert found["sampling_errors"][1].startswith("(k,)  standard errors as estimates")


def test_formulas_keep_their_source_and_fence_their_bars() -> None:
    pytest.importorskip("latex2mathml")
    formula = load(DOCS / "extensions" / "mathml.py").mathml(r"\lvert x \rvert < 1", "inline")
    assert r'alttext="\lvert x \rvert &lt; 1"' in formula
    assert formula.count('fence="true"') == 2


@pytest.mark.parametrize(
    "page",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//cdn.example/x.css">',
        '<img srcset="a.png, https://cdn.example/b.png 2x">',
        "<style>@import 'https://cdn.example/x.css';</style>",
        '<p style="background: url(http://cdn.example/x.png)">',
    ],
)
def test_a_page_that_fetches_from_elsewhere_is_found(page: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f"<html><body>{page}</body></html>")
    (found,) = load(DOCS / "extensions" / "offline.py").requests(tmp_path)
    assert "cdn.example" in found[1]


def test_links_and_files_of_its_own_are_no_requests(tmp_path: Path) -> None:
    own = '<a href="https://arxiv.org/abs/1609.04836">a link</a><img src="_images/a.png">'
    (tmp_path / "page.html").write_text(f'<link rel="canonical" href="https://x.example">{own}')
    (tmp_path / "page.css").write_text("a { background: url(data:image/png;base64,AA//BB) }")
    assert not list(load(DOCS / "extensions" / "offline.py").requests(tmp_path))


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
