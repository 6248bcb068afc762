"""The docs are those of the code: generated pages up to date, links that lead somewhere, every row and claim told of.

That the examples on the pages run is shown by pytest itself, which collects them.
"""

import re
from pathlib import Path

import pytest

from vjplib.lecture import rule_pages
from vjplib.lecture.figures import FIGURES
from vjplib.rule import rules
from vjplib.verification import CLAIMS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
WRITE_THEM = "run `python -m vjplib.lecture.rule_pages docs/rules` and commit what it writes"


def text(name):
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_pages_of_the_rules_are_those_of_their_records():
    made = rule_pages.pages(rules())
    kept = {path.name: text(path) for path in (DOCS / "rules").iterdir()}
    assert sorted(kept) == sorted(made), WRITE_THEM
    assert [name for name in made if kept[name] != made[name]] == [], WRITE_THEM


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: path.stem)
def test_relative_links_lead_to_files(path):
    prose = re.sub(r"^ *```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)#:\s]+)\)", prose)
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("folder", [DOCS, DOCS / "rules"], ids=lambda folder: folder.name)
def test_the_table_of_contents_of_a_folder_holds_every_page_in_it(folder):
    match = re.search(r"```{toctree}\n:hidden:\n\n(.*?)\n```", text(folder / "index.md"), re.DOTALL)
    assert match is not None
    pages = {path.stem for path in folder.glob("*.md")} - {"index"}
    assert set(match[1].splitlines()) == pages | {f"{path.parent.name}/index" for path in folder.glob("*/index.md")}


def rows(markdown):
    """Returns the cells of each line of a page's tables."""
    lines = (line for line in markdown.splitlines() if line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("quoted", "rule", "baseline", "column"),
    [
        ("`conv1d`, n = 1,000,000, k = 3,", "`conv1d` n=1000000 k=3", "`lax.conv_general_dilated`", "returned ms"),
        ("`prod` of 256 rows of 4096,", "`prod` b=256 n=4096", "`jnp.prod`", "returned ms"),
        ("`relu` of 1024 x 1024,", "`relu` b=1024 n=1024", "`jax.nn.relu`", "kept MB"),
    ],
    ids=["conv1d k=3", "prod", "relu"],
)
def test_the_readme_quotes_the_figures_of_the_performance_page(quoted, rule, baseline, column):
    measured = rows(text("performance.md"))
    (header,) = (row for row in measured if "returned ms" in row)
    (row,) = (row for row in measured if row[:2] == [rule, baseline])
    (line,) = (line for line in rows((ROOT / "README.md").read_text(encoding="utf-8")) if line[0].startswith(quoted))
    place, unit = header.index(column), column.split()[-1]
    ours, theirs = row[place].split(" / ")
    assert line[1:3] == [f"{theirs} {unit}", f"{ours} {unit}"]
    if unit == "ms":
        assert header[place + 1] == "ratio"
        assert line[3] == f"{row[place + 1]} x faster"


@pytest.mark.parametrize(
    ("quoted", "shape"),
    [
        ("depthwise 3x3 convolution", "`conv_general_dilated` depthwise 2-D k3"),
        ("grouped 3x3 convolution", "`conv_general_dilated` grouped 3x3, 32 groups"),
        ("transposed 4x4 convolution", "`conv_transpose` transposed 4x4 stride 2"),
        ("`max_pool` 3x3,", "`max_pool` 2-D 3x3 stride 2"),
    ],
)
def test_the_readme_quotes_the_figures_of_convolutions_and_pooling(quoted, shape):
    (row,) = (row for row in rows(text("performance.md")) if row[0] == shape)
    (line,) = (line for line in rows((ROOT / "README.md").read_text(encoding="utf-8")) if line[0].startswith(quoted))
    theirs, ours = row[1].split(" / ")
    assert line[1:] == [f"{theirs} ms", f"{ours} ms", f"{row[2]} x faster"]


def test_the_lecture_page_walks_through_every_row():
    rows = re.findall(r"^### (L\d+): ", text("lecture.md"), re.M)
    assert rows == [f"L{i}" for i in range(1, 21)]


def test_a_test_is_named_after_every_row():
    tests = (Path(__file__).parent / "test_lecture_rows.py").read_text(encoding="utf-8")
    assert all(f"\ndef test_L{i}_" in tests for i in range(1, 21))


def test_every_figure_is_drawn_and_shown():
    assert {path.stem for path in (DOCS / "figures").iterdir()} == set(FIGURES)
    assert all(f"(figures/{name}.png)" in text("lecture.md") for name in FIGURES)


def test_the_verification_page_tells_of_every_claim():
    rows = re.findall(r"^\| `([a-z_]+)`", text("verification.md"), re.M)
    assert rows == list(CLAIMS)
