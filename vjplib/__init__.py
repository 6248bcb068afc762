"""JAX layers whose backward rules are derived by hand and proved right by machine.

The map of the package, from the bottom up:

    precision     the dtype policy: what is computed in
    jacobians     what a layer's derivative looks like: dense, diagonal, banded Toeplitz, diagonal minus low rank
    rule          the record that each rule file ends with, and `find`, which finds the records
    rules         the rules themselves, one family to a file; all their public functions are here too
    verification  proves a rule: one file to a claim; `verify` and `assert_verified` are here too
    auditing      `audit`: finds the custom rules that a program calls, and verifies each where it is met
    debug         holds a rule to its contract in a program that runs
    reports       what a run of the verifier found, for people and programs, and what changed since another
    testing       rules verified by one's own tests; the plugin of pytest stands beside the package, in vjplib_pytest
    bench         times a rule, training steps of flax networks and random convolutions against what users would call
    training      networks of pure functions, and their training with optax
    lecture       the lecture's figures, drawn from running code, and the pages of the rules, written from their records
"""

from vjplib.auditing import AuditReport as AuditReport
from vjplib.auditing import audit as audit
from vjplib.auditing import examined as examined
from vjplib.auditing import watching as watching
from vjplib.debug import ContractError as ContractError
from vjplib.debug import debug_rule as debug_rule
from vjplib.debug import debug_rules as debug_rules
from vjplib.rule import Case as Case
from vjplib.rule import Edge as Edge
from vjplib.rule import Input as Input
from vjplib.rule import Rule as Rule
from vjplib.rules.activations import quadratic as quadratic
from vjplib.rules.activations import relu as relu
from vjplib.rules.activations import sigmoid as sigmoid
from vjplib.rules.activations import tanh as tanh
from vjplib.rules.convolution.conv1d import conv1d as conv1d
from vjplib.rules.convolution.general import conv as conv
from vjplib.rules.convolution.general import conv_general_dilated as conv_general_dilated
from vjplib.rules.convolution.general import conv_with_general_padding as conv_with_general_padding
from vjplib.rules.convolution.general import explain_convolution as explain_convolution
from vjplib.rules.convolution.patches import conv_general_dilated_patches as conv_general_dilated_patches
from vjplib.rules.convolution.transpose import conv_transpose as conv_transpose
from vjplib.rules.linear import linear as linear
from vjplib.rules.losses import softmax_cross_entropy as softmax_cross_entropy
from vjplib.rules.losses import softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels
from vjplib.rules.losses import squared_error as squared_error
from vjplib.rules.patch_lax import use_in_lax as use_in_lax
from vjplib.rules.pooling.pooling import avg_pool as avg_pool
from vjplib.rules.pooling.pooling import max_pool as max_pool
from vjplib.rules.pooling.pooling import min_pool as min_pool
from vjplib.rules.pooling.pooling import reduce_window_max as reduce_window_max
from vjplib.rules.products import multiply as multiply
from vjplib.rules.products import prod as prod
from vjplib.rules.softmax import log_softmax as log_softmax
from vjplib.rules.softmax import softmax as softmax
from vjplib.verification import Finding as Finding
from vjplib.verification import NotVerifiedError as NotVerifiedError
from vjplib.verification import Report as Report
from vjplib.verification import assert_verified as assert_verified
from vjplib.verification import verify as verify
from vjplib.verification import verify_rule as verify_rule

__version__ = "0.1.0"
