"""V11, accuracy: the error against float64 beside that of autodiff of the reference, in float32 and half precision."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

from vjplib.verification.measure import usual
from vjplib.verification.report import Finding, said
from vjplib.verification.subject import Subject
from vjplib.verification.value import compare

DTYPES = ("float32", "bfloat16", "float16")


def check(subject: Subject, dtypes: Sequence[str] = DTYPES) -> Iterator[Finding]:
    """Yields a finding for each dtype: the worst cotangent's error as a multiple of autodiff's.

    Half precision cannot see an error under about 3 %, so this judges stability, not correctness.
    """
    for dtype in dtypes[:1] if subject.complex else dtypes:  # no complex number has parts of 16 bits
        leaves = subject.leaves(jnp.dtype(dtype))
        try:
            gs = subject.cotangents(leaves)
            errors = list(compare(subject, leaves, gs, usual(subject, leaves, gs)))
        except Exception as refusal:  # whatever a function, or the compiler, says of a dtype that it does not take
            message = f"{dtype}: refused, {said(refusal)}"
            yield Finding("V11", "skipped", message, case=subject.case)
            continue
        name, e = max(errors, key=lambda pair: pair[1].excused)
        share = max(e.relative for _, e in errors)
        message = (
            f"{dtype}: {share:.2g}x autodiff's error" if np.isfinite(share) else f"{dtype}: autodiff makes no error"
        )
        level = "fail" if e.excused > 1 else "pass"
        arrays = [{"name": name, "rule": e.size, "autodiff": e.of_autodiff} for name, e in errors]
        data = {"dtype": dtype, "arrays": arrays}
        yield Finding("V11", level, message, name, e.excused, e.index, subject.case, data=data)
