"""The registry of claims: the records at the end of the files in `claims/`, found as the records of rules are."""

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from vjplib.verification import claims as _claims
from vjplib.verification.claim import EFFORTS, Check, Claim
from vjplib.verification.report import Report


def discover(package: ModuleType) -> tuple[Claim, ...]:
    """Return the record of each module in a package, numbered aliases first, in their order.

    Example:
        >>> [claim.name for claim in discover(_claims)][:2]
        ['contract', 'value']
    """
    names = [info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    found = [module.CLAIM for module in map(import_module, names) if hasattr(module, "CLAIM")]
    return tuple(sorted(found, key=lambda claim: (not claim.alias, len(claim.alias), claim.alias, claim.name)))


CLAIMS: dict[str, Claim] = {claim.name: claim for claim in discover(_claims)}


def resolve(claims: Sequence[str | Claim] | None) -> tuple[Claim, ...] | None:
    """Return the records for names and aliases, each once, in the order of the registry; records stay.

    Args:
        claims: names such as "value", aliases such as V2, or records; None for no selection.

    Raises:
        TypeError: claims is a single string.
        ValueError: a name is not known.

    Example:
        >>> [claim.name for claim in resolve((CLAIMS["value"].alias, "contract")) or ()]
        ['contract', 'value']
        >>> resolve("value")
        Traceback (most recent call last):
        TypeError: claims must be a sequence of names, such as ('value',), got 'value'
    """
    if claims is None:
        return None
    if isinstance(claims, str):
        raise TypeError(f"claims must be a sequence of names, such as ('value',), got {claims!r}")
    known = {alias.lower(): claim for claim in CLAIMS.values() for alias in (claim.name, claim.alias) if alias}
    unknown = [c for c in claims if not isinstance(c, Claim) and str(c).lower() not in known]
    if unknown:
        raise ValueError(f"claims must be among {', '.join(CLAIMS)}, got {', '.join(map(str, sorted(unknown)))}")
    chosen = {claim.name: claim for claim in (c if isinstance(c, Claim) else known[c.lower()] for c in claims)}
    return tuple(sorted(chosen.values(), key=lambda claim: order(claim.name)))


def selected(effort: str, claims: Sequence[str | Claim] | None, record: bool = True) -> list[tuple[Claim, Check]]:
    """Return the claims to examine at a record, or at a single call, each with its check.

    None for all that the effort includes; claims that are named are examined even if the effort leaves them out.
    """
    if effort not in EFFORTS:
        raise ValueError(f"effort must be one of {', '.join(EFFORTS)}, got {effort!r}")
    named = resolve(claims)
    pairs = (
        [(c, c.at(effort)) for c in CLAIMS.values()] if named is None else [(c, c.at(effort) or c.check) for c in named]
    )
    return [(claim, check) for claim, check in pairs if check and (claim.records or not record)]


def present(reports: Sequence[Report]) -> list[str]:
    """Return the names of the claims that reports hold findings of, in the order of the registry."""
    return sorted({f.claim for r in reports for f in r.findings}, key=order)


def order(claim: str) -> tuple[int, str]:
    """Return the sort key of a claim's name: the registry's order, then claims that it does not hold by name."""
    return list(CLAIMS).index(claim) if claim in CLAIMS else len(CLAIMS), claim
