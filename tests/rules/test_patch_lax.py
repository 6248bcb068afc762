"""use_in_lax serves who calls jax.lax, this thread alone, jitted programs as they are traced, and leaves no trace."""

import asyncio
import contextlib
import functools
import inspect
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import vjplib as vl
from vjplib.compat import holds_custom_vjp, x64

NAMES = (
    "conv",
    "conv_general_dilated",
    "conv_general_dilated_patches",
    "conv_transpose",
    "conv_with_general_padding",
    "reduce_window",
)


def depthwise(x, k):
    return lax.conv_general_dilated(x, k, (1,), "SAME", feature_group_count=x.shape[-2])


def max_pool(x):
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2), (1, 1, 2), "VALID")


def network(x, k):
    return max_pool(depthwise(x, k))


CALLS = {
    "conv": lambda x, k: lax.conv(x, k, (2,), "SAME"),
    "depthwise": lambda x, k: depthwise(x, k[:, :1]),
    "patches": lambda x, k: lax.conv_general_dilated_patches(x, (3,), (1,), "VALID") * k.sum(),
    "transposed": lambda x, k: lax.conv_transpose(x, k, (2,), "SAME", dimension_numbers=("NCW", "OIW", "NCW")),
    "general padding": lambda x, k: lax.conv_with_general_padding(x, k, (1,), [(2, 1)], (2,), None),
    "max-pool": lambda x, k: max_pool(x) * k.sum(),
    "max-pool, keywords": lambda x, k: (
        lax.reduce_window(x, -jnp.inf, lax.max, window_dimensions=(1, 1, 3), window_strides=(1, 1, 2), padding="SAME")
        * k.sum()
    ),
    "sum-pool": lambda x, k: lax.reduce_window(x, 0.0, lax.add, (1, 1, 2), (1, 1, 2), "VALID") * k.sum(),
}


WITHOUT_GRADIENTS = {
    "max of what is above zero": lambda x: lax.reduce_window(x, 0.0, lax.max, (1, 1, 2), (1, 1, 1), "SAME"),
    "dilated window": lambda x: lax.reduce_window(
        x, -jnp.inf, lax.max, (1, 1, 3), (1, 1, 1), "SAME", window_dilation=(1, 1, 2)
    ),
    "dilated input": lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3), (1, 1, 1), "SAME", (1, 1, 2)),
    "minus infinity as an array": lambda x: lax.reduce_window(x, jnp.array(-jnp.inf), lax.max, (1, 1, 3)),
    "integers": lambda x: lax.reduce_window(jnp.int32(4 * x), np.int32(-(2**31)), lax.max, (1, 1, 2)),
    "several arrays": lambda x: lax.reduce_window(
        (x, x), (0.0, 0.0), lambda a, b: (a[0] + b[0], a[1] + b[1]), (1, 1, 2), (1, 1, 1), "SAME"
    ),
}
"""Reductions that JAX itself does not differentiate."""


@pytest.fixture
def arrays(rng):
    return jnp.asarray(rng.standard_normal((2, 4, 8)), jnp.float32), jnp.asarray(rng.standard_normal((4, 1, 3)), "f4")


def program(f, *args):
    """A new trace of f: `jax.make_jaxpr` keeps none."""
    return jax.make_jaxpr(lambda *args: f(*args))(*args)


@pytest.mark.parametrize("call", CALLS)
def test_values_and_gradients_are_laxs(call, rng):
    with x64():
        x, k = jnp.asarray(rng.standard_normal((2, 4, 9))), jnp.asarray(rng.standard_normal((4, 4, 3)))

        @jax.jit
        def outcome(x, k):
            y, back = jax.vjp(CALLS[call], x, k)
            return y, back(jnp.sin(jnp.arange(1.0, 1 + y.size)).reshape(y.shape))

        expected = outcome(x, k)
        with vl.use_in_lax():
            given = outcome(x, k)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(given), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("call", WITHOUT_GRADIENTS)
def test_reductions_without_gradients_are_laxs(call, arrays):
    expected = WITHOUT_GRADIENTS[call](arrays[0])
    with vl.use_in_lax():
        given = WITHOUT_GRADIENTS[call](arrays[0])
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(given), strict=True):
        np.testing.assert_array_equal(b, a)


def test_rules_serve_inside_alone(arrays):
    assert not holds_custom_vjp(program(network, *arrays))
    with vl.use_in_lax():
        for f in (network, depthwise, lambda x, k: max_pool(x)):
            assert holds_custom_vjp(program(f, *arrays))
    assert not holds_custom_vjp(program(network, *arrays))


def test_lax_is_as_it_was():
    before = {name: getattr(lax, name) for name in NAMES}
    with vl.use_in_lax():
        for name in NAMES:
            inside = getattr(lax, name)
            assert inside is not before[name]
            assert (inside.__name__, inside.__doc__) == (before[name].__name__, before[name].__doc__)
    with pytest.raises(KeyError), vl.use_in_lax(), vl.use_in_lax():
        raise KeyError
    assert {name: getattr(lax, name) for name in NAMES} == before


def test_contexts_nest(arrays):
    with vl.use_in_lax():
        with vl.use_in_lax():
            assert holds_custom_vjp(program(depthwise, *arrays))
        assert holds_custom_vjp(program(depthwise, *arrays))
    assert not holds_custom_vjp(program(depthwise, *arrays))


def test_it_decorates(arrays):
    assert holds_custom_vjp(program(vl.use_in_lax()(depthwise), *arrays))
    assert not holds_custom_vjp(program(depthwise, *arrays))


def test_other_threads_are_left_alone(arrays):
    original, served = lax.conv_general_dilated, {}
    entered, left = threading.Event(), threading.Event()

    def other():
        entered.wait()
        served["beside"] = holds_custom_vjp(program(depthwise, *arrays))
        with vl.use_in_lax():
            left.wait()
            served["after the first left"] = holds_custom_vjp(program(depthwise, *arrays))
        served["outside"] = holds_custom_vjp(program(depthwise, *arrays))

    thread = threading.Thread(target=other)
    thread.start()
    with vl.use_in_lax():
        entered.set()
        assert holds_custom_vjp(program(depthwise, *arrays))
    left.set()
    thread.join()
    assert served == {"beside": False, "after the first left": True, "outside": False}
    assert lax.conv_general_dilated is original


def test_a_jitted_function_is_traced_for_each_side(arrays):
    traced = []

    @jax.jit
    def f(x, k):
        traced.append(holds_custom_vjp(program(depthwise, x, k)))
        return depthwise(x, k)

    outside = f(*arrays)
    with vl.use_in_lax():
        inside = f(*arrays)
        f(*arrays)
    f(*arrays)
    assert traced == [False, True]
    np.testing.assert_allclose(inside, outside, rtol=1e-5, atol=1e-5)


def test_what_was_compiled_before_stays(arrays):
    compiled = jax.jit(lambda x, k: depthwise(x, k)).lower(*arrays).compile()
    with vl.use_in_lax():
        y, back = jax.vjp(depthwise, *arrays)
        np.testing.assert_allclose(compiled(*arrays), y, rtol=1e-5, atol=1e-5)
        assert "convolution" in str(compiled.as_text())
    for a, b in zip(back(y), jax.vjp(depthwise, *arrays)[1](y), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_reference_taken_inside_is_laxs_outside(arrays):
    with vl.use_in_lax():
        taken = lax.conv_general_dilated
    call = lambda x, k: taken(x, k, (1,), "SAME", feature_group_count=4)  # noqa: E731
    assert not holds_custom_vjp(program(call, *arrays))
    with vl.use_in_lax():
        assert holds_custom_vjp(program(call, *arrays))


DERIVED = {
    "grad of jit": lambda f: jax.grad(jax.jit(f), argnums=(0, 1)),
    "jit of grad": lambda f: jax.jit(jax.grad(f, argnums=(0, 1))),
    "grad of checkpoint": lambda f: jax.grad(jax.checkpoint(f), argnums=(0, 1)),
    "vmap of grad": lambda f: lambda x, k: jax.vmap(jax.grad(f, argnums=(0, 1)), (None, 0))(x, jnp.stack([k, 2 * k])),
    "hessian": lambda f: jax.jit(jax.hessian(f, argnums=1)),
}


@pytest.mark.parametrize("derived", DERIVED)
def test_no_rule_serves_itself(derived, arrays):
    """Rules traced late, when a whole program is differentiated, must still call JAX's functions."""
    f = DERIVED[derived](lambda x, k: jnp.sum(jnp.tanh(network(x, k))))
    expected = f(*arrays)
    with vl.use_in_lax():
        given = f(*arrays)
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(given), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
def test_dtypes_without_a_rule_are_laxs(dtype, arrays):
    x, k = (jnp.round(4 * a).astype(dtype) for a in arrays)
    expected = depthwise(x, k)
    with vl.use_in_lax():
        np.testing.assert_array_equal(depthwise(x, k), expected)


def test_bad_calls_raise_inside_too(arrays):
    x, k = arrays
    for call in (
        lambda: lax.conv_general_dilated(x, k, (1,), [(0, 0)] * 2),
        lambda: lax.conv_general_dilated(x, k, (1, 1), "SAME"),
        lambda: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2), (1, 2), "VALID"),
    ):
        with pytest.raises((TypeError, ValueError)):
            call()
        with vl.use_in_lax(), pytest.raises((TypeError, ValueError)):
            call()


# ------------------------------------------------------------------------------------- entering, leaving, suspending


def is_served(arrays):
    return holds_custom_vjp(program(depthwise, *arrays))


def test_one_object_is_entered_many_times(arrays):
    original, context = lax.conv_general_dilated, vl.use_in_lax()
    for _ in range(2):
        with context:
            with context:
                assert is_served(arrays)
            assert is_served(arrays)
        assert not is_served(arrays)
    decorated = context(depthwise)
    with context:
        assert holds_custom_vjp(program(decorated, *arrays))
        assert is_served(arrays)
    assert holds_custom_vjp(program(decorated, *arrays))
    assert lax.conv_general_dilated is original


def test_one_object_serves_each_thread_that_enters_it(arrays):
    original, context, served = lax.conv_general_dilated, vl.use_in_lax(), {}
    entered, left = threading.Event(), threading.Event()

    def other():
        with context:
            entered.set()
            left.wait()
            served["inside"] = is_served(arrays)
        served["outside"] = is_served(arrays)

    thread = threading.Thread(target=other)
    with context:
        thread.start()
        entered.wait()
        assert is_served(arrays)
    assert not is_served(arrays)
    left.set()
    thread.join()
    assert served == {"inside": True, "outside": False}
    assert lax.conv_general_dilated is original


@pytest.mark.parametrize("leave", [(0, 1), (1, 0)], ids=["first first", "last first"])
def test_contexts_are_left_in_any_order(leave, arrays):
    original, contexts = lax.conv_general_dilated, (vl.use_in_lax(), vl.use_in_lax())
    for context in contexts:
        context.__enter__()
    contexts[leave[0]].__exit__(None, None, None)
    assert is_served(arrays)
    contexts[leave[1]].__exit__(None, None, None)
    assert not is_served(arrays)
    assert lax.conv_general_dilated is original
    f, traced = traced_function()
    f(*arrays)
    with vl.use_in_lax():
        f(*arrays)
    assert traced == [False, True]


def traced_function():
    """A jitted function, and whether it was served each time it was traced."""
    traced = []

    @jax.jit
    def f(x, k):
        traced.append(is_served((x, k)))
        return depthwise(x, k)

    return f, traced


def test_a_patch_made_before_is_there_again(arrays, monkeypatch):
    def theirs(*args, **kwargs):
        return original(*args, **kwargs)

    original = lax.conv_general_dilated
    monkeypatch.setattr(lax, "conv_general_dilated", theirs)
    with vl.use_in_lax():
        assert is_served(arrays)
    assert lax.conv_general_dilated is theirs
    assert not is_served(arrays)


@pytest.mark.parametrize("undone", ["inside", "outside"])
def test_a_patch_made_inside_stays_until_it_is_undone(undone, arrays, monkeypatch):
    original, calls = lax.conv_general_dilated, []
    for _ in range(3):
        with vl.use_in_lax():
            found = lax.conv_general_dilated

            @functools.wraps(found)
            def theirs(*args, found=found, **kwargs):
                calls.append(found)
                return found(*args, **kwargs)

            lax.conv_general_dilated = theirs
            assert is_served(arrays)
            if undone == "inside":
                lax.conv_general_dilated = found
        if undone == "outside":
            assert lax.conv_general_dilated is theirs
            assert not is_served(arrays)
            with vl.use_in_lax():
                assert is_served(arrays)
            assert lax.conv_general_dilated is theirs
            lax.conv_general_dilated = found
        assert not is_served(arrays)
    with vl.use_in_lax():
        assert is_served(arrays)
    assert lax.conv_general_dilated is original
    assert calls


def steps(arrays, log):
    """A generator that tells whether it is served, and hears how it is sent to, thrown at and closed."""
    try:
        while True:
            try:
                log.append((yield is_served(arrays)))
            except KeyError as error:
                log.append(error)
    finally:
        log.append(("left", is_served(arrays)))


def test_a_decorated_generator_is_inside_while_it_runs(arrays):
    log, error = [], KeyError()
    decorated = vl.use_in_lax()(steps)
    assert inspect.isgeneratorfunction(decorated)
    assert (decorated.__name__, decorated.__doc__) == (steps.__name__, steps.__doc__)
    generator = decorated(arrays, log)
    assert next(generator)
    assert not is_served(arrays)
    assert generator.send("sent")
    assert not is_served(arrays)
    assert generator.throw(error)
    generator.close()
    assert log == ["sent", error, ("left", True)]
    with pytest.raises(StopIteration):
        next(generator)
    assert lax.conv_general_dilated.__module__.startswith("jax")


def test_a_decorated_generator_returns_and_raises_its_own():
    @vl.use_in_lax()
    def returns():
        yield 1
        return 2

    @vl.use_in_lax()
    def raises():
        yield 1
        raise KeyError("mine")

    def delegates():
        return (yield from returns())

    generator = delegates()
    assert next(generator) == 1
    with pytest.raises(StopIteration) as stop:
        next(generator)
    assert stop.value.value == 2
    with pytest.raises(KeyError, match="mine"):
        list(raises())


def test_a_generator_abandoned_inside_leaves_when_it_is_closed(arrays):
    original = lax.conv_general_dilated

    def fixture():
        with vl.use_in_lax():
            yield

    generator = fixture()
    next(generator)
    assert is_served(arrays)
    thread = threading.Thread(target=generator.close)
    thread.start()
    thread.join()
    assert not is_served(arrays)
    assert lax.conv_general_dilated is original


def in_turns(*functions):
    """Runs coroutine functions as tasks of one thread, in turns: `asyncio.sleep(0)` is each one's end of a turn."""

    async def run():
        await asyncio.gather(*(f() for f in functions))

    asyncio.run(run())


def test_other_tasks_are_left_alone_by_a_decorated_coroutine(arrays):
    f, traced = traced_function()
    served = []

    @vl.use_in_lax()
    async def inside():
        served.append(is_served(arrays))
        await asyncio.sleep(0)
        f(*arrays)
        served.append(is_served(arrays))
        await asyncio.sleep(0)
        return served.append(is_served(arrays))

    async def outside():
        served.append(is_served(arrays))
        f(*arrays)
        await asyncio.sleep(0)
        served.append(is_served(arrays))
        f(*arrays)

    assert inspect.iscoroutinefunction(inside)
    in_turns(inside, outside)
    assert served == [True, False, True, False, True]
    assert traced == [False, True]


def test_other_tasks_are_left_alone_by_a_block_that_awaits(arrays):
    original, served = lax.conv_general_dilated, []

    async def inside():
        with vl.use_in_lax():
            served.append(is_served(arrays))
            await asyncio.sleep(0)
            served.append(is_served(arrays))
            await asyncio.sleep(0)
            served.append(is_served(arrays))
        served.append(is_served(arrays))

    async def outside():
        served.append(is_served(arrays))
        with vl.use_in_lax():
            served.append(is_served(arrays))
        served.append(is_served(arrays))
        await asyncio.sleep(0)
        served.append(is_served(arrays))

    in_turns(inside, outside)
    assert served == [True, False, True, False, True, False, True, False]
    assert lax.conv_general_dilated is original


def test_blocks_of_two_tasks_overlap(arrays):
    served = []

    async def task():
        with vl.use_in_lax():
            await asyncio.sleep(0)
            served.append(is_served(arrays))
        served.append(is_served(arrays))

    in_turns(task, task)
    assert served == [True, False] * 2


def test_a_jitted_function_has_one_program_for_a_block_that_awaits_and_another_task(arrays):
    f, traced = traced_function()

    async def inside():
        with vl.use_in_lax():
            await asyncio.sleep(0)
            f(*arrays)

    async def outside():
        f(*arrays)
        await asyncio.sleep(0)

    in_turns(inside, outside)
    assert traced == [False]


def test_tasks_created_in_a_block_are_served_until_it_is_left(arrays):
    served = []

    async def child(left):
        served.append(is_served(arrays))
        await left.wait()
        served.append(is_served(arrays))
        with vl.use_in_lax():
            served.append(is_served(arrays))
        served.append(is_served(arrays))

    async def run():
        left = asyncio.Event()
        with vl.use_in_lax():
            task = asyncio.create_task(child(left))
            await asyncio.sleep(0)
            served.append(await asyncio.to_thread(is_served, arrays))
        left.set()
        await task
        served.append(is_served(arrays))

    asyncio.run(run())
    assert served == [True, False, False, True, False, False]


def test_tasks_created_by_a_decorated_coroutine_are_outside(arrays):
    async def child():
        return is_served(arrays)

    @vl.use_in_lax()
    async def parent():
        return await child(), await asyncio.create_task(child()), await asyncio.create_task(vl.use_in_lax()(child)())

    assert asyncio.run(parent()) == (True, False, True)


def test_a_decorated_async_generator_is_inside_while_it_runs(arrays):
    log, error = [], KeyError()

    @vl.use_in_lax()
    async def stream():
        try:
            for _ in range(3):
                try:
                    await asyncio.sleep(0)
                    log.append((yield is_served(arrays)))
                except KeyError as error:
                    log.append(error)
        finally:
            await asyncio.sleep(0)
            log.append(("left", is_served(arrays)))

    async def run():
        generator = stream()
        assert await anext(generator)
        assert not is_served(arrays)
        assert await generator.asend("sent")
        assert await generator.athrow(error)
        assert not is_served(arrays)
        await generator.aclose()
        assert log == ["sent", error, ("left", True)]
        assert [served async for served in stream()] == [True] * 3

    assert inspect.isasyncgenfunction(stream)
    asyncio.run(run())


def test_a_callable_that_returns_a_body_to_run_later_is_refused_by_name():
    def numbers():
        yield 1

    async def number():
        return 1

    async def several():
        yield 1

    class Maker:
        def __call__(self):
            return numbers()

    for make in (lambda: numbers(), lambda: number(), lambda: several(), Maker(), contextlib.contextmanager(numbers)):
        with pytest.raises(TypeError, match="use_in_lax must decorate a generator or coroutine function itself, got "):
            vl.use_in_lax()(make)()
    assert vl.use_in_lax()(lambda: [1])() == [1]


def test_an_exit_too_many_is_refused():
    context = vl.use_in_lax()
    with context:
        pass
    with pytest.raises(RuntimeError, match="use_in_lax must be entered before it is left"):
        context.__exit__(None, None, None)
