"""Right rules as researchers write them, which verification must pass."""

from field_right_arguments import ARGUMENTS
from field_right_digits import DIGITS
from field_right_domains import DOMAINS
from field_right_layers import LAYERS
from field_right_physics import PHYSICS

RIGHT = (*ARGUMENTS, *DIGITS, *LAYERS, *DOMAINS, *PHYSICS)
