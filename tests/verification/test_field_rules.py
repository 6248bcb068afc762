"""Rules as researchers write them: right ones raise no alarm, wrong ones are caught, for the right reason."""

import pytest
from field_right_rules import RIGHT
from field_wrong_rules import FIELD_WRONG_RULES

import vjplib

BY_NAME = {field.name: field for field in RIGHT}

# The claims that raised a false alarm, by the name of the rule.
RIGHT_BY_CLAIMS = {
    # some dtypes alone
    "pallas_gate": None,
    "absolute_by_bits": ("contract", "value", "linearity", "transforms", "sharding", "accuracy", "variations"),
    "log2_by_bits": ("contract", "value", "linearity", "transforms", "sharding", "accuracy", "variations"),
    "bias_gelu": None,
    # the digits of what is compared, and arrays by keyword
    "biased_softmax": None,
    "attention_with_bias": None,
    "reparameterised_normal": ("value", "taylor", "sharding"),
    "matmul_accumulated_in_float32": ("value", "taylor", "accuracy"),
    "rms_norm_with_statistic": ("value", "taylor", "accuracy"),
    "rms_norm_in_float16": ("value", "accuracy"),
    "gumbel_softmax": ("value",),
    # what float32 and float64 may give another sign, and what is not linear in large cotangents
    "eigh": ("value",),
    "clip_gradient": ("value", "accuracy"),
}

# Wrong rules that escaped, or were caught for another reason.
WRONG_BY_NAME = (
    "keyword array: no gradient",
    "keyword array: the mean for the sum",
    "keyword array: ignored in the other cotangent",
    "keyword number: temperature's cotangent times temperature",
    "bfloat16: bias added up row by row",
    "bfloat16: scale added up row by row",
    "bfloat16: weights added up in blocks",
    "float16: squares overflow",
    "refuses float64: a factor 1.001",
    "refuses float64: the bit trick",
    "refuses float64: a table of 65 nodes",
    "tail: logistic by y (1 - y)",
    "tail: tanh by 1 - y^2",
    "tail: softplus by 1 - exp(-y)",
    "tail: log sigmoid by 1 - sigmoid",
    "tail: asinh by x * x",
    "tail: normal's hazard by a quotient",
    "garbage in float32: JAX's own cotangents of a causal convolution",
    "garbage in float32: JAX's own cotangents of a cropped one",
)


@pytest.mark.parametrize("name", RIGHT_BY_CLAIMS)
def test_a_right_rule_raises_no_alarm(name):
    field = BY_NAME[name]
    report = vjplib.verify(field.fn, field.args, field.kwargs, claims=RIGHT_BY_CLAIMS[name], **field.options)
    assert report.ok, report


@pytest.mark.parametrize("name", WRONG_BY_NAME)
def test_a_wrong_rule_is_caught_for_the_right_reason(name):
    case = FIELD_WRONG_RULES[name]
    report = vjplib.verify(case.fn, case.args, case.kwargs, claims=case.claims, **case.options)
    assert any(case.argument in f"{f.argument} {f.message}" for f in report.failures), report
