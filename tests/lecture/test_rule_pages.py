"""Pages: all of a rule's page comes from its record and file, in the library and in a user's own package."""

import importlib
import textwrap

import pytest

from vjplib import Case, Rule
from vjplib.lecture import rule_pages
from vjplib.rule import find, rules

RULES = rules()
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)

DOUBLING = '''
"""A rule in a user's own package."""

import math

import jax
import jax.numpy as jnp

from vjplib.rule import Case, Edge, Input, Rule, random_mask


@jax.custom_vjp
def twice(x, where=None):
    """2 x <y> *z*; its derivative is 2.

    A paragraph with `code_of_*stars*` and (a)_b, and y_i beside it.

    Args:
        x: any shape,
            floating.
        where: a mask.

    Example:
        >>> twice(jnp.array(math.floor(1.5))).item()
        2
    """
    return fwd(x, where)[0]


def reference(x, where=None):
    return x + x


def fwd(x, where):
    return 2 * x, None


# dy/dx = 2, so
#   g^T J = 2 * g,
#     whatever x is.
# Nothing is kept.
def bwd(res, g):
    return 2 * g, None


twice.defvjp(fwd, bwd)


def sine(x):
    return jnp.sin(x)


RULES = (
    Rule(
        fn=twice,
        reference=reference,
        baselines={"jnp.multiply": lambda x, where=None: 2 * x},
        cases=(Case(("b n",), {"b": 2, "n": 3}, {"where": Input("b n", random_mask)}), Case(("",), {})),
        edges=(Edge("a | pipe", ([1.0, float("inf")],)), Edge("empty", (jnp.zeros((0, 2)),))),
        residual_bytes=lambda b, n: max(b, n) - n,
        reason="it is short",
        source="Nowhere",
        order_two=False,
    ),
    Rule(fn=sine, reference=jnp.sin, baselines={}, cases=(Case(("n",), {"n": 3}),)),
)
'''


@pytest.fixture(scope="module")
def users(tmp_path_factory):
    directory = tmp_path_factory.mktemp("site")
    package = directory / "vjplib_user_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "doubling.py").write_text(DOUBLING.lstrip())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        importlib.invalidate_caches()
        yield find("vjplib_user_package.doubling")


@each_rule
def test_a_page_has_every_part(rule):
    text = rule_pages.page(rule)
    for part in (f"# {rule.name}\n", f"def {rule.name}(", "## Args", "## Returns", "## Raises", "## Example"):
        assert part in text
    for part in (
        "## Derivation",
        "g^T J",
        "def bwd",
        "## Reference",
        "## What is verified",
        "## Source",
    ):
        assert part in text
    assert ("## Jacobian" in text) == (rule.jacobian is not None)
    assert "At these calls; with `--deep`, at random sizes too:" in text
    assert rule.reason in text
    assert all(edge.name in text for edge in rule.edges)
    assert all(f"`{name}`" in text for name in rule.baselines)
    assert f"vjplib verify {rule.fn.__module__}:{rule.name}\n" in text


@each_rule
def test_the_command_on_a_page_finds_the_rule(rule):
    (line,) = (line for line in rule_pages.page(rule).splitlines() if line.startswith("vjplib verify "))
    assert find(line.split()[-1]) == (rule,)


def test_the_rule_behind_a_thin_function_is_the_one_derived():
    (rule,) = find("softmax_cross_entropy_with_integer_labels")
    assert "def bwd_integer_cross_entropy(res, g):" in rule_pages.page(rule)


def test_residuals_are_a_formula_of_the_sizes():
    (rule,) = find("linear")
    assert "first call: `4*m*n + 4*c*n` bytes, here 100." in rule_pages.page(rule)


@pytest.mark.parametrize(
    "part",
    [
        r"# twice\n\n2 x \<y> \*z\*; its derivative is 2.\n\n```python\ndef twice(x, where=None)\n```\n",
        r"\n\nA paragraph with `code_of_*stars*` and (a)\_b, and y_i beside it.\n\n",
        r"\n\n**Why it exists:** it is short.\n\n## Args\n\n- `x`: any shape,\n  floating.\n- `where`: a mask.\n\n",
        r">>> import jax.numpy as jnp\n>>> import math\n>>> from vjplib_user_package.doubling import twice\n>>> twice",
        r".item()\n2\n\n```\n\n## Derivation\n\ndy/dx = 2, so\n\n```text\ng^T J = 2 * g,\n  whatever x is.\n```\n\n",
        r"```python\ndef bwd(res, g):\n    return 2 * g, None\n```\n\n## Reference",
        r"```python\ndef reference(x, where=None):\n    return x + x\n```\n\n## What is verified\n\n```sh\n",
        r"\nvjplib verify vjplib_user_package.doubling:twice\n",
        r"\n| `x` (b, n) | b = 2, n = 3 | `where` (b, n) |\n| `x` () |  |  |\n",
        r"\n| a \| pipe | `twice([1.0, inf])` |\n| empty | `twice(empty (0, 2))` |\n",
        r"first call: 0 bytes.\n\nSecond derivatives are refused, which is verified too.\n\nCompared",
        r"derivative of `jnp.multiply`.\n\n## Source\n\nNowhere.\n",
    ],
)
def test_a_user_s_rule_has_its_page(users, part):
    assert part.replace(r"\n", "\n") in rule_pages.page(users[0])


def test_a_function_of_a_library_is_named_and_not_quoted(users):
    text = rule_pages.page(users[1])
    assert text.startswith("# sine\n\n```python\ndef sine(x)\n```\n\n## Reference\n\n")
    assert "```python\njax.numpy.sin\n```" in text
    assert "## Derivation" not in text


def test_pages_are_written_with_an_index(users, tmp_path, capsys):
    rule_pages.main([str(tmp_path / "new"), "vjplib_user_package.doubling"])
    written = {path.name: path.read_text() for path in (tmp_path / "new").iterdir()}
    assert written == rule_pages.pages(users)
    assert set(written) == {"twice.md", "sine.md", "index.md"}
    assert r"| [twice](twice.md) | 2 x \<y> \*z\*; its derivative is 2. | it is short |" in written["index.md"]
    assert (
        textwrap.dedent("""
        ```{toctree}
        :hidden:

        twice
        sine
        ```
    """).strip()
        in written["index.md"]
    )
    assert "twice.md" in capsys.readouterr().out


def test_without_targets_the_pages_are_the_library_s(tmp_path):
    assert {path.stem for path in rule_pages.write_pages(tmp_path)} == {rule.name for rule in RULES} | {"index"}


def test_a_function_without_source_is_refused():
    scope = {}
    exec("def f(x): return x", scope)
    rule = Rule(fn=scope["f"], reference=scope["f"], baselines={}, cases=(Case(("n",), {"n": 3}),))
    with pytest.raises(OSError, match="could not get source code"):
        rule_pages.page(rule)


def test_two_rules_of_one_name_are_refused(users):
    with pytest.raises(ValueError, match="distinct names, got twice twice"):
        rule_pages.pages((users[0], users[0]))
