"""Pictures of Jacobians: the entries of dy/dx that are not zero in the backward, and those that are wrong."""

import math
from typing import Any

import numpy as np

from vjplib.compat import x64
from vjplib.verification.call import CallUnderTest
from vjplib.verification.tolerance import relative_gap

MOST = 40


def jacobians(subject: CallUnderTest) -> dict[str, dict[str, Any]]:
    """Return a picture for each differentiated argument, by its name; none where arguments are complex.

    Rows are outputs, in order, and columns elements of the argument; the first 40 of each. A row is the backward of a
    unit cotangent, in float64, by the program that the claim on values has compiled already. A picture holds `rows`,
    strings of "+", "-" and "." for zero; `of`, the numbers of rows and columns of the whole Jacobian; and `wrong`, row
    and column of each entry that is not the oracle's to half the digits.

    Example:
        >>> jacobians(CallUnderTest(lambda x: x[1:] - x[:-1], (np.ones(4, np.float32),)))["x"]["rows"]
        ['-+..', '.-+.', '..-+']
    """
    with x64():
        leaves = subject.leaves(np.float64)
        if any(np.iscomplexobj(leaf) for leaf in leaves):
            return {}
        outputs = subject.outputs(leaves)
        sizes = [math.prod(y.shape) for y in outputs]
        count, ours, theirs = sum(sizes), [], []
        for i in range(min(count, MOST)):
            parts = np.split(np.eye(1, count, i)[0], np.cumsum(sizes)[:-1])
            gs = tuple(part.reshape(y.shape) for part, y in zip(parts, outputs, strict=True))
            found = subject.answers_at(leaves, gs)
            for rows, dxs in ((ours, found.dxs), (theirs, found.true_dxs)):
                rows.append([dx.ravel()[:MOST] for dx in dxs])
    pictures = {}
    for k, (name, leaf) in enumerate(zip(subject.names, leaves, strict=True)):
        if ours and leaf.size:
            ours_k, theirs_k = (np.stack([row[k] for row in rows]) for rows in (ours, theirs))
            pictures[name] = _picture(subject, ours_k, theirs_k) | {"of": [count, int(leaf.size)]}
    return pictures


def _picture(subject: CallUnderTest, ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    size = np.max(np.abs(theirs), initial=0.0, where=np.isfinite(theirs))
    digits = subject.digits(relative_gap(ours, theirs))
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(ours - theirs) <= digits * size) & (ours != theirs) & ~np.isnan(theirs)
    signs = np.where(ours == 0, ".", np.where(ours < 0, "-", "+"))
    return {"rows": ["".join(row) for row in signs], "wrong": np.argwhere(wrong).tolist()}
