"""power: how many faults the verifier sees, and how often it sees one that is not there, beside other checks.

Of each rule, mutants are made of its backward (`vjplib.verification.mutants`), at every case of its record. Each is put
to the verifier's claims, the cheapest first, and to `jax.test_util.check_grads` and `chex.assert_numerical_grads` at
the arguments that it was made at. One that no claim kills is compared with the rule itself: where nothing tells the two
apart the mutant is equivalent, otherwise it survived. False alarms are counted over runs of the rules as they are, each
with sizes, numbers, a dtype and a scale of its own.
"""

from vjplib.power.correct import Alarm as Alarm
from vjplib.power.correct import Alarms as Alarms
from vjplib.power.correct import run_correct as run_correct
from vjplib.power.other_checks import others as others
from vjplib.power.processes import gathered as gathered
from vjplib.power.processes import spread as spread
from vjplib.power.processes import tasks_of as tasks_of
from vjplib.power.results import enough as enough
from vjplib.power.results import shares as shares
from vjplib.power.results import survivors as survivors
from vjplib.power.results import tables as tables
from vjplib.power.results import to_dict as to_dict
from vjplib.power.results import without_mutants as without_mutants
from vjplib.power.scoring import Outcome as Outcome
from vjplib.power.scoring import Score as Score
from vjplib.power.scoring import score as score
