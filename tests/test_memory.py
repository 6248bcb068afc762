"""Kept memory: set before the backend starts, refused after, and used by programs."""

import subprocess
import sys

import pytest

import vjplib

STEP = """
import os, sys
import vjplib
kept = vjplib.keep_memory() if sys.argv[1] == "keep" else None
import jax, jax.numpy as jnp
f = jax.jit(lambda x: x + 1)
x = jnp.ones(10_000_000)  # 40 MB, more than glibc keeps by itself
for _ in range(15):  # until the heap has its size
    jax.block_until_ready(f(x))
def faults():
    with open("/proc/self/stat") as f:
        return int(f.read().rpartition(")")[2].split()[7])
before = faults()
for _ in range(30):
    jax.block_until_ready(f(x))
print(kept, faults() - before)
"""


def run(*arguments):
    done = subprocess.run([sys.executable, "-c", STEP, *arguments], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator is Linux's")
def test_memory_is_used_again():
    kept, few = run("keep")
    assert kept == "True"
    assert few * 5 < run("leave")[1]


def test_once_the_backend_has_started_it_is_refused():
    vjplib.relu(1.0)
    with pytest.raises(RuntimeError, match="keep_memory must be called before JAX's backend starts"):
        vjplib.keep_memory()


def test_elsewhere_nothing_is_changed(monkeypatch):
    monkeypatch.setattr("vjplib.memory.backends_started", lambda: False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert vjplib.keep_memory() is False
