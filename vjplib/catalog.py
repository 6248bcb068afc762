"""Finds every record: in the library's own rules, or in any module that ends in RULES."""

import difflib
import importlib
import inspect
import pkgutil
from types import ModuleType

import vjplib.rules
from vjplib.rule import Rule


def rules_in(module: ModuleType) -> tuple[Rule, ...]:
    """Returns the records of a module.

    Args:
        module: a module with a tuple `RULES`.

    Raises:
        ValueError: the module has no RULES, or something in it is not a `Rule`.

    Example:
        >>> import vjplib.rules.softmax
        >>> [rule.name for rule in rules_in(vjplib.rules.softmax)]
        ['softmax', 'log_softmax']
    """
    records = getattr(module, "RULES", None)
    if not isinstance(records, tuple) or not all(isinstance(r, Rule) for r in records):
        raise ValueError(f"{module.__name__} must end in RULES, a tuple of vjplib.Rule, got {records!r}")
    return records


def rules() -> tuple[Rule, ...]:
    """Return the records of every file in `vjplib.rules` and its folders, in order of module name."""
    names = sorted(info.name for info in pkgutil.walk_packages(vjplib.rules.__path__, "vjplib.rules."))
    modules = [importlib.import_module(name) for name in names]
    return tuple(rule for module in modules if hasattr(module, "RULES") for rule in rules_in(module))


def _family(rule: Rule) -> str:
    return inspect.unwrap(rule.fn).__module__.removeprefix("vjplib.rules.").partition(".")[0]


def find(target: str) -> tuple[Rule, ...]:
    """Returns the records that a command-line target names.

    Args:
        target: the name of a rule of the library; the name of its file or folder in `vjplib/rules` for a family, such
            as `convolution`; `package.module` for all records of a module, or `package.module:name` for one.

    Raises:
        ValueError: nothing answers to the target; the message lists what does.

    Example:
        >>> [rule.name for rule in find("vjplib.rules.softmax:log_softmax")]
        ['log_softmax']
        >>> [rule.name for rule in find("pooling")]
        ['reduce_window_max', 'max_pool', 'min_pool', 'avg_pool']
    """
    path, _, name = target.rpartition(":") if ":" in target else (target, "", "")
    own = rules()
    for called in (lambda rule: rule.name, _family):
        if not name and (named := tuple(rule for rule in own if called(rule) == path)):
            return named
    try:
        known = rules_in(importlib.import_module(path))
    except ModuleNotFoundError as error:
        if error.name is None or not (path == error.name or path.startswith(f"{error.name}.")):
            raise
        names = [rule.name for rule in own]
        near = difflib.get_close_matches(path, names, 1)
        known = f"did you mean {near[0]!r}?" if near else f"the rules are {', '.join(names)}"
        raise ValueError(f"target must be a rule, or a module that can be imported, got {target!r}; {known}") from None
    if not known:
        raise ValueError(f"{path} must hold a rule, its RULES are empty")
    found = tuple(rule for rule in known if name in ("", rule.name))
    if not found:
        raise ValueError(f"{path} must hold a rule named {name!r}, has {', '.join(rule.name for rule in known)}")
    return found
