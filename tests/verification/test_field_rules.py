"""Rules as researchers write them: right ones raise no alarm, wrong ones are caught by name."""

import pytest
from field_right_rules import RIGHT
from field_wrong_rules import FIELD_WRONG_RULES

import vjplib

RULES = {rule.name: rule for rule in RIGHT}
STATED = ("reference", "domain", "vary")  # what an author is asked to tell

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
    rule = RULES[name]
    options = {key: value for key, value in rule.options.items() if key in STATED}
    report = vjplib.verify(rule.fn, rule.args, rule.kwargs, claims=RIGHT_IN_ITS_DOMAIN[name], **options)
    assert report.ok, report


@pytest.mark.parametrize("name", WRONG_ELSEWHERE)
def test_wrong_rule_is_caught_at_a_call_that_it_should_take(name):
    wrong = FIELD_WRONG_RULES[name]
    report = vjplib.verify(wrong.fn, wrong.args, wrong.kwargs, claims=wrong.claims, vary=wrong.vary, **wrong.options)
    assert {f.claim for f in report.failures} & set(wrong.claims), report
    named = [f for f in report.failures if wrong.argument in f"{f.argument} {f.case}".replace(":", " ").split()]
    raised = [f for f in report.failures if f.code == "raises"]
    assert raised if name == "FFT: odd lengths raise" else named, report
