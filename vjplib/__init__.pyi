# The public names, as type checkers see them; `__init__.py` imports each when it is first used.

from .auditing import AuditReport as AuditReport
from .auditing import audit as audit
from .auditing import examined as examined
from .auditing import watching as watching
from .debug import ContractError as ContractError
from .debug import debug_rule as debug_rule
from .debug import debug_rules as debug_rules
from .memory import keep_memory as keep_memory
from .rule import Case as Case
from .rule import Edge as Edge
from .rule import Input as Input
from .rule import Rule as Rule
from .rules.activations import quadratic as quadratic
from .rules.activations import relu as relu
from .rules.activations import sigmoid as sigmoid
from .rules.activations import tanh as tanh
from .rules.attention import dot_product_attention as dot_product_attention
from .rules.convolution.conv1d import conv1d as conv1d
from .rules.convolution.general import conv as conv
from .rules.convolution.general import conv_general_dilated as conv_general_dilated
from .rules.convolution.general import conv_with_general_padding as conv_with_general_padding
from .rules.convolution.general import explain_convolution as explain_convolution
from .rules.convolution.patches import conv_general_dilated_patches as conv_general_dilated_patches
from .rules.convolution.transpose import conv_transpose as conv_transpose
from .rules.linear import linear as linear
from .rules.losses import softmax_cross_entropy as softmax_cross_entropy
from .rules.losses import softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels
from .rules.losses import squared_error as squared_error
from .rules.patch_lax import use_in_lax as use_in_lax
from .rules.pooling.pooling import avg_pool as avg_pool
from .rules.pooling.pooling import max_pool as max_pool
from .rules.pooling.pooling import min_pool as min_pool
from .rules.pooling.pooling import reduce_window_max as reduce_window_max
from .rules.products import multiply as multiply
from .rules.products import prod as prod
from .rules.softmax import log_softmax as log_softmax
from .rules.softmax import softmax as softmax
from .verification import Finding as Finding
from .verification import NotVerifiedError as NotVerifiedError
from .verification import Report as Report
from .verification import assert_verified as assert_verified
from .verification import verify as verify
from .verification import verify_rule as verify_rule

__version__: str
