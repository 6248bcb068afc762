"""power: how many faults the verifier sees, and how often it sees one that is not there, beside other checks.

Of each rule, mutants are made of its backward (`vjplib.verification.mutants`), at every case of its record. Each is put
to the verifier's claims, the cheapest first, and to `jax.test_util.check_grads` and `chex.assert_numerical_grads` at
the arguments that it was made at. One that no claim kills is compared with the rule itself: where nothing tells the two
apart the mutant is equivalent, otherwise it survived. False alarms are counted over runs of the rules as they are, each
with sizes, numbers, a dtype and a scale of its own.
"""

import itertools
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
from rich import box
from rich.table import Table

from vjplib.catalog import find, rules
from vjplib.compat import x64
from vjplib.rule import Edge, Rule
from vjplib.verification import accuracy, contract, edges, linearity, order_two, transforms, value
from vjplib.verification.faults import Mutation
from vjplib.verification.measure import size_of
from vjplib.verification.mutants import Mutant, mutate, mutations
from vjplib.verification.report import Finding, said
from vjplib.verification.run import at_case
from vjplib.verification.subject import Leaves, Subject

MUTANTS = 20
ENOUGH = 0.99
"""The least share of mutants that change the function which are to be killed."""
TRIES = 4
"""How many candidates are looked at for each mutant wanted."""
OTHER_SIZES = 3
TOGETHER = 10  # runs to a task
DTYPES = ("float32", "bfloat16", "float16", "float64")
SCALES = (1e-3, 30.0)

Check = Callable[[Subject], Iterator[Finding]]


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant.

    Args:
        mutation: the fault, in words, with its file and line.
        operator: what is done wrong.
        case: the call that it was made at.
        verdict: "killed", "equivalent" or "survived".
        claim: the claim that killed it, empty for none.
        first_order: whether the first derivatives, at that call, differ from the rule's.
        check_grads: whether check_grads raises.
        chex: whether assert_numerical_grads raises; None where chex is not installed.
    """

    mutation: str
    operator: str
    case: str
    verdict: str
    claim: str
    first_order: bool
    check_grads: bool
    chex: bool | None


@dataclass(frozen=True)
class Score:
    """The mutants of one rule.

    Args:
        name: the rule's.
        outcomes: one for each mutant.
        seconds: how long it took.
    """

    name: str
    outcomes: tuple[Outcome, ...]
    seconds: float

    def count(self, verdict: str) -> int:
        """Returns how many mutants came to a verdict."""
        return sum(o.verdict == verdict for o in self.outcomes)


class Alarm(NamedTuple):
    """A correct rule said to be wrong: by whom, at which run, and what was said."""

    by: str
    rule: str
    run: int
    call: str
    message: str


@dataclass(frozen=True)
class Alarms:
    """What correct rules met with.

    Args:
        runs: how many there were.
        asked: of each check, how many runs it took part in.
        alarms: each false alarm.
    """

    runs: int
    asked: Mapping[str, int]
    alarms: tuple[Alarm, ...]

    def of(self, by: str) -> int:
        """Returns how many runs a check raised an alarm at."""
        return len({alarm.run for alarm in self.alarms if alarm.by == by})


# -------------------------------------------------------------------------------------------------------------- mutants


class _Target:
    """A rule with its cases, for all its mutants."""

    def __init__(self, rule: Rule, seed: int) -> None:
        self.rule, self.seed = rule, seed
        self.cases = [replace(at_case(rule, case, seed), hurried=True) for case in rule.cases]

    @cached_property
    def candidates(self) -> list[tuple[int, Mutation]]:
        """Mutations in the order to try them in: each operator in turn, at the cases in turn."""
        rng = np.random.default_rng((self.seed, 6))
        by_operator: dict[str, list[tuple[int, Mutation]]] = {}
        seen = set()
        for i, case in enumerate(self.cases):
            for mutation in mutations(case):
                if mutation not in seen:
                    seen.add(mutation)
                    by_operator.setdefault(mutation.operator, []).append((i, mutation))
        piles = [[pile[k] for k in rng.permutation(len(pile))] for pile in by_operator.values()]
        turns = itertools.zip_longest(*[piles[k] for k in rng.permutation(len(piles))])
        return [candidate for turn in turns for candidate in turn if candidate is not None]

    @cached_property
    def elsewhere(self) -> list[Subject]:
        """The cases at other sizes."""
        found = []
        for i, case in enumerate(self.rule.cases):
            rng = np.random.default_rng((self.seed, 7, i))
            drawn = [case.sizes(rng) for _ in range(OTHER_SIZES)]
            found += [replace(at_case(self.rule, case, self.seed, **sizes), hurried=True) for sizes in drawn]
        return found


def score(rule: Rule, count: int = MUTANTS, seed: int = 0) -> Score:
    """Returns what becomes of a rule's mutants.

    Mutants with the first derivatives of one before are left out, so that the count is not of one fault in many forms;
    those with the rule's own are not.

    Args:
        rule: the record.
        count: how many mutants that are not equivalent to the rule, if there are so many.
        seed: of all random numbers.

    Example:
        >>> from vjplib.catalog import find
        >>> of_tanh = score(find("tanh")[0], count=3)
        >>> of_tanh.count("killed"), of_tanh.count("survived")
        (3, 0)
    """
    start = time.perf_counter()
    target = _Target(rule, seed)
    outcomes: list[Outcome] = []
    signatures: set[bytes] = set()
    for i, mutation in target.candidates[: TRIES * count]:
        if sum(o.verdict != "equivalent" for o in outcomes) >= count:
            break
        outcome = _outcome(target, i, mutation, signatures)
        if outcome is not None:
            outcomes.append(outcome)
    return Score(rule.name, tuple(outcomes), time.perf_counter() - start)


def _outcome(target: _Target, i: int, mutation: Mutation, signatures: set[bytes]) -> Outcome | None:
    """Returns what becomes of a mutant, None where it is one of those before."""
    base = target.cases[i]
    subject = mutate(base, mutation)
    own, theirs = _signature(base), _signature(subject)
    first_order = own is None or theirs is None or own != theirs
    if first_order and theirs is not None:
        if theirs in signatures:
            return None
        signatures.add(theirs)
    claim = _killer(target, i, subject)
    verdict = "killed" if claim else "equivalent" if _equivalent(target, mutation) else "survived"
    grads, chex = _by_others(subject) if verdict != "equivalent" else (False, None)
    return Outcome(str(mutation), mutation.operator, base.case, verdict, claim, first_order, grads, chex)


def _signature(subject: Subject) -> bytes | None:
    """Returns the cotangents of a call in float64, rounded to nine digits; None where it cannot be run."""
    kept = subject.__dict__
    if "_signature" not in kept:
        try:
            with x64():
                leaves = subject.leaves(np.float64)
                dxs = [np.asarray(dx) for dx in subject.answers(leaves, subject.cotangents(leaves)).dxs]
        except Exception:  # the mutant raises: no two are alike then
            return None
        with np.errstate(invalid="ignore", over="ignore"):
            digits = [np.round(dx / max(size_of(dx), 1e-300), 9) + 0.0 for dx in dxs]
        kept["_signature"] = b"|".join(
            d.tobytes() + repr(round(float(np.log(size_of(dx) + 1e-300)), 9)).encode()
            for d, dx in zip(digits, dxs, strict=True)
        )
    return kept["_signature"]


def _killer(target: _Target, i: int, subject: Mutant) -> str:
    """Returns the first claim that fails of a mutant, of all that standard verification examines; empty for none."""
    for claim, check, at in _examinations(target, i, subject):
        try:
            failed = any(f.level == "fail" for f in check(at))
        except Exception:  # what a rule raises is a failure of the claim
            failed = True
        if failed:
            return claim
    return ""


def _examinations(target: _Target, i: int, subject: Mutant) -> Iterator[tuple[str, Check, Subject]]:
    """Yields claims with their checks and subjects, from the cheapest on."""
    assert subject.mutation is not None
    others = [mutate(base, subject.mutation) for k, base in enumerate(target.cases) if k != i]
    yield "V2", value.in_float64, subject
    yield "V3", linearity.check, subject
    yield "V5", order_two.check, subject
    yield "V1", contract.check, subject
    yield from (("V2", value.in_float64, other) for other in others)
    yield from (("V5", order_two.check, other) for other in others)
    yield from (("V2", value.in_float64, mutate(base, subject.mutation)) for base in target.elsewhere)
    main = subject if i == 0 else mutate(target.cases[0], subject.mutation)
    yield "V10", lambda s: edges.check_named(s, target.rule.edges), main
    yield "V10", edges.check, subject
    yield "V2", value.check, subject
    yield "V11", accuracy.check, subject
    yield "V4", partial(transforms.check, eager=False), subject


def _equivalent(target: _Target, mutation: Mutation) -> bool:
    """Returns whether nothing tells a mutant from the rule: not the oracle is asked, but the rule's own pullback.

    They are compared at all cases, there with masks negated, at other sizes and at the record's edges; with three
    scales of inputs, with zeros, ties, and cotangents with zeros and infinities; in float64 to twelve digits, in
    float32 and half precision to a few units in the last place, NaN and infinities at the same places; and so are their
    second derivatives.
    """
    named = [target.cases[0].at(_arrays(e), e.kwargs, e.name) for e in target.rule.edges]
    contrary = [_contrary(base) for base in target.cases]
    places = [(base, DTYPES, True) for base in target.cases]
    places += [(base, ("float64", "float32"), False) for base in contrary]
    places += [(base, ("float64",), False) for base in target.elsewhere]
    places += [(base, ("float64", "float32"), False) for base in named]
    for base, dtypes, scaled in places:
        for dtype in dtypes:
            with x64() if dtype == "float64" else nullcontext():
                if not _same(base, mutation, jnp.dtype(dtype), scaled):
                    return False
    return True


def _contrary(base: Subject) -> Subject:
    """Returns a subject with each mask negated."""
    given = (base.args, dict(base.kwargs))
    args, kwargs = jax.tree.map(lambda a: ~np.asarray(a) if getattr(a, "dtype", None) == np.bool_ else a, given)
    return base.at(args, kwargs, f"{base.case}, contrary")


def _arrays(edge: Edge) -> tuple[Any, ...]:
    return tuple(None if a is None else np.asarray(a) for a in edge.args)


def _same(base: Subject, mutation: Mutation, dtype: Any, scaled: bool) -> bool:
    leaves = base.leaves(dtype)
    gs = base.cotangents(leaves)
    points = [(leaves, gs)]
    if scaled:
        points += [(base.leaves(dtype, scale), base.cotangents(leaves, k)) for k, scale in enumerate(SCALES)]
        points += [(tuple(f(a) for a in leaves), gs) for f in (np.zeros_like, np.ones_like)]
        sparse = (np.where(np.arange(g.size).reshape(g.shape) % 2, g, np.zeros_like(g)) for g in gs)
        points.append((leaves, tuple(sparse)))
        masked = (np.where(np.arange(g.size).reshape(g.shape) % 3, g, np.full_like(g, np.inf)) for g in gs)
        points.append((leaves, tuple(masked)))

    def answers(subject: Subject) -> list[np.ndarray] | None:
        program = subject.compiled(_orders(subject, two=base.order_two and dtype == np.float64))
        try:
            every = [jax.tree.leaves(program(*point)) for point in points]
        except Exception:  # an edge, or a dtype, that the function refuses
            return None
        return [np.asarray(a).astype(np.float64) for part in every for a in part]

    kept = base.__dict__.setdefault("_expected", {})
    if (dtype, scaled) not in kept:
        kept[dtype, scaled] = answers(base)
    expected, found = kept[dtype, scaled], answers(mutate(base, mutation))
    if expected is None or found is None:
        return expected is found
    tolerance = 1e-12 if dtype == np.float64 else 4 * float(jnp.finfo(dtype).eps)
    count = len(expected) // len(points)  # arrays to a point
    sizes = [max(size_of(b) for b in expected[k::count]) for k in range(count)]
    pairs = zip(found, expected, itertools.cycle(sizes), strict=False)
    return all(_close(a, b, tolerance * size) for a, b, size in pairs)


def _orders(subject: Subject, two: bool) -> Callable[[Leaves, Leaves], Any]:
    """Returns the pullback of a subject, and the pullback of its cotangents too if two orders are asked for."""
    pull = subject.pull(subject.call)

    def run(leaves: Leaves, gs: Leaves) -> Any:
        if not two:
            return pull(leaves, gs)
        (ys, dxs), back = jax.vjp(pull, leaves, gs)
        return ys, dxs, back((tuple(map(jnp.zeros_like, ys)), tuple(map(_direction, leaves))))

    return run


def _direction(x: Any) -> Any:
    return jnp.where(jnp.isfinite(x), jnp.cos(x), 1)


def _close(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    with np.errstate(invalid="ignore"):
        alike = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= tolerance)
    return a.shape == b.shape and bool(np.all(alike))


# --------------------------------------------------------------------------------------------------------------- others


def _by_others(subject: Subject) -> tuple[bool, bool | None]:
    """Returns whether check_grads, and chex's check, raise at a subject's call; None for chex that is not installed."""
    leaves = subject.leaves(np.float32)
    return _raises(_check_grads, subject.call, leaves), None if _chex() is None else _raises(
        _chex_grads, subject.call, leaves
    )


def _check_grads(f: Callable[..., Any], leaves: Leaves) -> None:
    jax.test_util.check_grads(f, leaves, order=1, modes=("rev",))


def _chex() -> Any:
    if find_spec("chex") is None:
        return None
    import chex

    return chex


def _chex_grads(f: Callable[..., Any], leaves: Leaves) -> None:
    _chex().assert_numerical_grads(f, leaves, order=1, modes=("rev",))


def _raises(check: Callable[..., None], f: Callable[..., Any], leaves: Leaves) -> bool:
    return bool(_said_by(check, f, leaves))


def _said_by(check: Callable[..., None], f: Callable[..., Any], leaves: Leaves) -> str:
    with np.errstate(all="ignore"):
        try:
            check(f, leaves)
        except Exception as error:  # an AssertionError, or whatever the function raises
            return said(error)
    return ""


# --------------------------------------------------------------------------------------------------------- false alarms


def run_correct(rule: Rule, runs: Sequence[int], seed: int) -> list[Alarm]:
    """Returns the alarms raised at runs of a rule as it is, by the verifier, check_grads and chex.

    The runs are at one case and random sizes of it, masks and indices the same; each has a dtype, a scale and floating
    numbers of its own. The value is examined at each run, in its dtype and in float64; the contract and by turns one
    claim more at the first run. To check_grads and chex the function is given jitted.

    Args:
        rule: the record.
        runs: the numbers of the runs.
        seed: of all random numbers.
    """
    rng = np.random.default_rng((seed, *runs[:1]))
    case = rule.cases[int(rng.integers(len(rule.cases)))]
    sizes = case.sizes(rng)
    base = replace(at_case(rule, case, int(rng.integers(2**31)), **sizes), hurried=True)
    jitted = jax.jit(base.call)
    alarms = []
    for k, run in enumerate(runs):
        dtype = DTYPES[int(rng.integers(len(DTYPES)))]
        scale = float(10 ** rng.uniform(*np.log10(SCALES)))
        drawn = case.call(np.random.default_rng((seed, run)), jnp.dtype(dtype), scale, **sizes).args
        args = tuple(b if a is None or b.dtype != np.float32 else a for a, b in zip(drawn, base.args, strict=True))
        subject = replace(base, args=args, seed=run)
        subject.__dict__["answers"] = base.answers  # compiled once: only the floating numbers differ
        alarm = partial(Alarm, rule=rule.name, run=run, call=f"{base.case}, {dtype}, inputs times {scale:.3g}")
        with x64() if dtype == "float64" else nullcontext():
            checks = [*_of_value(dtype), *((contract.check, _in_turn(run)) if k == 0 else ())]
            alarms += [alarm("vjplib", message=str(f)) for check in checks for f in _failures(check, subject)]
            leaves = subject.leaves(jnp.dtype(dtype))
            others = {"check_grads": _check_grads} | ({"chex": _chex_grads} if _chex() else {})
            said = {by: _said_by(check, jitted, leaves) for by, check in others.items()}
            alarms += [alarm(by, message=message) for by, message in said.items() if message]
    return alarms


def _of_value(dtype: str) -> list[Check]:
    if dtype == "float32":
        return [partial(value.check, scales=(1.0,))]
    if dtype == "float64":
        return [value.in_float64]
    return [lambda s: accuracy.check(s, (dtype,)), value.in_float64]


def _in_turn(run: int) -> Check:
    turns = (linearity.check, order_two.check, partial(transforms.check, eager=False), edges.check)
    return turns[np.random.default_rng(run).integers(len(turns))]


def _failures(check: Check, subject: Subject) -> list[Finding]:
    try:
        return [f for f in check(subject) if f.level == "fail"]
    except Exception as error:  # no correct rule may raise
        return [Finding("V1", "fail", f"raises {said(error)}", case=subject.case)]


# ------------------------------------------------------------------------------------------------------------ processes


class Task(NamedTuple):
    """Work for a process: a record, by the target that names it and its number, and runs of it; None for mutants."""

    target: str | None
    number: int
    mutants: int
    seed: int
    runs: tuple[int, ...] | None = None


def done(task: Task) -> Score | tuple[str, int, list[Alarm]]:
    """Returns a task's score, or the rule's name, the number of its runs and the alarms raised at them."""
    rule = (rules() if task.target is None else find(task.target))[task.number]
    try:
        if task.runs is None:
            return score(rule, task.mutants, task.seed)
        return rule.name, len(task.runs), run_correct(rule, task.runs, task.seed)
    finally:
        jax.clear_caches()  # what comes next has other shapes


def tasks_of(targets: Sequence[tuple[str | None, int]], count: int, runs: int, seed: int) -> list[Task]:
    """Returns the mutants of each record as a task, then runs of the records in turn, some of one record to a task.

    Args:
        targets: what names each record, None for the library, and its number among those named.
        count: of mutants a record.
        runs: of correct rules, in all.
        seed: of all random numbers.
    """
    tasks = [Task(target, number, count, seed) for target, number in targets]
    for i, (target, number) in enumerate(targets):
        mine = range(i, runs, len(targets))
        tasks += [Task(target, number, 0, seed, tuple(mine[k : k + TOGETHER])) for k in range(0, len(mine), TOGETHER)]
    return tasks


def spread(tasks: Sequence[Task], processes: int) -> Iterator[Any]:
    """Yields what `done` returns for each task, as they end, from processes of their own; from this one for 0."""
    if processes == 0:
        yield from map(done, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(processes, len(tasks)), _set_path, (sys.path,)) as pool:
        yield from pool.imap_unordered(done, tasks)


def gathered(results: Sequence[Any], order: Sequence[str]) -> tuple[list[Score], Alarms]:
    """Returns the scores, in the order of these names, and all that correct runs met with."""
    scores = sorted((r for r in results if isinstance(r, Score)), key=lambda s: order.index(s.name))
    ended = [r for r in results if not isinstance(r, Score)]
    runs = sum(count for _, count, _ in ended)
    asked = {"vjplib": runs, "check_grads": runs} | ({"chex": runs} if _chex() else {})
    found = (alarm for _, _, alarms in ended for alarm in alarms)
    return scores, Alarms(runs, asked, tuple(sorted(found, key=lambda alarm: (alarm.by, alarm.run))))


def _set_path(path: list[str]) -> None:
    sys.path[:] = path


# --------------------------------------------------------------------------------------------------------------- tables


def shares(scores: Sequence[Score]) -> dict[str, float]:
    """Returns the share of the mutants that change the function which each check kills, by its name."""
    changed = [o for s in scores for o in s.outcomes if o.verdict != "equivalent"]
    found = {
        "vjplib": sum(o.verdict == "killed" for o in changed),
        "check_grads": sum(o.check_grads for o in changed),
    }
    if any(o.chex is not None for o in changed):
        found["chex"] = sum(bool(o.chex) for o in changed)
    return {by: number / max(1, len(changed)) for by, number in found.items()}


def to_dict(scores: Sequence[Score], alarms: Alarms | None) -> dict[str, Any]:
    """Returns scores and alarms as JSON has them."""
    content: dict[str, Any] = {"shares": shares(scores), "scores": [asdict(s) for s in scores]}
    if alarms is not None:
        content["runs"], content["asked"] = alarms.runs, dict(alarms.asked)
        content["alarms"] = [alarm._asdict() for alarm in alarms.alarms]
    return content


def tables(scores: Sequence[Score], alarms: Alarms | None) -> Iterator[Table]:
    """Yields the table of mutants, a row a rule, and that of the checks."""
    claims = sorted({o.claim for s in scores for o in s.outcomes if o.claim}, key=lambda c: int(c[1:]))
    grid = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False)
    grid.add_column("rule", overflow="fold")
    for heading in ("mutants", "equal", "killed", "left", *claims, "grads", "chex", "s"):
        grid.add_column(heading, justify="right", no_wrap=True)
    for s in scores:
        grid.add_row(*_cells(s.name, [s], claims))
    grid.add_section()
    grid.add_row(*_cells("all", scores, claims))
    yield grid
    checks = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("", "mutants killed", "false alarms", "runs"):
        checks.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for by, share in shares(scores).items():
        false = ("-", "-") if alarms is None else (str(alarms.of(by)), str(alarms.asked.get(by, 0)))
        checks.add_row(_TITLES[by], f"{share:.2%}", *false)
    yield checks


_TITLES = {"vjplib": "vjplib", "check_grads": "jax.test_util.check_grads", "chex": "chex.assert_numerical_grads"}


def _cells(name: str, scores: Sequence[Score], claims: Sequence[str]) -> list[str]:
    outcomes = [o for s in scores for o in s.outcomes]
    verdicts, by = Counter(o.verdict for o in outcomes), Counter(o.claim for o in outcomes)
    chex = "-" if all(o.chex is None for o in outcomes) else str(sum(bool(o.chex) for o in outcomes))
    numbers = [len(outcomes), verdicts["equivalent"], verdicts["killed"], verdicts["survived"]]
    grads = sum(o.check_grads for o in outcomes)
    return [
        name,
        *map(str, numbers),
        *(str(by[c]) for c in claims),
        str(grads),
        chex,
        f"{sum(s.seconds for s in scores):.0f}",
    ]


def has_chex() -> bool:
    """Returns whether chex is installed, so that its check can be asked."""
    return _chex() is not None


def enough(scores: Sequence[Score], alarms: Alarms) -> bool:
    """Returns whether the verifier kills 99 % of the mutants that change the function, and raises no false alarm."""
    return shares(scores)["vjplib"] >= ENOUGH and alarms.of("vjplib") == 0


def without_mutants(scores: Sequence[Score], count: int) -> Iterator[str]:
    """Yields a line for each rule of which fewer mutants that change it could be made than asked for."""
    for s in scores:
        made = len(s.outcomes) - s.count("equivalent")
        if made < count:
            yield f"{s.name}: its backward allows {made} mutants that differ from it and from one another, not {count}"


def survivors(scores: Sequence[Score]) -> Iterator[str]:
    """Yields a line for each mutant that survived."""
    for s in scores:
        for o in s.outcomes:
            if o.verdict == "survived":
                yield f"{s.name} [{o.case}]: {o.mutation}"
