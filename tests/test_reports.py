"""Reports of a run: what is written can be read again, by people and by the programs that each format is for."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest

import vjplib as vl
from vjplib.__main__ import main
from vjplib.reports import Run, changes, plots, read, write_html, write_json, write_junit, write_markdown
from vjplib.reports.runs import schema
from vjplib.verification import CLAIMS, Finding, Report
from vjplib.verification.call import CallUnderTest
from vjplib.verification.explain.jacobian_picture import jacobians
from vjplib.verification.text import render

HOSTILE = "<script>document.title = 'run'</script>"
ENVIRONMENT = {"jax": "0.0", "date": "2026-01-02T03:04:05+00:00", "cpus": 2}


@jax.custom_vjp
def halved(x, w):
    return jnp.tanh(x) @ w


halved.defvjp(
    lambda x, w: (jnp.tanh(x) @ w, (x, w)),
    lambda res, g: (g @ res[1].T * (1 - jnp.tanh(res[0]) ** 2), jnp.tanh(res[0]).T @ g / 2),
)


@pytest.fixture(scope="module")
def measured():
    """Returns the report of a wrong rule, with all that plots are drawn from."""
    rng = np.random.default_rng(0)
    args = tuple(rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5), (5, 3)))
    return vl.verify(halved, args, claims=("value", "residuals", "growth", "accuracy"))


@pytest.fixture(scope="module")
def run(measured):
    source = "import numpy as np\n\nx = np.float32([1, 2])  # </script><b>\n"
    findings = (
        Finding("contract", "note", "prints \x1b[31m red & ]]> |", case="<img src=x onerror=document.title='run'>"),
        Finding(
            "value", "fail", "differs", "cotangent of x", float("inf"), (0, 1), trap="not-linear", counterexample=source
        ),
        Finding("linearity", "fail", "is not a number", ratio=float("nan")),
        Finding("second_order", "skipped", "undecided"),
    )
    right = Report("right", tuple(Finding(claim, "pass", "holds", ratio=0.5) for claim in CLAIMS), 12.0)
    nothing = Report("undecided", (Finding("contract", "skipped", "no reference"),), 3.0)
    return Run((Report(HOSTILE, findings, 2.5), right, measured, nothing), ENVIRONMENT, "standard", 7)


def test_the_table_of_a_catalogue_fits_80_columns_and_needs_no_colour():
    names = [f"a_rule_of_some_length_{i}" for i in range(25)] + ["softmax_cross_entropy_with_integer_labels_and_more"]
    levels = ("pass", "fail", "note", "skipped")
    reports = [
        Report(name, tuple(Finding(c, levels[(i + j) % 4], "") for j, c in enumerate(CLAIMS)), 100.0)
        for i, name in enumerate(names)
    ]
    lines = [line for line in render(reports).splitlines() if not line.startswith(tuple(f"{n}:" for n in names))]
    assert max(map(len, lines)) <= 80
    (row,) = (line.split() for line in lines if names[0] in line)
    assert row == [names[0], *(("ok", "NO", "n", "?")[j % 4] for j in range(len(CLAIMS))), "100.0"]
    assert any("NO refuted, ? undecided" in line for line in lines)
    assert "…" not in "".join(lines)


def test_a_small_table_says_it_in_words():
    text = render([Report("[red]f", (Finding("contract", "pass", ""), Finding("value", "skipped", "")))])
    assert "[red]f ok skip" in text


def test_json_is_by_its_schema_and_is_read_as_it_was(run, tmp_path):
    jsonschema.Draft202012Validator.check_schema(schema())
    write_json(tmp_path / "run.json", run)
    content = json.loads((tmp_path / "run.json").read_text())
    jsonschema.validate(content, schema())
    assert content["schema"] == 2
    again = read(tmp_path / "run.json")
    assert again.to_dict() == run.to_dict()
    assert again.reports[1:] == run.reports[1:]
    assert [f.ratio for f in again.reports[0].findings][1:3] == pytest.approx([np.inf, np.nan], nan_ok=True)


def test_the_schema_refuses_what_is_amiss(run):
    for change in ({"level": "good"}, {"claim": ""}, {"index": [0.5]}, {"ratio": "large"}, {"more": 1}):
        content = run.to_dict()
        content["reports"][0]["findings"][0] |= change
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(content, schema())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "must be JSON"),
        ("[]", "must be an object with reports"),
        ('{"rows": []}', "must be an object with reports"),
        ('{"reports": [], "seed": 0}', "must be by schema 2, has no schema number"),
        ('{"reports": [], "schema": 99}', "must be by schema 2, has schema 99"),
        ('{"reports": [], "schema": 2, "environment": {}, "effort": "quick", "claims": null}', "lacks 'seed'"),
        ('{"reports": [3], "schema": 2, "environment": {}, "effort": "quick", "seed": 0}', "must be by schema 2: "),
        ("[" * 100_000, "must be JSON"),
    ],
)
def test_a_file_that_is_none_is_told_what_it_lacks(tmp_path, content, message):
    (tmp_path / "old.json").write_text(content)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        read(tmp_path / "old.json")
    assert str(raised.value).startswith(f"{tmp_path / 'old.json'} must be ")


def test_a_claim_without_a_name_is_refused(run):
    content = run.to_dict()
    content["reports"][0]["findings"][0]["claim"] = ""
    with pytest.raises(ValueError, match=r"claims must be names, got ''"):
        Run.from_dict(content)
    with pytest.raises(ValueError, match=r"claims must be names, got \['contract'\]"):
        Run.from_dict(run.to_dict() | {"claims": [["contract"]]})


@pytest.mark.parametrize("key", ["message", "argument", "case", "trap", "counterexample"])
def test_what_is_no_text_where_there_must_be_some_is_refused(run, key):
    content = run.to_dict()
    content["reports"][0]["findings"][0][key] = ["a", {}]
    with pytest.raises(ValueError, match=f"must be by schema 2: {key} must be a string, got "):
        Run.from_dict(content)


def numbers(element, *names):
    return [int(element.attrib[name]) for name in names]


def test_junit_has_a_case_for_every_rule_and_claim(run, tmp_path):
    write_junit(tmp_path / "run.xml", run)
    root = ElementTree.parse(tmp_path / "run.xml").getroot()
    assert root.tag == "testsuites"
    suites = {suite.attrib["name"]: suite for suite in root}
    assert list(suites) == [r.name for r in run.reports]
    for report in run.reports:
        suite = suites[report.name]
        cases = {case.attrib["name"]: case for case in suite.iter("testcase")}
        assert {c for c in CLAIMS if report.level(c)} == cases.keys() - {"verification"}
        counted = [len(list(suite.iter(kind))) for kind in ("testcase", "failure", "error", "skipped")]
        assert numbers(suite, "tests", "failures", "errors", "skipped") == counted
        assert [child.tag for child in suite] == ["properties", *["testcase"] * len(cases)]
    totals = [sum(column) for column in zip(*(numbers(s, "tests", "failures", "errors") for s in root), strict=True)]
    assert numbers(root, "tests", "failures", "errors") == totals
    (failure, _) = suites[HOSTILE].iter("failure")
    assert "differs" in failure.attrib["message"]
    assert "x = np.float32([1, 2])" in (failure.text or "")
    (printed,) = suites[HOSTILE].iter("system-out")
    assert "prints \\x1b[31m red & ]]> |" in (printed.text or "")
    (error,) = suites["undecided"].iter("error")
    assert error.attrib["message"].startswith("no claim was decided")


def test_markdown_keeps_its_table_whatever_the_names_are(run, tmp_path):
    write_markdown(tmp_path / "run.md", run, against=replace(run, reports=run.reports[1:]))
    text = (tmp_path / "run.md").read_text()
    assert "2 of 4" not in text
    assert "1 of 4 rules verified; effort standard, seed 7." in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in table}
    assert cells == {len(CLAIMS) + 3}
    assert "**FAIL**" in table[2]
    assert "<script" not in re.sub("```.*?```", "", text, flags=re.S)
    for section in ("## Changes", "## Failures", "## Undecided", "## Notes"):
        assert section in text
    assert "  x = np.float32([1, 2])  # </script><b>" in text


CHANGES = [
    ("pass", "fail", "failure", True),
    ("note", "fail", "failure", True),
    (None, "fail", "failure", True),
    ("pass", "skipped", "lost", True),
    ("pass", "note", "lost", True),
    ("pass", None, "lost", True),
    ("fail", "pass", "fixed", False),
    ("skipped", "pass", "fixed", False),
    ("fail", "skipped", "new", False),
]


def of_level(level, **more):
    return Run((Report("f", (Finding("value", level, "...", **more),) if level else ()),), ENVIRONMENT)


@pytest.mark.parametrize(("was", "now", "kind", "regression"), CHANGES)
def test_what_changed_is_told(was, now, kind, regression):
    (change,) = changes(of_level(was), of_level(now))
    assert (change.kind, change.regression, change.claim) == (kind, regression, "value")
    assert changes(of_level(was), replace(of_level(now), claims=("contract",))) == ()


@pytest.mark.parametrize("level", ["pass", "fail", "note", "skipped", None])
def test_what_did_not_change_is_not_told(level):
    assert changes(of_level(level, ratio=0.5), of_level(level, ratio=0.9)) == ()


def test_a_rule_that_is_gone_and_one_that_is_new():
    old, new = (Run((Report(name, (Finding("value", "pass", ""),)),)) for name in ("f", "g"))
    assert [(c.kind, c.name, c.regression) for c in changes(old, new)] == [("gone", "f", True), ("new", "g", False)]


def test_errors_and_bytes_that_grew():
    assert [c.kind for c in changes(of_level("pass", ratio=0.1), of_level("pass", ratio=0.3))] == ["error"]
    assert changes(of_level("pass", ratio=1e-9), of_level("pass", ratio=1e-3)) == ()
    quick = replace(of_level("pass", ratio=0.1), effort="quick")
    assert changes(quick, of_level("pass", ratio=0.3)) == ()
    less, more = (Run((Report("f", (Finding("residuals", "pass", "", data={"bytes": b}),)),)) for b in (100, 101))
    (grown,) = changes(less, more)
    assert grown.regression
    assert str(grown) == "f: residuals bytes kept grew from 100 to 101"
    assert changes(more, less) == ()


def test_names_that_occur_twice_are_kept_apart():
    report = Report("f", (Finding("contract", "pass", ""),))
    broken = Report("f", (Finding("contract", "fail", ""),))
    (change,) = changes(Run((report, report)), Run((report, broken)))
    assert (change.name, change.kind) == ("f (2)", "failure")


def test_what_plots_need_is_measured(measured):
    by_claim = {c: [f.data for f in measured.findings if f.claim == c and f.data] for c in CLAIMS}
    assert [d["dtype"] for d in by_claim["accuracy"]] == ["float32", "bfloat16", "float16"]
    float32 = {a["name"]: a for a in by_claim["accuracy"][0]["arrays"]}
    assert float32["cotangent of w"]["rule"] == pytest.approx(0.5, abs=1e-3)
    assert float32["cotangent of w"]["autodiff"] < 1e-6
    growth = by_claim["growth"][0]
    assert growth["sizes"] == [2, 64, 128]
    assert growth["rule"]["largest"] == sorted(growth["rule"]["largest"])
    assert all(len(growth[whose][part]) == 3 for whose in ("rule", "autodiff") for part in ("largest", "operations"))
    assert by_claim["residuals"][0].keys() == {"bytes", "autodiff"}


def test_the_jacobian_is_drawn_as_it_is_and_what_is_wrong_in_it(measured):
    pictures = {
        f.argument.removeprefix("cotangent of "): f.data["jacobian"] for f in measured.findings if "jacobian" in f.data
    }
    x, w = pictures["x"], pictures["w"]
    assert (x["of"], x["wrong"]) == ([6, 10], [])
    assert all(set(row[5:]) == {"."} and "." not in row[:5] for row in x["rows"][:3])
    assert w["of"] == [6, 15]
    assert [len(w["rows"]), len(w["wrong"])] == [6, 6 * 5]
    assert [i for i, entry in enumerate(w["rows"][1]) if entry != "."] == [1, 4, 7, 10, 13]


def test_of_a_large_jacobian_the_corner_is_drawn():
    picture = jacobians(CallUnderTest(jnp.cumsum, (np.ones(50, np.float32),)))["a"]
    assert picture["of"] == [50, 50]
    assert picture["rows"] == ["+" * (i + 1) + "." * (39 - i) for i in range(40)]


def test_plots_are_drawn_of_what_is_zero_and_not_finite():
    values = ((0.0, 0.0), ("inf", 1.0), (1e-8, 1e-300))
    arrays = [{"name": "y", "rule": rule, "autodiff": autodiff} for rule, autodiff in values]
    finding = Finding("accuracy", "pass", "", data={"dtype": "float32", "arrays": arrays})
    drawn = plots.accuracy([finding])
    assert drawn.count("<circle") == 4
    assert "nan" not in drawn
    assert plots.accuracy([]) == plots.overview([]) == ""


def test_remainders_are_drawn_whatever_their_sign_beside_squares():
    steps = [2.0**-k for k in range(2, 12)]
    drawn = plots.taylor({"h": steps, "remainder": [-s if k % 2 else s for k, s in enumerate(steps)]}, "<r>")
    assert drawn.count('class="ours"') == 11
    assert 2 < drawn.count('class="theirs"') < 11
    assert "&lt;r&gt;" in drawn
    assert plots.taylor({"h": steps, "remainder": [0.0] * 10}, "r") == ""


class Tags(HTMLParser):
    """Counts the elements of a page, and keeps whatever it would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.count = [], [], {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in ("meta", "link", "input", "img", "line", "circle", "rect", "path", "polyline"):
            self.open.append(tag)
        self.fetched += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]

    def handle_endtag(self, tag):
        if self.open and tag == self.open[-1]:
            self.open.pop()


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "run.html"
    old = replace(run, reports=tuple(replace(r, findings=run.reports[1].findings) for r in run.reports))
    write_html(path, run, against=old)
    return path


def test_the_page_is_whole_and_fetches_nothing(page):
    tags = Tags()
    tags.feed(page.read_text())
    assert tags.open == []
    assert tags.fetched == ["data:,"]
    assert tags.count["script"] == 1
    assert "img" not in tags.count
    assert tags.count["svg"] >= 6


def browser():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


STEPS = """
const results = [], byId = (id) => document.getElementById(id);
const names = () => groups.filter((g) => !g.hidden && g.offsetHeight > 0).length;
const order = () => Array.from(table.tBodies, (g) => g.rows[0].cells[0].textContent.trim());
const click = (selector) => document.querySelector(selector).click();
const type = (input, value) => { input.value = value; input.dispatchEvent(new Event("input", {bubbles: true})); };
results.push(order());
click("thead th[data-key=rule] button"); results.push(order());
click("thead th[data-key=rule] button"); results.push(order());
click("thead th[data-key=seconds] button"); results.push(order()[0]);
click("thead th[data-key=V2] button"); results.push(order().at(-1), names());
type(byId("text"), "holds"); results.push(names(), byId("count").textContent);
type(byId("text"), "<SCRIPT>"); results.push(names());
type(byId("text"), ""); type(byId("level"), "skipped"); results.push(names());
type(byId("level"), ""); results.push(names());
const group = groups[0], details = group.rows[1];
results.push(details.offsetHeight > 0);
group.querySelector("td button[data-claim=V2]").click();
results.push(details.offsetHeight > 0, Array.from(details.querySelectorAll("section"), (s) => s.offsetHeight > 0));
group.querySelector("th button").click();
results.push(Array.from(details.querySelectorAll("section"), (s) => !s.hidden));
group.querySelector("th button").click(); results.push(details.offsetHeight > 0);
results.push(document.scripts.length, document.querySelectorAll("b i, img").length, document.title);
results.push(performance.getEntriesByType("resource").map((entry) => entry.name));
const box = document.createElement("pre"); box.id = "results"; box.textContent = JSON.stringify(results);
document.body.append(box);
"""


def in_browser(path, *options):
    """Returns the page as it is in the end, and what the browser logged of it."""
    program = browser()
    if program is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={path.parent / 'profile'}", "--virtual-time-budget=2000", *options]
    ran = subprocess.run([*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60)
    return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


def test_a_browser_shows_sorts_and_filters_it(page, run):
    text = page.read_text()
    policy = re.sub("script-src '[^']*'", "script-src 'unsafe-inline'", text)
    tested = page.with_name("tested.html")
    tested.write_text(policy.replace("</body>", f"<script>{STEPS}</script></body>"))
    shown, console = in_browser(tested)
    assert console == []
    found = re.search('<pre id="results">(.*?)</pre>', shown)
    assert found is not None, shown[-2000:]
    results = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    names = [r.name for r in run.reports]
    assert results[0] == names
    assert results[1:3] == [sorted(names), sorted(names)[::-1]]
    assert results[3] == min(run.reports, key=lambda r: r.seconds).name
    assert results[4:6] == ["undecided", 4]
    assert results[6:8] == [1, "1 of 4 rules"]
    assert results[8:11] == [1, 2, 4]
    assert results[11:13] == [False, True]
    assert results[13] == [False, True, False, False]
    assert results[14] == [True] * 4
    assert results[15] is False
    assert results[16:18] == [2, 0]
    assert results[18] == "1 of 4 rules verified"
    assert results[19] == []


def test_a_browser_runs_the_page_s_own_script_under_its_own_policy(page):
    shown, console = in_browser(page)
    assert console == []
    assert "4 of 4 rules</output>" in shown
    assert "<title>1 of 4 rules verified</title>" in shown


def test_the_command_writes_them_all_and_exits_1_on_a_regression(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written = ("--json", "new.json", "--markdown", "new.md", "--junit", "new.xml", "--html", "new.html")
    assert main(["verify", "tanh", "--claims", "contract", "--jobs", "0", *written]) == 0
    for name in written[1::2]:
        assert "tanh" in (tmp_path / name).read_text()
    good = read("new.json")
    jsonschema.validate(good.to_dict(), schema())
    assert (good.effort, good.seed, good.claims) == ("standard", 0, ("contract",))
    capsys.readouterr()
    assert main(["verify", "tanh", "--claims", "contract", "--jobs", "0", "--against", "new.json"]) == 0
    assert "\n0 regressions and 0 other changes\n" in capsys.readouterr().out
    renamed = replace(good, reports=[replace(good.reports[0], name="cosine"), *good.reports])
    write_json("old.json", renamed)
    assert (
        main(["verify", "tanh", "--claims", "contract", "--jobs", "0", "--against", "old.json"]) == 0
    )  # not asked for
    capsys.readouterr()
    against = ["--against", "old.json", "--markdown", "new.md", "--html", "new.html"]
    assert main(["verify", "vjplib.rules.softmax", "--claims", "contract", "--jobs", "0", *against]) == 1
    out = capsys.readouterr().out
    assert "\nregression: cosine: is gone\n" in out
    assert "4 of 4 rules verified" in out
    assert "- **regression** cosine: is gone" in (tmp_path / "new.md").read_text()
    assert "Changes: 2 regressions, " in (tmp_path / "new.html").read_text()


@pytest.mark.parametrize(("content", "message"), [(None, "No such file"), ("{}", "must be an object with reports")])
def test_an_earlier_run_that_cannot_be_read_is_refused_at_once(tmp_path, capsys, content, message):
    path = tmp_path / "old.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "--against", str(path)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
