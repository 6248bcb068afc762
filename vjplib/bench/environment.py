"""The environment of a measurement: versions, machine and date."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """Return what a result depends on besides the code: versions, machine, device, number of processors, and the date.

    Example:
        >>> sorted(environment())
        ['cpus', 'date', 'device', 'jax', 'jaxlib', 'machine', 'python', 'vjplib']
    """
    device = jax.devices()[0]
    return {
        "vjplib": version("vjplib"),
        "jax": jax.__version__,
        "jaxlib": version("jaxlib"),
        "python": platform.python_version(),
        "machine": platform.platform(),
        "device": f"{device.platform}: {device.device_kind}",
        "cpus": os.cpu_count(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
