"""Right rules as researchers write them, which verification must pass."""

from field_right_arguments import ARGUMENTS
from field_right_digits import DIGITS
from field_right_domains import DOMAINS
from field_right_layers import LAYERS
from field_right_physics import PHYSICS

from vjplib.mutation import Example
from vjplib.verification import CLAIMS

RIGHT = (*ARGUMENTS, *DIGITS, *LAYERS, *DOMAINS, *PHYSICS)
_LEFT_OUT = {"not linear on purpose": {"claims": tuple(name for name in CLAIMS if name != "linearity")}}

EXAMPLES = tuple(
    Example(rule.name, rule.fn, rule.args, rule.kwargs, {**rule.options, **_LEFT_OUT.get(rule.kind, {})})
    for rule in RIGHT
)
"""The same for `vjplib power`, which calls them at other sizes, with other numbers, in other dtypes."""
