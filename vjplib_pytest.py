"""pytest plugin of vjplib: the options --vjplib-deep and --vjplib-seed, and the fixture vjplib_verify.

A module beside the package, not in it, for pytest imports its plugins whether they are used or not: importing anything
of vjplib imports JAX, which takes a second, and what a plugin imports is lost to a measure of coverage. vjplib is
imported when a test asks for it.
"""

import argparse
import sys
from collections.abc import Generator
from typing import Any

import pytest

configs: list[pytest.Config] = []
"""Those at work, the innermost last: pytest may run within a test."""


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text}")
    return int(text)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("vjplib")
    group.addoption(
        "--vjplib-deep",
        action="store_true",
        help="verify derivatives in depth: every claim at every case, and each case at 20 random sizes",
    )
    group.addoption("--vjplib-seed", type=_seed, metavar="N", help="seed of vjplib's random numbers (default 0)")


def pytest_configure(config: pytest.Config) -> None:
    """Lets `vjplib.testing` see the options."""
    if not config.pluginmanager.hasplugin("xdist"):
        config.addinivalue_line("markers", "xdist_group(name): tests of one group run in one process of pytest-xdist")
    configs.append(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Forgets the options."""
    if config in configs:
        configs.remove(config)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Tells the options, if there are any."""
    deep, seed = config.getoption("--vjplib-deep"), config.getoption("--vjplib-seed")
    told = [*(["deep"] if deep else []), *([] if seed is None else [f"seed {seed}"])]
    return f"vjplib: {', '.join(told)}" if told else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tells each proof which of its fellows will run in this process, to share their work."""
    one_of_many = hasattr(session.config, "workerinput")  # that pytest-xdist started
    for item in session.items:
        for _, proof in _proofs(item):
            grouped = "@" in item.nodeid.rpartition("]")[2]  # where it keeps groups it appends their names
            if grouped or not one_of_many:
                proof.sheet.expected.add(proof.claim)


def _proofs(item: pytest.Item) -> list[tuple[str, Any]]:
    """Returns the proofs that a test is given, by the names of its arguments; none where vjplib is not used."""
    testing = sys.modules.get("vjplib.testing")
    if testing is None:
        return []
    given = getattr(getattr(item, "callspec", None), "params", {})
    return [(name, value) for name, value in given.items() if isinstance(value, testing.Proof)]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forgets what an earlier run of the test asked; a fixture may call the proof as well as the test itself."""
    for _, proof in _proofs(item):
        proof.sheet.asked.discard(proof.claim)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Fails a test that returns without a word to its proof: it would pass whatever the rule does."""
    yield
    for name, proof in _proofs(item):
        if proof.claim not in proof.sheet.asked:
            pytest.fail(f"the test must call {name}(), and does not: nothing is verified", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Of what is not verified prints the report alone: the lines that led to it say nothing."""
    report = yield
    verification = sys.modules.get("vjplib.verification")
    if verification is not None and call.excinfo is not None and report.failed:
        told = isinstance(call.excinfo.value, verification.NotVerifiedError)
        if told and not item.config.getoption("fulltrace", False):
            shown = call.excinfo.getrepr(style="value")
            if shown.reprcrash is not None:  # what the summary says: all of it where a server runs the tests
                shown.reprcrash.message = shown.reprcrash.message.partition("\n")[0]
            report.longrepr = shown
    return report


@pytest.fixture
def vjplib_verify() -> Any:
    """A function that takes what `vjplib.verify` does, or a `vjplib.Rule`, and fails the test unless all holds.

    Seed and depth are those of the command line, unless given. It returns the report.
    """
    from vjplib.testing import verified

    return verified
