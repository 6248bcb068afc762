"""Rules as researchers write them: right ones raise no alarm, wrong ones are caught, for the right reason."""

import pytest
from field_right_rules import RIGHT
from field_wrong_rules import FIELD_WRONG_RULES

import vjplib

BY_NAME = {field.name: field for field in RIGHT}

# The claims that raised a false alarm, by the name of the rule.
RIGHT_BY_CLAIMS = {
    # second derivatives: a surrogate in the reference, or one mode that is refused
    "straight_through_sign": ("value", "second_order"),
    "straight_through_round": ("second_order",),
    "fake_quantise": ("second_order",),
    "spike": ("second_order",),
    "reverse_gradient": ("second_order",),
    "scale_gradient": ("second_order",),
    "pallas_silu": ("second_order",),
    "equilibrium": ("second_order",),
    "equilibrium_by_a_solve": ("second_order",),
    "heron": ("second_order",),
    "softmax_for_remat": ("second_order",),
    "scale_for_remat": ("second_order",),
    # several devices
    "embedding": ("sharding",),
    "resize_by_library": ("sharding",),
    "tanh_with_scaled_cotangents": ("sharding",),
    "sort_rows_by_score": ("sharding",),
    # named axes
    "centred_over_devices": None,
    "synchronised_norm": ("contract", "value", "linearity", "transforms", "second_order", "residuals", "taylor"),
    # some dtypes alone
    "pallas_gate": None,
    "absolute_by_bits": ("contract", "value", "linearity", "transforms", "sharding", "edges", "accuracy", "variations"),
    "log2_by_bits": ("contract", "value", "linearity", "transforms", "sharding", "accuracy", "variations"),
    "bias_gelu": None,
    # the digits of what is compared, and arrays by keyword
    "biased_softmax": None,
    "attention_with_bias": None,
    "reparameterised_normal": ("value", "taylor", "sharding", "transforms"),
    "matmul_accumulated_in_float32": ("value", "taylor", "accuracy"),
    "rms_norm_with_statistic": ("value", "taylor", "accuracy"),
    "rms_norm_in_float16": ("value", "accuracy"),
    "gumbel_softmax": ("value",),
    "phasor": ("contract",),
    "probit": ("value", "edges"),
    # what float32 and float64 may give another sign, and what is not linear in large cotangents
    "eigh": ("value",),
    "clip_gradient": ("value", "accuracy"),
}

# Wrong rules that escaped, or were caught for another reason.
WRONG_BY_NAME = (
    "nested vmap: the host reduces axis 1",
    "nested vmap: a batching rule that reduces axis 1",
    "nested vmap: a batching rule that counts axis 1",
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


@pytest.mark.deep
@pytest.mark.parametrize("name", [name for name in BY_NAME if name != "clip_gradient"])  # which fails on purpose, below
def test_a_right_rule_raises_no_alarm_at_default_effort(name):
    field = BY_NAME[name]
    report = vjplib.verify(field.fn, field.args, field.kwargs, **field.options)
    assert report.ok, report


NOTED = "tail: sigmoid by y (1 - y), as JAX has it"  # where autodiff errs as well


@pytest.mark.deep
@pytest.mark.parametrize("name", [name for name in FIELD_WRONG_RULES if name != NOTED])
def test_a_wrong_rule_is_caught_at_default_effort(name):
    case = FIELD_WRONG_RULES[name]
    report = vjplib.verify(case.fn, case.args, case.kwargs, vary=case.vary, **case.options)
    found = report.failures
    assert any(f.claim in case.claims for f in found), report
    raises = any(f.code == "raises" for f in found)
    assert raises or any(case.argument in f"{f.argument} {f.case} {f.message}" for f in found), report


def test_a_backward_that_is_not_linear_on_purpose_is_told_what_to_do():
    clip = BY_NAME["clip_gradient"]
    report = vjplib.verify(clip.fn, clip.args, claims=("linearity",))
    assert {f.trap for f in report.failures} == {"not-linear"}
    assert "leave linearity out of claims if it is meant" in str(report).replace("\n", " ")
    others = ("contract", "value", "transforms", "second_order", "residuals")
    assert vjplib.verify(clip.fn, clip.args, claims=others).ok


@pytest.mark.parametrize("name", WRONG_BY_NAME)
def test_a_wrong_rule_is_caught_for_the_right_reason(name):
    case = FIELD_WRONG_RULES[name]
    report = vjplib.verify(case.fn, case.args, case.kwargs, claims=case.claims, **case.options)
    assert any(case.argument in f"{f.argument} {f.message}" for f in report.failures), report


# Right rules, by the claims that derive other calls from the given one.
RIGHT_IN_ITS_DOMAIN = {
    "segment_sum": ("variations",),
    "segment_softmax": ("variations",),
    "class_sums": ("variations",),
    "embedding": ("variations",),
    "weighted_histogram": ("variations",),
    "quadratic_form": ("variations",),
    "blur": ("variations",),
    "pallas_silu": ("variations",),
    "scatter_set": ("transforms", "variations"),
    "permute_rows": ("variations",),
    "quadratic_form_of_a_symmetric_matrix": ("second_order", "variations"),
    "soft_cross_entropy": ("value", "second_order"),
    "solve_orthonormal": ("value", "second_order", "variations"),
    "interpolate": ("value", "edges", "variations"),
    "log_cosh": ("edges",),
    "softplus": ("edges",),
    "logsumexp": ("edges",),
    "safe_norm": ("edges",),
    "planck": ("value", "accuracy"),
    "leaky_integrator": ("value", "edges"),
    "solve_tridiagonal": ("edges",),
    "spectral_filter": ("variations",),
    "kepler": ("value", "edges"),
    "state_space_scan": ("edges",),
    "logdet": ("variations",),
    "eigh": ("variations",),
    "gaussian_log_likelihood": ("value", "edges", "variations"),
    "kl_from_log_probabilities": ("value", "edges", "variations"),
}
WRONG_ELSEWHERE = [
    name
    for name in FIELD_WRONG_RULES
    if name.startswith(("static ", "blocks of 64", "order kept in int8", "FFT", "rows beyond"))
]


@pytest.mark.parametrize("name", RIGHT_IN_ITS_DOMAIN)
def test_right_rule_raises_no_alarm_in_its_domain(name):
    field = BY_NAME[name]
    report = vjplib.verify(field.fn, field.args, field.kwargs, claims=RIGHT_IN_ITS_DOMAIN[name], **field.options)
    assert report.ok, report


@pytest.mark.parametrize("name", WRONG_ELSEWHERE)
def test_wrong_rule_is_caught_at_a_call_that_it_should_take(name):
    wrong = FIELD_WRONG_RULES[name]
    report = vjplib.verify(wrong.fn, wrong.args, wrong.kwargs, claims=wrong.claims, vary=wrong.vary, **wrong.options)
    assert {f.claim for f in report.failures} & set(wrong.claims), report
    named = [f for f in report.failures if wrong.argument in f"{f.argument} {f.case}".replace(":", " ").split()]
    raised = [f for f in report.failures if f.code == "raises"]
    assert raised if name == "FFT: odd lengths raise" else named, report
