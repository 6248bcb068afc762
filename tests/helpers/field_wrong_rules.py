"""The table of wrong rules as researchers write them, by name; see `wrong_rule.WrongRule`."""

from field_wrong_calls import CALLS
from field_wrong_digits import DIGITS
from field_wrong_layers import LAYERS
from wrong_rule import WrongRule

FIELD_WRONG_RULES: dict[str, WrongRule] = CALLS | DIGITS | LAYERS
