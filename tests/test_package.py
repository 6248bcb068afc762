"""The package as a whole: layers, imports, names, and records that live in a user's own package."""

import ast
import importlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import pytest

import vjplib
from vjplib.rule import find, rules, rules_in
from vjplib.verification import verify_rule
from vjplib.verification.registry import discover

ROOT = Path(vjplib.__file__).parent
# From the bottom up: a module may import those before it, and those of its own line.
LAYERS = (
    ("compat",),
    ("memory",),
    ("precision",),
    ("jacobians",),
    ("rule",),
    ("rules", "verification"),
    ("debug", "reports", "auditing"),
    ("mutation", "testing"),
    ("bench",),
    ("training",),
    ("lecture",),
    ("commands",),
    ("__main__",),
)
STRANGERS = (("rules",), "verification"), (("verification",), "rules"), (("bench", "rules"), "rules")
SHOWING = (
    "reports",
    "commands",
    "mutation",
    "auditing",
    "training",
    "lecture",
    ("bench", "tables"),
)  # which may import rich


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        yield path, path.relative_to(ROOT).with_suffix("").parts


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ([f"vjplib.{alias.name}" for alias in node.names] if node.module == "vjplib" else [node.module])
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_down():
    height = {name: i for i, layer in enumerate(LAYERS) for name in layer}
    for path, parts in modules():
        for name in imports(path):
            below = name.split(".")[1] if name.startswith("vjplib.") else ""
            if not below or name == "vjplib.__version__":
                continue
            assert height[below] <= height[parts[0]], f"{path} imports {name}, which stands above it"
            for stranger, room in STRANGERS:
                assert parts[: len(stranger)] != stranger or below != room, f"{path} must see records only, not {name}"


def test_no_module_imports_the_whole_package():
    for path, _ in modules():
        assert "vjplib" not in imports(path), path


def test_the_map_of_the_package_shows_every_room():
    rooms = {parts[0] for _, parts in modules()} - {"__init__", "__main__"}
    named = re.findall(r"^    (\w+) ", vjplib.__doc__ or "", re.M)
    assert sorted(named) == sorted(rooms)
    assert [name for layer in LAYERS for name in layer if name in named] == named
    loose = [parts for _, parts in modules() if len(parts) == 1]
    assert len(loose) <= 7


def test_rich_is_imported_where_things_are_shown():
    for path, parts in modules():
        if any(name.partition(".")[0] == "rich" for name in imports(path)):
            assert parts[0] in SHOWING or parts[:2] in SHOWING, path


def test_no_two_public_classes_have_one_name():
    seen = {}
    for path, _ in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert node.name not in seen, f"{path} and {seen[node.name]} both define {node.name}"
                seen[node.name] = path


def test_a_layer_needs_no_verifier():
    program = """
        import sys
        import vjplib
        vjplib.relu
        loaded = {name for name in sys.modules if name.startswith(("vjplib.verification", "vjplib.auditing", "rich"))}
        assert not loaded, loaded
        assert vjplib.verify and "vjplib.verification" in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_each_claim_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "my_claims").mkdir()
    (tmp_path / "my_claims" / "__init__.py").touch()
    (tmp_path / "my_claims" / "finite.py").write_text(textwrap.dedent(CLAIM), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    (claim,) = discover(importlib.import_module("my_claims"))
    right = vjplib.verify(vjplib.tanh, (0.5,), claims=(claim,))
    assert [(f.claim, f.level) for f in right.findings] == [("finite", "pass")]
    wrong = vjplib.verify(jnp.log, (0.0,), claims=("contract", claim))
    assert [f.claim for f in wrong.failures] == ["finite"]
    assert "log: finite fails" in str(wrong)


CLAIM = '''
    """Finite: the outputs of the call are finite."""

    import numpy as np

    from vjplib.verification import Claim
    from vjplib.verification.report import finding


    def check(call):
        for y in call.call(*call.leaves()):
            yield finding("pass" if np.isfinite(y).all() else "fail", "wrong_value", "the output is finite")


    CLAIM = Claim("finite", check, quick=check)
'''


def test_every_module_says_what_it_is():
    for path, _ in modules():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_moving_imports_are_in_one_package():
    for path, parts in modules():
        text = path.read_text(encoding="utf-8")
        if parts[0] != "compat":
            assert "jax._src" not in text, path
            assert "jax.experimental" not in text, path
            assert "jax.extend" not in text, path


def test_importing_starts_no_backend_and_makes_no_array():
    names = sorted({".".join(("vjplib", *(p for p in parts if p != "__init__"))) for _, parts in modules()})
    names.remove("vjplib.__main__")
    program = f"""
        import importlib
        for name in {names!r}:
            importlib.import_module(name)
        import jax
        from jax._src import xla_bridge
        assert not xla_bridge._backends, "a backend was started"
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(program)], check=True)


def test_public_functions_document_what_the_style_asks():
    for rule in rules():
        documentation = rule.fn.__doc__ or ""
        for section in ("Args:", "Returns:", "Raises:", "Example:", "Source:"):
            assert section in documentation, f"{rule.name} lacks {section}"
    for name in ("verify", "assert_verified", "verify_rule"):
        assert "Example:" in (getattr(vjplib, name).__doc__ or ""), name


def test_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert version("vjplib") == vjplib.__version__


USER_RULE = '''
"""A rule of the user's own."""

import jax
import jax.numpy as jnp

from vjplib import Case, Edge, Rule


@jax.custom_vjp
def {name}(x):
    """log(1 + exp(x)); its derivative is the sigmoid."""
    return fwd(x)[0]


def reference(x):
    return jnp.log1p(jnp.exp(-jnp.abs(x))) + jnp.maximum(x, 0)


def fwd(x):
    return jnp.logaddexp(x, 0.0), x


# d/dx log(1 + e^x) = 1 / (1 + e^-x)
def bwd(x, g):
    return ({factor} * g * jax.nn.sigmoid(x),)


{name}.defvjp(fwd, bwd)

RULES = (
    Rule(
        fn={name},
        reference=reference,
        baselines={{"jax.nn.softplus": jax.nn.softplus}},
        cases=(Case(("b n",), {{"b": 2, "n": 7}}),),
        edges=(Edge("large", ([1e4, -1e4],)),),
        reason="a user's",
        source="calculus",
    ),
)
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "userlib"
    folder.mkdir()
    (folder / "__init__.py").write_text("", encoding="utf-8")
    (folder / "right.py").write_text(USER_RULE.format(name="softplus", factor="1"), encoding="utf-8")
    (folder / "wrong.py").write_text(USER_RULE.format(name="softminus", factor="1.001"), encoding="utf-8")
    (folder / "empty.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield "userlib"
    for name in [m for m in sys.modules if m.split(".")[0] == "userlib"]:
        del sys.modules[name]


def test_a_users_rule_is_verified_like_ours(package):
    (right,) = find(f"{package}.right")
    assert verify_rule(right, effort="quick").ok
    (wrong,) = find(f"{package}.wrong:softminus")
    report = verify_rule(wrong, effort="quick")
    assert {f.claim for f in report.failures} >= {"value"}


def test_targets_that_name_nothing_say_what_there_is(package):
    with pytest.raises(ValueError, match=r"a module that can be imported, got 'sofmax'; did you mean 'softmax'"):
        find("sofmax")
    with pytest.raises(ValueError, match="must hold a rule named 'other', has softplus"):
        find(f"{package}.right:other")
    with pytest.raises(ValueError, match=r"userlib\.empty must end in RULES"):
        find(f"{package}.empty")


def test_records_are_found_without_a_list():
    import vjplib.rules.linear

    (linear,) = rules_in(vjplib.rules.linear)
    assert any(rule is linear for rule in rules())
    assert len({rule.name for rule in rules()}) == len(rules())


SHOWS_MESSAGES = ("reports", "commands", "verification/report.py", "verification/causes.py", "verification/text.py")


def test_nothing_decides_by_reading_a_message():
    """A message may be passed on; to compare, match, cut or search it is for what shows findings."""
    for path, parts in modules():
        place = "/".join(parts) + ".py"
        if not place.startswith(SHOWS_MESSAGES):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert not [ast.unparse(node) for node in ast.walk(tree) if reads_message(node)], path


def reads_message(node):
    read = []
    if isinstance(node, ast.Compare):
        read = [node.left, *node.comparators]
    elif isinstance(node, ast.Subscript):
        read = [node.value]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        read = [
            node.func.value,
            *(node.args if isinstance(node.func.value, ast.Name) and node.func.value.id == "re" else []),
        ]
    elif isinstance(node, (ast.If, ast.IfExp, ast.While)):
        read = [node.test]
    elif isinstance(node, ast.Match):
        read = [node.subject]
    return any(isinstance(part, ast.Attribute) and part.attr == "message" for part in read)


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("'kink' in f.message", True),
        ("f.message == ''", True),
        ("f.message.startswith('undecided')", True),
        ("f.message[:3]", True),
        ("re.match('x', f.message)", True),
        ("1 if f.message else 2", True),
        ("'note', f.message", False),
        ("f'{reason}; {f.message}'", False),
        ("f.code == 'kink'", False),
    ],
)
def test_what_reads_a_message_is_seen(source, reads):
    assert any(map(reads_message, ast.walk(ast.parse(source)))) is reads
