"""Functions, the models that hold them, and the package's exceptions are copied and pickled."""

import copy
import importlib
import inspect
import pickle
import pkgutil
from typing import Any

import cloudpickle
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import vjplib
from vjplib.debug import ContractError
from vjplib.testing import ClaimError
from vjplib.training import train
from vjplib.verification import NotVerifiedError, Report, verify

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "cloudpickle": lambda thing: cloudpickle.loads(cloudpickle.dumps(thing)),
}
PUBLIC = {name: thing for name in dir(vjplib) if not name.startswith("_") and callable(thing := getattr(vjplib, name))}
ACTIVATIONS = ["relu", "tanh", "sigmoid", "softmax", "log_softmax"]


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_are_copied_by_reference(name, way):
    assert COPIES[way](PUBLIC[name]) is PUBLIC[name]


class Linen(nn.Module):
    """One layer and an activation."""

    activation: Any

    @nn.compact
    def __call__(self, x):
        return self.activation(nn.Dense(3)(x))


class Nnx(nnx.Module):
    """One layer and an activation."""

    def __init__(self, activation, rngs):
        self.layer, self.activation = nnx.Linear(2, 3, rngs=rngs), activation

    def __call__(self, x):
        return self.activation(self.layer(x))


class Equinox(eqx.Module):
    """One layer and an activation."""

    layer: eqx.nn.Linear
    activation: Any

    def __call__(self, x):
        return self.activation(jax.vmap(self.layer)(x))


def linen(activation):
    model = Linen(activation)
    return model, lambda model, x: model.apply(model.init(jax.random.key(0), x), x)


def of_nnx(activation):
    return Nnx(activation, nnx.Rngs(0)), lambda model, x: model(x)


def equinox(activation):
    return Equinox(eqx.nn.Linear(2, 3, key=jax.random.key(0)), activation), lambda model, x: model(x)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("framework", [linen, of_nnx, equinox])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_models_with_our_activations_are_copied(name, framework, way):
    model, call = framework(PUBLIC[name])
    x = jnp.ones((2, 2))
    np.testing.assert_array_equal(call(COPIES[way](model), x), call(model, x))


def wrong_report() -> Report:
    wrong = jax.custom_vjp(jnp.tanh)
    wrong.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g,))
    return verify(wrong, (jnp.array([0.5, 1.0]),), effort="quick")


def divergence() -> train.DivergenceError:
    result = train.Fit(train.State(*(jnp.float32(i) for i in range(len(train.State._fields)))), ())
    return train.DivergenceError(2, 3, float("inf"), result)


MADE = {
    "NotVerifiedError": lambda: NotVerifiedError(wrong_report()),
    "ClaimError": lambda: ClaimError(wrong_report(), "short"),
    "DivergenceError": divergence,
    "ContractError": lambda: ContractError("the backward returns another dtype"),
    "Abandoned": lambda: importlib.import_module("vjplib.verification.isolation").Abandoned("late"),
    "_NotWritableError": lambda: importlib.import_module("vjplib.verification.explain.shrink")._NotWritableError(
        "no source"
    ),
}


def exceptions():
    """The classes of exceptions that the modules of the package define."""
    names = [m.name for m in pkgutil.walk_packages(vjplib.__path__, "vjplib.")]
    for name in ["vjplib_pytest", *(n for n in names if not n.endswith(".__main__"))]:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != "torch":  # of no extra
                raise
            continue
        for thing in vars(module).values():
            if inspect.isclass(thing) and issubclass(thing, BaseException) and thing.__module__ == name:
                yield thing


def test_every_exception_of_the_package_is_tried_here():
    assert {thing.__name__ for thing in exceptions()} == set(MADE)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", MADE)
def test_exceptions_keep_their_message_and_attributes(name, way):
    error = MADE[name]()
    error.add_note("seen in a worker")
    copied = COPIES[way](error)
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert repr(vars(copied)) == repr(vars(error))
