"""JUnit XML of a run, for the readers of continuous integration: a suite a function, a test case a claim."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from vjplib.reports.runs import Run
from vjplib.verification.causes import causes, paragraph
from vjplib.verification.registry import present
from vjplib.verification.report import Report

_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(path: str | Path, run: Run) -> None:
    """Write the run as JUnit XML.

    A claim that fails is a failure, one that could not be decided is skipped; a function of which nothing was decided
    has a test case that says so, in error.
    """
    suites = ET.Element("testsuites", name="vjplib")
    for report in run.reports:
        _suite(suites, report, run)
    for key in ("tests", "failures", "errors"):
        suites.set(key, str(sum(int(suite.get(key, 0)) for suite in suites)))
    suites.set("time", f"{sum(r.seconds for r in run.reports):.3f}")
    ET.indent(suites)
    ET.ElementTree(suites).write(path, encoding="utf-8", xml_declaration=True)


def _suite(suites: ET.Element, report: Report, run: Run) -> None:
    suite = ET.SubElement(suites, "testsuite", name=_xml(report.name), time=f"{report.seconds:.3f}")
    if date := str(run.environment.get("date", "")):
        suite.set("timestamp", date[:19])
    properties = ET.SubElement(suite, "properties")
    for key, value in {**run.environment, "effort": run.effort, "seed": run.seed}.items():
        ET.SubElement(properties, "property", name=_xml(key), value=_xml(str(value)))
    classname = _xml(f"vjplib.{report.name}")
    for claim in present([report]):
        _fill(ET.SubElement(suite, "testcase", classname=classname, name=claim), report, claim)
    if not report.ok and not report.failures:
        case = ET.SubElement(suite, "testcase", classname=classname, name="verification")
        ET.SubElement(case, "error", message="no claim was decided, so nothing is proved", type="undecided")
    for key, tag in (("tests", ""), ("failures", "/failure"), ("errors", "/error"), ("skipped", "/skipped")):
        suite.set(key, str(len(suite.findall(f"testcase{tag}"))))


def _fill(case: ET.Element, report: Report, claim: str) -> None:
    level, of_claim = report.level(claim), [f for f in report.findings if f.claim == claim]
    message = _xml(" ".join(str(next(f for f in of_claim if f.level == level)).split()))
    if level == "fail":
        failure = ET.SubElement(case, "failure", message=message, type=claim)
        failure.text = _xml("\n".join(paragraph(cause) for cause in causes(report) if claim in cause.claims))
    elif level == "skipped":
        ET.SubElement(case, "skipped", message=message)
    elif notes := [f for f in of_claim if f.level in ("doubt", "note")]:
        ET.SubElement(case, "system-out").text = _xml("\n".join(map(str, notes)))


def _xml(text: str) -> str:
    r"""Return text with characters that XML cannot hold, such as control characters, escaped.

    Example:
        >>> print(_xml("a\x1b[31m"))
        a\x1b[31m
    """
    return _NO_XML.sub(lambda match: ascii(match[0])[1:-1], text)
