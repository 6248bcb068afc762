"""Bad input gets a ValueError or TypeError that names the argument, what must hold and what was given."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vjplib

vl: Any = vjplib  # calls that a type checker refuses are the point here

X = jnp.ones((2, 5))
LABELS = jnp.array([0, 1])
INTEGERS = jnp.arange(3)
Q = jnp.ones((1, 3, 2, 4))


def linear_loss(x, labels, *args, **options):
    return vl.linear_softmax_cross_entropy(x, labels, jnp.ones((5, 4)), *args, **options)


def ctc(**options):
    given = {"logits": jnp.ones((2, 4, 3)), "labels": jnp.ones((2, 2), int)}
    return vl.ctc_loss(**given | {"logit_paddings": jnp.zeros((2, 4)), "label_paddings": jnp.zeros((2, 2))} | options)


BAD = {
    "relu of a text": (lambda: vl.relu("one"), TypeError, "x must be an array of numbers, got str 'one'"),
    "relu's derivative of 2": (lambda: vl.relu(X, derivative_at_zero=2), ValueError, "derivative_at_zero .*got 2"),
    "relu of nothing": (lambda: vl.relu(None), TypeError, "x must be an array of numbers, got NoneType None"),
    "tanh of ragged lists": (
        lambda: vl.tanh([[1.0, 2.0], [3.0]]),
        TypeError,
        "x must be an array of numbers, got list",
    ),
    "relu's derivative an array": (lambda: vl.relu(1.0, [0, 1]), ValueError, r"derivative_at_zero .*\[0, 1\]"),
    "integer cross-entropy, axis a list": (
        lambda: vl.softmax_cross_entropy_with_integer_labels(X, LABELS, axis=[1]),
        TypeError,
        r"axis must be an integer or a tuple of integers, got \[1\]",
    ),
    "sigmoid of nothing": (lambda: vl.sigmoid(None), TypeError, "x must be an array of numbers, got NoneType"),
    "quadratic of a text": (lambda: vl.quadratic(1.0, "2"), TypeError, "y must be an array of numbers, got str '2'"),
    "quadratic, shapes": (
        lambda: vl.quadratic(X, jnp.ones(4)),
        ValueError,
        r"x and y must broadcast together, got shapes \(2, 5\) and \(4,\)",
    ),
    "multiply of a text": (lambda: vl.multiply("1", 1.0), TypeError, "x must be an array of numbers, got str '1'"),
    "multiply, shapes": (lambda: vl.multiply(X, jnp.ones((3, 5))), ValueError, r"\(2, 5\) and \(3, 5\)"),
    "prod, axis out of range": (lambda: vl.prod(X, axis=2), ValueError, r"axis must lie in \[-2, 2\).*got 2"),
    "prod, axis twice": (
        lambda: vl.prod(X, axis=(0, -2)),
        ValueError,
        r"axis must not name an axis twice.*\(0, -2\)",
    ),
    "prod, axis a float": (lambda: vl.prod(X, axis=0.5), TypeError, "axis must be an integer.*0.5"),
    "linear of a scalar": (lambda: vl.linear(1.0, X), ValueError, r"x must have at least one axis.*\(\)"),
    "linear, W transposed": (
        lambda: vl.linear(X, jnp.ones((5, 3))),
        ValueError,
        r"W must have shape \(m, n\).*W \(5, 3\) and x \(2, 5\)",
    ),
    "linear, W a vector": (lambda: vl.linear(X, jnp.ones(5)), ValueError, r"W must have shape \(m, n\).*\(5,\)"),
    "linear, b of another length": (
        lambda: vl.linear(X, jnp.ones((3, 5)), jnp.ones(5)),
        ValueError,
        r"b must have shape \(m,\).*b \(5,\) and W \(3, 5\)",
    ),
    "softmax, axis": (lambda: vl.softmax(X, axis=-3), ValueError, r"axis must lie in \[-2, 2\).*-3"),
    "softmax of a scalar": (lambda: vl.softmax(1.0), ValueError, r"axis must lie in \[0, 0\).*-1"),
    "softmax, mask of floats": (lambda: vl.softmax(X, where=X), TypeError, "where must be boolean, got float32"),
    "softmax, mask's shape": (
        lambda: vl.softmax(X, where=jnp.ones(4, bool)),
        ValueError,
        r"where and x must broadcast together, got shapes \(4,\) and \(2, 5\)",
    ),
    "dropout without a key": (lambda: vl.dropout(None, X, 0.5), TypeError, "key must be a random key.*got NoneType"),
    "dropout, a seed": (lambda: vl.dropout(0, X, 0.5), TypeError, "key must be a random key.*got int"),
    "dropout, key of floats": (lambda: vl.dropout(X, X, 0.5), TypeError, r"key must be .*float32 of shape \(2, 5\)"),
    "dropout, rate": (lambda: vl.dropout(jax.random.key(0), X, 1.5), ValueError, r"rate must be in \[0, 1\], got 1.5"),
    "dropout, rate a text": (lambda: vl.dropout(jax.random.key(0), X, "1"), TypeError, "rate must be a number.*'1'"),
    "dropout, axis": (
        lambda: vl.dropout(jax.random.key(0), X, 0.5, 2),
        ValueError,
        r"axis must lie in \[-2, 2\).*got 2",
    ),
    "gelu of a text": (lambda: vl.gelu("x"), TypeError, "x must be an array of numbers, got str 'x'"),
    "elu of nothing": (lambda: vl.elu(None), TypeError, "x must be an array of numbers, got NoneType"),
    "elu, alpha a text": (lambda: vl.elu(X, "1"), TypeError, "alpha must be an array of numbers, got str '1'"),
    "celu of no scale": (lambda: vl.celu(X, 0), ValueError, "alpha must not be 0, got 0"),
    "relu6 of a text": (lambda: vl.relu6("x"), TypeError, "x must be an array of numbers, got str 'x'"),
    "glu of five": (lambda: vl.glu(X), ValueError, r"axis must have an even size, got axis -1 of x \(2, 5\)"),
    "glu, axis": (lambda: vl.glu(X, 2), ValueError, r"axis must lie in \[-2, 2\).*got 2"),
    "glu, two axes": (lambda: vl.glu(X, (0, 1)), TypeError, r"axis must be an integer, got \(0, 1\)"),
    "swiglu, shapes": (
        lambda: vl.swiglu(X, X[:, :4]),
        ValueError,
        r"gate and x must broadcast together, got shapes \(2, 5\) and \(2, 4\)",
    ),
    "geglu of a text": (lambda: vl.geglu(X, "x"), TypeError, "x must be an array of numbers, got str 'x'"),
    "logsumexp, axis": (lambda: vl.logsumexp(X, 2), ValueError, r"axis must lie in \[-2, 2\).*got 2"),
    "logsumexp, mask": (lambda: vl.logsumexp(X, where=X), TypeError, "where must be boolean, got float32"),
    "logsumexp, mask's shape": (
        lambda: vl.logsumexp(X, where=jnp.ones(4, bool)),
        ValueError,
        r"where and a must broadcast together, got shapes \(4,\) and \(2, 5\)",
    ),
    "sparsemax of complex numbers": (
        lambda: vl.sparsemax(X + 1j),
        TypeError,
        "x must have a floating dtype, got complex",
    ),
    "sparsemax, two axes": (lambda: vl.sparsemax(X, (0, 1)), TypeError, r"axis must be an integer, got \(0, 1\)"),
    "sparsemax of a scalar": (lambda: vl.sparsemax(1.0), ValueError, r"axis must lie in \[0, 0\).*-1"),
    "layer_norm of nothing": (lambda: vl.layer_norm(None), TypeError, "x must be an array of numbers, got NoneType"),
    "layer_norm of a scalar": (lambda: vl.layer_norm(1.0), ValueError, r"axis must lie in \[0, 0\).*-1"),
    "layer_norm, scale of another length": (
        lambda: vl.layer_norm(X, jnp.ones(4)),
        ValueError,
        r"scale must broadcast to the shape of x, got scale \(4,\) and x \(2, 5\)",
    ),
    "layer_norm, bias of more axes": (
        lambda: vl.layer_norm(X, None, jnp.ones((3, 2, 5))),
        ValueError,
        r"bias must broadcast to the shape of x, got bias \(3, 2, 5\)",
    ),
    "layer_norm, epsilon a text": (lambda: vl.layer_norm(X, epsilon="0"), TypeError, "epsilon must be a number.*'0'"),
    "layer_norm, epsilon negative": (
        lambda: vl.layer_norm(X, epsilon=-1),
        ValueError,
        "epsilon must be at least 0, got -1",
    ),
    "rms_norm, scale": (lambda: vl.rms_norm(X, X[:, :4]), ValueError, r"scale must broadcast .*\(2, 4\)"),
    "group_norm of a vector": (lambda: vl.group_norm(X[0]), ValueError, r"x must have at least 2 axes.*\(5,\)"),
    "group_norm, groups": (lambda: vl.group_norm(X), ValueError, r"num_groups must divide .*got 32 and x \(2, 5\)"),
    "group_norm, no group": (lambda: vl.group_norm(X, num_groups=0), ValueError, "num_groups must divide .*got 0"),
    "group_norm, half a group": (lambda: vl.group_norm(X, num_groups=2.5), TypeError, "num_groups must be an integer"),
    "group_norm, bias": (
        lambda: vl.group_norm(X, None, 1.0, num_groups=5),
        ValueError,
        r"bias must have shape \(5,\), .*got \(\)",
    ),
    "batch_norm of integers": (
        lambda: vl.batch_norm(INTEGERS, 0.0, 1.0),
        TypeError,
        "x must have a floating dtype, got int32",
    ),
    "batch_norm, statistics": (
        lambda: vl.batch_norm(X, jnp.zeros(4), jnp.ones(5)),
        ValueError,
        r"running_mean must have shape \(5,\), .*got \(4,\)",
    ),
    "batch_norm, activation": (
        lambda: vl.batch_norm(X, jnp.zeros(5), jnp.ones(5), activation="gelu"),
        ValueError,
        "activation must be one of relu, relu6 or None, got 'gelu'",
    ),
    "batch_norm, momentum": (
        lambda: vl.batch_norm(X, jnp.zeros(5), jnp.ones(5), momentum=None),
        TypeError,
        "momentum must be a number, known when traced, got None",
    ),
    "weight_norm, scale": (lambda: vl.weight_norm(X, X), ValueError, r"scale must have shape \(5,\), .*\(2, 5\)"),
    "norm of text": (lambda: vl.norm("x"), TypeError, "x must be an array of numbers, got str 'x'"),
    "norm of three axes": (lambda: vl.norm(X[None], axis=(0, 1, 2)), ValueError, r"an axis or two axes.*\(0, 1, 2\)"),
    "normalize by nothing": (lambda: vl.normalize(X, epsilon=0), ValueError, "epsilon must be positive, got 0"),
    "linear cross-entropy, x of integers": (
        lambda: linear_loss(INTEGERS[None], LABELS[:1]),
        TypeError,
        r"x must have a floating dtype, got int32 of shape \(1, 3\)",
    ),
    "linear cross-entropy, labels of floats": (
        lambda: linear_loss(X, jnp.zeros(2)),
        TypeError,
        r"labels must be integers, got float32 of shape \(2,\)",
    ),
    "linear cross-entropy of a scalar": (
        lambda: linear_loss(1.0, 0),
        ValueError,
        r"x must have at least one axis, its features, got shape \(\)",
    ),
    "linear cross-entropy, labels of other tokens": (
        lambda: linear_loss(X, jnp.zeros(3, int)),
        ValueError,
        r"labels must have the shape of x without its last axis, got \(3,\) and x \(2, 5\)",
    ),
    "linear cross-entropy, weights transposed": (
        lambda: vl.linear_softmax_cross_entropy(X, LABELS, jnp.ones((4, 5))),
        ValueError,
        r"weights must have shape \(d, v\) .*, got \(4, 5\) and x \(2, 5\)",
    ),
    "linear cross-entropy, no class": (
        lambda: vl.linear_softmax_cross_entropy(X, LABELS, jnp.ones((5, 0))),
        ValueError,
        r"weights must have .* v at least 1, got \(5, 0\)",
    ),
    "linear cross-entropy, bias of other classes": (
        lambda: linear_loss(X, LABELS, jnp.ones(5)),
        ValueError,
        r"bias must have shape \(v,\) with v the columns of weights, got \(5,\) and weights \(5, 4\)",
    ),
    "linear cross-entropy, bias of integers": (
        lambda: linear_loss(X, LABELS, jnp.ones(4, int)),
        TypeError,
        "bias must have a floating dtype, got int32",
    ),
    "linear cross-entropy, reduction": (
        lambda: linear_loss(X, LABELS, reduction="max"),
        ValueError,
        "reduction must be one of 'sum', 'mean', 'none', None, got 'max'",
    ),
    "linear cross-entropy, smoothing": (
        lambda: linear_loss(X, LABELS, label_smoothing=2),
        ValueError,
        r"label_smoothing must be in \[0, 1\], got 2",
    ),
    "linear cross-entropy, smoothing traced": (
        lambda: jax.jit(lambda e: linear_loss(X, LABELS, label_smoothing=e))(0.5),
        TypeError,
        "label_smoothing must be a number, known when traced, got",
    ),
    "linear cross-entropy, z-loss": (
        lambda: linear_loss(X, LABELS, z_loss=float("nan")),
        ValueError,
        "z_loss must be finite, got nan",
    ),
    "linear cross-entropy, cap": (
        lambda: linear_loss(X, LABELS, logits_soft_cap=0),
        ValueError,
        "logits_soft_cap must be above 0, got 0",
    ),
    "linear cross-entropy, ignored label": (
        lambda: linear_loss(X, LABELS, ignore_index=0.5),
        ValueError,
        "ignore_index must be an integer, got 0.5",
    ),
    "linear cross-entropy, chunks": (
        lambda: linear_loss(X, LABELS, chunk_bytes="all"),
        TypeError,
        "chunk_bytes must be a number, known when traced, got 'all'",
    ),
    "linear cross-entropy, chunks of nothing": (
        lambda: linear_loss(X, LABELS, chunk_bytes=0),
        ValueError,
        "chunk_bytes must be at least 1, got 0",
    ),
    "ctc of integers": (
        lambda: ctc(logits=jnp.ones((2, 4, 3), int)),
        TypeError,
        r"logits must have a floating dtype, got int32 of shape \(2, 4, 3\)",
    ),
    "ctc, labels of floats": (
        lambda: ctc(labels=jnp.ones((2, 2))),
        TypeError,
        r"labels must be integers, got float32 of shape \(2, 2\)",
    ),
    "ctc, padding a text": (
        lambda: ctc(logit_paddings="none"),
        TypeError,
        "logit_paddings must be an array of numbers, got str 'none'",
    ),
    "ctc, logits of one axis": (
        lambda: ctc(logits=jnp.ones(3)),
        ValueError,
        r"logits must have shape \(..., t, k\) with at least one class, got \(3,\)",
    ),
    "ctc, no class": (
        lambda: ctc(logits=jnp.ones((2, 4, 0))),
        ValueError,
        r"logits must have shape \(..., t, k\) with at least one class, got \(2, 4, 0\)",
    ),
    "ctc, rows": (
        lambda: ctc(labels=jnp.ones((3, 2), int)),
        ValueError,
        r"labels must have the batch axes of logits and one more, got \(3, 2\) and logits \(2, 4, 3\)",
    ),
    "ctc, paddings of frames": (
        lambda: ctc(logit_paddings=jnp.zeros((2, 3))),
        ValueError,
        r"logit_paddings must have the shape of logits without their last axis, got \(2, 3\) and logits \(2, 4, 3\)",
    ),
    "ctc, paddings of labels": (
        lambda: ctc(label_paddings=jnp.zeros((2, 3))),
        ValueError,
        r"label_paddings must have the shape of labels, got \(2, 3\) and labels \(2, 2\)",
    ),
    "ctc, blank": (lambda: ctc(blank_id=3), ValueError, r"blank_id must be a class in \[0, 3\), got 3"),
    "ctc, blank from the end": (lambda: ctc(blank_id=-1), ValueError, r"blank_id must be a class in \[0, 3\), got -1"),
    "ctc, log_epsilon": (lambda: ctc(log_epsilon=0.5), ValueError, "log_epsilon must be below 0, got 0.5"),
    "ctc, log_epsilon NaN": (
        lambda: ctc(log_epsilon=float("nan")),
        ValueError,
        "log_epsilon must be below 0, got nan",
    ),
    "ctc, log_epsilon traced": (
        lambda: jax.jit(lambda e: ctc(log_epsilon=e))(-1.0),
        TypeError,
        "log_epsilon must be a number, known when traced, got",
    ),
    "attention, mask of floats": (
        lambda: vl.dot_product_attention(Q, Q, Q, mask=jnp.ones((1, 1, 3, 3))),
        TypeError,
        "mask must be boolean, got float32",
    ),
    "attention, dtypes": (
        lambda: vl.dot_product_attention(Q, Q, Q.astype(jnp.bfloat16)),
        TypeError,
        "query, key and value must be of one dtype, got float32, float32 and bfloat16",
    ),
    "attention of integers": (
        lambda: vl.dot_product_attention(INTEGERS, Q, Q),
        TypeError,
        "query must have a floating dtype, got int32",
    ),
    "attention, ranks": (
        lambda: vl.dot_product_attention(X, Q, Q),
        ValueError,
        r"query must be of rank 3 or 4, got shape \(2, 5\)",
    ),
    "attention, shapes": (
        lambda: vl.dot_product_attention(Q, Q[..., :2], Q),
        ValueError,
        r"query, key and value must be of shapes .*, got \(1, 3, 2, 4\), \(1, 3, 2, 2\) and",
    ),
    "attention, heads": (
        lambda: vl.dot_product_attention(Q[:, :, :1], Q, Q),
        ValueError,
        "query must have a multiple of key's heads, got 1 and 2",
    ),
    "attention, bias": (
        lambda: vl.dot_product_attention(Q, Q, Q, jnp.ones((2, 3, 3, 3))),
        ValueError,
        r"bias must broadcast to \(b, n, t, s\), \(1, 2, 3, 3\), got shape \(2, 3, 3, 3\)",
    ),
    "attention, lengths of floats": (
        lambda: vl.dot_product_attention(Q, Q, Q, query_seq_lengths=jnp.ones(1)),
        TypeError,
        "query_seq_lengths must be integers, got float32",
    ),
    "attention, lengths": (
        lambda: vl.dot_product_attention(Q, Q, Q, key_value_seq_lengths=INTEGERS),
        ValueError,
        r"key_value_seq_lengths must be of shape \(1,\), got \(3,\)",
    ),
    "attention, window": (
        lambda: vl.dot_product_attention(Q, Q, Q, local_window_size=(1, -1)),
        ValueError,
        r"local_window_size must be a number of at least 0, or two, got \(1, -1\)",
    ),
    "huber_loss of integers": (
        lambda: vl.huber_loss(INTEGERS),
        TypeError,
        "predictions must have a floating dtype, got int32",
    ),
    "huber_loss, shapes": (
        lambda: vl.huber_loss(X, jnp.ones(4)),
        ValueError,
        r"predictions and delta and targets must broadcast together, got shapes \(2, 5\) and \(\) and \(4,\)",
    ),
    "huber_loss, delta a text": (lambda: vl.huber_loss(X, delta="1"), TypeError, "delta must be an array of numbers"),
    "log_cosh of integers": (lambda: vl.log_cosh(INTEGERS), TypeError, "predictions must have a floating dtype"),
    "log_cosh, shapes": (
        lambda: vl.log_cosh(X, jnp.ones(4)),
        ValueError,
        r"predictions and targets must broadcast together, got shapes \(2, 5\) and \(4,\)",
    ),
    "log_cosh, targets a text": (
        lambda: vl.log_cosh(X, "1"),
        TypeError,
        "targets must be an array of numbers, got str",
    ),
    "binary cross-entropy of integers": (
        lambda: vl.sigmoid_binary_cross_entropy(INTEGERS, INTEGERS),
        TypeError,
        "logits must have a floating dtype, got int32",
    ),
    "binary cross-entropy, shapes": (
        lambda: vl.sigmoid_binary_cross_entropy(X, LABELS),
        ValueError,
        r"logits and labels must broadcast together, got shapes \(2, 5\) and \(2,\)",
    ),
    "binary cross-entropy, labels a text": (
        lambda: vl.sigmoid_binary_cross_entropy(X, "yes"),
        TypeError,
        "labels must be an array of numbers, got str 'yes'",
    ),
    "focal loss of integers": (lambda: vl.sigmoid_focal_loss(INTEGERS, 1), TypeError, "logits must have a floating"),
    "focal loss, shapes": (
        lambda: vl.sigmoid_focal_loss(X, 1, alpha=jnp.ones(4)),
        ValueError,
        r"logits and labels and gamma and alpha must broadcast together, got shapes .* and \(4,\)",
    ),
    "focal loss, exponent a text": (
        lambda: vl.sigmoid_focal_loss(X, 1, gamma="2"),
        TypeError,
        "gamma must be an array of numbers, got str '2'",
    ),
    "safe cross-entropy of integers": (
        lambda: vl.safe_softmax_cross_entropy(INTEGERS, INTEGERS),
        TypeError,
        "logits must have a floating dtype, got int32",
    ),
    "safe cross-entropy, labels a text": (
        lambda: vl.safe_softmax_cross_entropy(X, "one"),
        TypeError,
        "labels must be an array of numbers, got str 'one'",
    ),
    "safe cross-entropy, shapes": (
        lambda: vl.safe_softmax_cross_entropy(X, LABELS),
        ValueError,
        r"logits and labels must broadcast together, got shapes \(2, 5\) and \(2,\)",
    ),
    "safe cross-entropy of a scalar": (lambda: vl.safe_softmax_cross_entropy(1.0, 1.0), ValueError, "axis must lie in"),
    "divergence from integers": (
        lambda: vl.kl_divergence(X, jnp.ones((2, 5), int)),
        TypeError,
        r"targets must have a floating dtype, got int32 of shape \(2, 5\)",
    ),
    "divergence of integers": (
        lambda: vl.kl_divergence(INTEGERS, X),
        TypeError,
        "log_predictions must have a floating dtype, got int32",
    ),
    "divergence, shapes": (
        lambda: vl.kl_divergence(X, jnp.ones(4)),
        ValueError,
        r"log_predictions and targets must broadcast together, got shapes \(2, 5\) and \(4,\)",
    ),
    "divergence, axis": (lambda: vl.kl_divergence(X, X, axis=2), ValueError, r"axis must lie in \[-2, 2\).*got 2"),
    "divergence, mask of numbers": (
        lambda: vl.kl_divergence(X, X, where=X),
        TypeError,
        "where must be boolean, got float32",
    ),
    "divergence, mask of more rows": (
        lambda: vl.kl_divergence(X[0], X[0], where=jnp.ones((2, 5), bool)),
        ValueError,
        r"where must broadcast to the shape of the others, got \(2, 5\) and \(5,\)",
    ),
    "conv1d of text": (lambda: vl.conv1d("x", jnp.ones(3)), TypeError, "x must be an array of numbers, got str 'x'"),
    "conv1d, kernel of text": (lambda: vl.conv1d(X, "h"), TypeError, "h must be an array of numbers, got str 'h'"),
    "conv1d, no kernel": (lambda: vl.conv1d(X, None), TypeError, "h must be an array of numbers, got NoneType None"),
    "conv1d, k larger than n": (
        lambda: vl.conv1d(X, jnp.ones(6)),
        ValueError,
        r"h must have 1 <= k <= n taps, got k = 6 of h \(6,\) and n = 5 of x \(2, 5\)",
    ),
    "conv1d, no tap": (lambda: vl.conv1d(X, jnp.ones(0)), ValueError, "1 <= k <= n taps, got k = 0"),
    "conv1d, no place": (lambda: vl.conv1d(jnp.ones((2, 0)), jnp.ones(1)), ValueError, "k = 1 .*n = 0"),
    "conv1d, kernel a matrix": (lambda: vl.conv1d(X, X), ValueError, r"h must have shape \(k,\) or .*\(2, 5\)"),
    "conv1d of a scalar": (
        lambda: vl.conv1d(1.0, jnp.ones(3)),
        ValueError,
        r"x must have shape \(..., n\), got \(\)",
    ),
    "conv1d, no channel axis": (
        lambda: vl.conv1d(jnp.ones(5), jnp.ones((3, 1, 2))),
        ValueError,
        r"x must have shape \(..., n, c_in\), got \(5,\)",
    ),
    "conv1d, channels": (
        lambda: vl.conv1d(X, jnp.ones((1, 4, 2))),
        ValueError,
        r"must agree in c_in.*\(2, 5\), \(1, 4, 2\)",
    ),
    "conv1d, bias": (
        lambda: vl.conv1d(X, jnp.ones(3), jnp.ones(3)),
        ValueError,
        r"b must have shape \(\).*b \(3,\), h \(3,\)",
    ),
    "conv1d, stride 0": (
        lambda: vl.conv1d(X, jnp.ones(3), stride=0),
        ValueError,
        "stride must be at least 1, got 0",
    ),
    "conv1d, stride a float": (lambda: vl.conv1d(X, jnp.ones(3), stride=1.5), TypeError, "stride .*1.5"),
    "cross-entropy, integer logits": (
        lambda: vl.softmax_cross_entropy(INTEGERS, INTEGERS),
        TypeError,
        "logits must have a floating dtype, got int32",
    ),
    "cross-entropy, shapes": (
        lambda: vl.softmax_cross_entropy(X, jnp.ones((4,))),
        ValueError,
        r"logits and labels must broadcast together, got shapes \(2, 5\) and \(4,\)",
    ),
    "integer cross-entropy, integer logits": (
        lambda: vl.softmax_cross_entropy_with_integer_labels(INTEGERS, jnp.array(1)),
        TypeError,
        "logits must have a floating dtype",
    ),
    "integer cross-entropy, float labels": (
        lambda: vl.softmax_cross_entropy_with_integer_labels(X, jnp.ones(2)),
        TypeError,
        "labels must be integers, got float32",
    ),
    "integer cross-entropy, shapes": (
        lambda: vl.softmax_cross_entropy_with_integer_labels(X, INTEGERS),
        ValueError,
        r"labels must have logits' shape without axis -1, or broadcast with it, got \(3,\) and \(2, 5\)",
    ),
    "integer cross-entropy, axis None": (
        lambda: vl.softmax_cross_entropy_with_integer_labels(X, LABELS, axis=None),
        TypeError,
        "axis must be an integer or a tuple of integers, got None",
    ),
    "squared error, shapes": (
        lambda: vl.squared_error(jnp.ones((3, 1)), jnp.ones(3)),
        ValueError,
        r"targets must have the shape of predictions, got \(3,\) and \(3, 1\)",
    ),
    "squared error of integers": (
        lambda: vl.squared_error(jnp.ones((2, 5), int), X),
        TypeError,
        "predictions must have a floating dtype",
    ),
    "verify, not callable": (lambda: vl.verify(3, (X,)), TypeError, "fn must be callable, got 3"),
    "verify, a rule without passes": (
        lambda: vl.verify(jax.custom_vjp(jnp.sin), (X,)),
        ValueError,
        r"fn must have its passes: call sin\.defvjp\(fwd, bwd\) first",
    ),
    "verify, args an array": (lambda: vl.verify(jnp.sin, X), TypeError, "args must be a tuple"),
    "verify, nothing to differentiate": (
        lambda: vl.verify(jnp.sin, (INTEGERS,)),
        ValueError,
        r"at least one floating array to differentiate, got int32 \(3,\)",
    ),
    "verify, unknown claim": (lambda: vl.verify(jnp.sin, (X,), claims=("V99",)), ValueError, "claims .*V99"),
    "verify, unknown effort": (lambda: vl.verify(jnp.sin, (X,), effort="hard"), ValueError, "effort .*'hard'"),
    "case without a size": (lambda: vl.Case(("b n",), {"b": 2}), ValueError, r"dims .*lacks \['n'\]"),
    "rule without a case": (
        lambda: vl.Rule(jnp.sin, jnp.sin, {"sin": jnp.sin}, ()),
        ValueError,
        "cases of sin must hold at least one Case",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("name", ["conv1d, k larger than n", "linear, W transposed", "softmax, axis"])
def test_bad_input_is_refused_alike_under_jit_and_grad(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        jax.jit(call)()
    with pytest.raises(error, match=message):
        jax.grad(lambda s: jnp.sum(call()) * s)(1.0)


def test_label_out_of_range_gives_nan_not_a_number():
    loss = vl.softmax_cross_entropy_with_integer_labels(X, jnp.array([4, 5]))
    assert np.isfinite(loss[0])
    assert np.isnan(loss[1])
