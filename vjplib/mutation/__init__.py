"""power: how many faults the verifier sees, and how often it sees one that is not there, beside other checks.

Of each rule, mutants are made of its backward (`vjplib.mutation.mutate`), at every case of its record. Each is put
to the verifier's claims, the cheapest first, and to `jax.test_util.check_grads` and `chex.assert_numerical_grads` at
the arguments that it was made at. One that no claim kills is compared with the rule itself: where nothing tells the two
apart the mutant is equivalent, otherwise it survived. False alarms are counted over runs of the rules as they are, each
with sizes, numbers, a dtype and a scale of its own.
"""

from vjplib.mutation.false_alarms import Alarm as Alarm
from vjplib.mutation.false_alarms import Alarms as Alarms
from vjplib.mutation.false_alarms import run_correct as run_correct
from vjplib.mutation.other_checkers import others as others
from vjplib.mutation.processes import gathered as gathered
from vjplib.mutation.processes import spread as spread
from vjplib.mutation.processes import tasks_of as tasks_of
from vjplib.mutation.results import enough as enough
from vjplib.mutation.results import shares as shares
from vjplib.mutation.results import survivors as survivors
from vjplib.mutation.results import tables as tables
from vjplib.mutation.results import to_dict as to_dict
from vjplib.mutation.results import without_mutants as without_mutants
from vjplib.mutation.score import Outcome as Outcome
from vjplib.mutation.score import Score as Score
from vjplib.mutation.score import score as score
