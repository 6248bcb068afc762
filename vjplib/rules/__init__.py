"""The rules, one family to a file or folder; a file of rules ends in their records, which `vjplib.rule.find` finds.

What a rule of your own needs is here too: `as_floating` checks an argument, `like_primal` ends a backward.
"""

from vjplib.rules._arguments import as_floating as as_floating
from vjplib.rules._cotangents import aval_token as aval_token
from vjplib.rules._cotangents import like_primal as like_primal
