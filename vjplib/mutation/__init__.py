"""Mutation testing of the verifier: how many injected bugs it catches, and how many false alarms it raises.

Mutants are made of each rule's backward (`vjplib.mutation.mutate`), at every case of its record. The verifier's claims
examine each mutant, the cheapest first, and so do `jax.test_util.check_grads` and `chex.assert_numerical_grads`, at the
call that it was made at. A mutant that no claim kills is compared with the rule itself: it is equivalent where nothing
tells the two apart, otherwise it survived. False alarms are counted over runs of unchanged rules, each with its own
sizes, numbers, dtype and scale: of rules with a record, and of rules of a user's own that have a call as an example.
"""

from vjplib.mutation.examples import Example as Example
from vjplib.mutation.examples import examples_in as examples_in
from vjplib.mutation.false_alarms import Alarm as Alarm
from vjplib.mutation.false_alarms import Alarms as Alarms
from vjplib.mutation.false_alarms import joined as joined
from vjplib.mutation.false_alarms import run_correct as run_correct
from vjplib.mutation.other_checkers import others as others
from vjplib.mutation.results import enough as enough
from vjplib.mutation.results import survivors as survivors
from vjplib.mutation.results import tables as tables
from vjplib.mutation.results import to_dict as to_dict
from vjplib.mutation.results import without_mutants as without_mutants
from vjplib.mutation.score import MUTANTS as MUTANTS
from vjplib.mutation.score import Score as Score
from vjplib.mutation.score import score as score
