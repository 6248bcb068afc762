"""The shapes that `vjplib bench` times: those of open issues of JAX, and of common networks."""

from typing import Any, NamedTuple


class Shape(NamedTuple):
    """One call of `conv_general_dilated`, channels last, with "SAME" padding unless arguments say otherwise.

    Args:
        label: its name, with the issue that reports it.
        x: sizes of x, (batch, *space, channels).
        kernel: sizes of the kernel, (*space, channels / groups, features).
        arguments: keyword arguments.
    """

    label: str
    x: str
    kernel: str
    arguments: dict[str, Any]


def _groups(count: int, **arguments: Any) -> dict[str, Any]:
    return {"feature_group_count": count, **arguments}


SHAPES: tuple[Shape, ...] = (
    Shape("depthwise 1-D k4", "8 1024 256", "4 1 256", _groups(256)),
    Shape("depthwise 1-D k31", "8 1024 256", "31 1 256", _groups(256)),
    Shape("depthwise 1-D k3 dilation 8 (jax#26266)", "8 1024 256", "3 1 256", _groups(256, rhs_dilation=(8,))),
    Shape("depthwise 1-D k4 stride 2", "8 1024 256", "4 1 256", _groups(256, window_strides=(2,))),
    Shape("depthwise 1-D k5 (jax#13800)", "32 1024 512", "5 1 512", _groups(512)),
    Shape("depthwise 2-D k3 (jax#23713)", "1 124 124 256", "3 3 1 256", _groups(256)),
    Shape("depthwise 2-D k3", "8 56 56 64", "3 3 1 64", _groups(64)),
    Shape("depthwise 2-D k3 dilation 2", "8 56 56 64", "3 3 1 64", _groups(64, rhs_dilation=(2, 2))),
    Shape("depthwise 2-D k3, 2 features a channel", "8 28 28 32", "3 3 1 64", _groups(32)),
    Shape("depthwise 2-D k5", "8 56 56 64", "5 5 1 64", _groups(64)),
    Shape("depthwise 2-D k7", "8 56 56 96", "7 7 1 96", _groups(96)),
    Shape("depthwise 2-D k3 stride 2", "8 112 112 64", "3 3 1 64", _groups(64, window_strides=(2, 2))),
    Shape("grouped 3x3, 4 groups", "8 28 28 128", "3 3 32 128", _groups(4)),
    Shape("grouped 3x3, 32 groups", "8 28 28 128", "3 3 4 128", _groups(32)),
    Shape("grouped 3x3, 32 groups, stride 2", "8 28 28 128", "3 3 4 128", _groups(32, window_strides=(2, 2))),
    Shape("one channel n=1e6 k3", "1 1000000 1", "3 1 1", {}),
    Shape("one channel n=1e6 k15", "1 1000000 1", "15 1 1", {}),
    Shape("one channel n=1e7 k3", "1 10000000 1", "3 1 1", {}),
    Shape("dense 1x1", "8 56 56 64", "1 1 64 64", {}),
    Shape("dense 3x3, 64 channels", "8 28 28 64", "3 3 64 64", {}),
    Shape("dense 3x3, 256 channels", "8 14 14 256", "3 3 256 256", {}),
    Shape("dense 3x3 stride 2", "8 56 56 64", "3 3 64 128", {"window_strides": (2, 2)}),
    Shape("stem 7x7 stride 2", "8 224 224 3", "7 7 3 64", {"window_strides": (2, 2)}),
    Shape(
        "patch embedding 16x16 (jax#23085)",
        "8 224 224 3",
        "16 16 3 384",
        {"window_strides": (16, 16), "padding": "VALID"},
    ),
)
