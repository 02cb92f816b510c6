"""What a block says of a model holds where the block is: in its thread, task or generator; and leaves no trace."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tiny import tiny_model

from valueadapter import UnsupportedModeError, ValueAdapter, ValueAdapterForCausalLM

ON, OFF = ["a"], []


@pytest.fixture(scope="module")
def model() -> ValueAdapterForCausalLM:
    from tiny import byte_tokenizer

    wrapped = ValueAdapterForCausalLM(tiny_model("llama", seed=1), tokenizer=byte_tokenizer()).eval()
    for seed, name in enumerate("ab"):
        network = tiny_model("llama", seed=5 + seed)
        adapter = ValueAdapter.from_networks([network], wrapped.base_tokenizer, base_model_name_or_path="alice/base")
        wrapped.add_adapter(adapter, name, scale=0.7)
    return wrapped


@pytest.fixture(autouse=True)
def no_trace(model: ValueAdapterForCausalLM) -> Iterator[None]:
    """Whatever a test does, afterwards the model is as it was."""
    yield
    gc.collect()
    assert (model.active_adapters, model.scales) == (ON, {"a": 0.7, "b": 0.7})


def steps(model: ValueAdapterForCausalLM, count: int = 3) -> Iterator[list[str]]:
    """A streamed response, as a server's: one block around all of its steps."""
    with model.disable_adapter():
        for _ in range(count):
            yield model.active_adapters


# -- generators --------------------------------------------------------------------------------------------------------
def test_a_generator_holds_its_block_in_every_step_and_nowhere_else(model: ValueAdapterForCausalLM) -> None:
    """Its own code is in the block; the code that reads its values is not, not even between two of them."""
    seen = []
    for active in steps(model):
        seen.append((active, model.active_adapters))
    assert seen == [(OFF, ON)] * 3


def test_a_generator_holds_its_block_in_whatever_context_it_is_stepped(model: ValueAdapterForCausalLM) -> None:
    """As servers step streamed responses: each time in a copy of the context, in this thread or another."""
    for run in (lambda step: contextvars.copy_context().run(step), _in_a_thread):
        stream = steps(model)
        assert [run(lambda it=stream: next(it)) for _ in range(3)] == [OFF] * 3
        assert run(lambda it=stream: next(it, "end")) == "end"


def test_threads_that_step_a_generator_stay_as_they_were(model: ValueAdapterForCausalLM) -> None:
    """A pool's thread goes on to other requests while the generator waits for its next step."""
    with ThreadPoolExecutor(1) as pool:
        stream = steps(model)
        assert pool.submit(next, stream).result() == OFF
        assert pool.submit(lambda: model.active_adapters).result() == ON
        assert next(stream) == OFF
        stream.close()
        assert pool.submit(lambda: model.active_adapters).result() == ON


def test_generators_that_take_turns_keep_apart(model: ValueAdapterForCausalLM) -> None:
    """Each has its own block, whichever began or ends first."""

    def only(name: str, scale: float) -> Iterator[Any]:
        with model.only(name, scale=scale):
            while True:
                yield model.active_adapters, model.scales[name]

    one, two, off = only("a", 0.1), only("b", 0.2), steps(model, 9)
    for _ in range(2):
        assert (next(one), next(two), next(off)) == ((["a"], 0.1), (["b"], 0.2), OFF)
    one.close()
    assert (next(two), next(off), model.active_adapters) == ((["b"], 0.2), OFF, ON)
    off.close()
    assert (next(two), model.active_adapters) == ((["b"], 0.2), ON)
    two.close()


def test_the_nearest_block_decides_around_and_within_a_generator(model: ValueAdapterForCausalLM) -> None:
    """A generator's block goes before that of the code that reads it; one that its own code enters goes before it."""

    def both() -> Iterator[Any]:
        with model.disable_adapter():
            yield model.active_adapters
            with model.only("b", scale=1.0):
                yield model.active_adapters
            yield _within(model)
            yield model.active_adapters

    stream = both()
    assert next(stream) == OFF
    with model.only("a", scale=0.5):
        assert next(stream) == ["b"]
        assert (model.active_adapters, model.scales["a"]) == (["a"], 0.5)
        assert next(stream) == ["b"]
    assert list(stream) == [OFF]


def _within(model: ValueAdapterForCausalLM) -> list[str]:
    with model.only("b", scale=1.0):
        return model.active_adapters


def test_a_generator_may_delegate_and_compute(model: ValueAdapterForCausalLM) -> None:
    """`yield from` another one, and generator expressions, run within the block."""

    def outer() -> Iterator[list[str]]:
        with model.disable_adapter():
            yield from (model.active_adapters for _ in range(2))

    assert [(active, model.active_adapters) for active in outer()] == [(OFF, ON)] * 2


def test_a_generator_that_is_dropped_or_fails_ends_its_block(model: ValueAdapterForCausalLM) -> None:
    """Closed by the garbage collector, in another context, by an exception thrown in, or one of its own."""
    stream = steps(model)
    contextvars.copy_context().run(next, stream)
    del stream
    stream = steps(model)
    next(stream)
    with pytest.raises(ZeroDivisionError):
        _in_a_thread(lambda: stream.throw(ZeroDivisionError))
    circle: list[Any] = [steps(model)]
    circle.append(circle)
    next(circle[0])
    del circle


def test_code_outside_a_waiting_generator_is_told_once(
    model: ValueAdapterForCausalLM, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever takes a generator's block for his own learns that it is not."""
    stream = steps(model)
    next(stream)
    for _ in range(3):
        assert model.active_adapters == ON
    assert sum("only while that generator runs" in record.message for record in caplog.records) == 1
    stream.close()


# -- generators that are context managers ------------------------------------------------------------------------------
@pytest.fixture
def quiet(model: ValueAdapterForCausalLM) -> Iterator[None]:
    with model.disable_adapter():
        yield


@pytest.mark.usefixtures("quiet")
def test_a_fixture_that_yields_holds_its_block(model: ValueAdapterForCausalLM) -> None:
    """pytest runs a generator as a context manager."""
    assert model.active_adapters == OFF


def test_a_context_manager_made_of_a_generator_holds_its_block(model: ValueAdapterForCausalLM) -> None:
    """`@contextmanager` around a block, in a function, nested, as a decorator, and on an ExitStack."""

    @contextlib.contextmanager
    def quiet() -> Iterator[None]:
        with model.disable_adapter():
            yield

    @contextlib.contextmanager
    def quieter() -> Iterator[None]:
        with quiet():
            yield

    @quiet()
    def decorated() -> list[str]:
        return model.active_adapters

    @model.disable_adapter()
    def itself(again: bool = True) -> list[str]:
        return itself(False) if again else model.active_adapters

    for block in (quiet, quieter, model.disable_adapter):
        with block():
            assert model.active_adapters == OFF
        with contextlib.ExitStack() as stack:
            stack.enter_context(block())
            assert model.active_adapters == OFF
        assert model.active_adapters == ON
    assert (decorated(), itself(), itself()) == (OFF, OFF, OFF)


def test_a_generator_may_use_such_context_managers(model: ValueAdapterForCausalLM) -> None:
    """The block is then the generator's, step for step, however it was entered."""

    @contextlib.contextmanager
    def quiet() -> Iterator[None]:
        with model.disable_adapter():
            yield

    class Quiet:
        def __enter__(self) -> None:
            self.block = model.disable_adapter()
            self.block.__enter__()

        def __exit__(self, *exception: object) -> None:
            self.block.__exit__(*exception)

    def stacked() -> Any:
        stack = contextlib.ExitStack()
        stack.enter_context(model.disable_adapter())
        return stack

    def stream(block: Callable[[], Any]) -> Iterator[list[str]]:
        with block():
            for _ in range(3):
                yield model.active_adapters

    for block in (quiet, Quiet):
        each = stream(block)
        assert [contextvars.copy_context().run(next, each) for _ in range(3)] == [OFF] * 3
        assert model.active_adapters == ON
        each.close()
    with stacked():  # entered by a function that has returned
        assert model.active_adapters == OFF


# -- tasks -------------------------------------------------------------------------------------------------------------
def test_tasks_keep_apart_and_inherit_what_they_begin_in(model: ValueAdapterForCausalLM) -> None:
    """Coroutines that take turns; `to_thread`, and tasks from within a block, also when they outlast it."""

    async def one(scale: float) -> list[float]:
        with model.only("b", scale=scale):
            found = []
            for _ in range(3):
                await asyncio.sleep(0)
                found.append(model.scales["b"] if model.active_adapters == ["b"] else -1)
            found.append(await asyncio.to_thread(lambda: model.scales["b"]))
        return found

    async def later() -> list[str]:
        await asyncio.sleep(0.01)
        return model.active_adapters

    async def everything() -> None:
        assert await asyncio.gather(one(0.1), one(0.2), one(0.3)) == [[s] * 4 for s in (0.1, 0.2, 0.3)]
        with model.disable_adapter():
            outlasting = asyncio.create_task(later())
            await asyncio.sleep(0)
        assert model.active_adapters == ON
        assert await outlasting == OFF

    asyncio.run(everything())


def test_an_asynchronous_generator_is_refused(model: ValueAdapterForCausalLM) -> None:
    """Nobody can tell whether it waits or stands between two values; as a context manager it is fine."""

    async def stream() -> AsyncIterator[list[str]]:
        with model.disable_adapter():
            yield model.active_adapters

    @contextlib.asynccontextmanager
    async def quiet() -> AsyncIterator[None]:
        await asyncio.sleep(0)
        with model.disable_adapter():
            yield

    async def everything() -> None:
        with pytest.raises(UnsupportedModeError, match=r"asynchronous generator 'stream'.*adapter_names=\[None\]"):
            async for _ in stream():
                pass
        async with quiet():
            await asyncio.sleep(0)
            assert model.active_adapters == OFF
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(quiet())
            assert model.active_adapters == OFF

    asyncio.run(everything())


# -- threads -----------------------------------------------------------------------------------------------------------
def test_many_threads_enter_and_leave_blocks(model: ValueAdapterForCausalLM) -> None:
    """Eight threads that are switched all the time: each sees its own block and scale, and none dies of it."""
    failed: list[object] = []
    begin = threading.Barrier(8)

    def enter(number: int) -> None:
        begin.wait()
        try:
            for index in range(400):
                scale = number + index / 1000
                with model.only("b", scale=scale), model.disable_adapter() if index % 2 else contextlib.nullcontext():
                    seen = (model.active_adapters, model.scales["b"])
                if seen != (OFF if index % 2 else ["b"], scale) or model.active_adapters != ON:
                    failed.append(seen)
        except BaseException as error:  # a thread's errors are lost otherwise
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=enter, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failed


def test_overlapping_scales_are_each_threads_own(model: ValueAdapterForCausalLM) -> None:
    """`only` in two threads that overlap, ending in the order in which they began."""
    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()
    seen = {}

    def first() -> None:
        with model.only("a", scale=0.5):
            first_in.set()
            second_in.wait(10)
            seen["first"] = model.attached.terms()[0].scale
        first_out.set()

    def second() -> None:
        first_in.wait(10)
        with model.only("a", scale=0.25):
            second_in.set()
            first_out.wait(10)
            seen["second"] = model.attached.terms()[0].scale

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    first_in.wait(10)
    seen["outside"] = model.attached.terms()[0].scale
    for thread in threads:
        thread.join()
    assert seen == {"first": 0.5, "second": 0.25, "outside": 0.7}


def test_a_scale_set_within_only_goes_with_the_block(model: ValueAdapterForCausalLM) -> None:
    """`set_scale` within the block is the block's, also from within a block of another kind; others are shared."""
    with model.only("a", scale=0.5):
        with model.disable_adapter():
            model.set_scale("a", 0.6)
        assert model.scales == {"a": 0.6, "b": 0.7}
        assert _in_a_thread(lambda: model.scales) == {"a": 0.7, "b": 0.7}
        assert [status.scale for status in model.get_adapter_status()] == [0.6, 0.7]


def test_blocks_may_end_in_any_order(model: ValueAdapterForCausalLM) -> None:
    """And one that another context ends, as a framework may do it, leaves no trace where it was entered."""
    one, two = model.disable_adapter(), model.only("b", scale=1.0)
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert model.active_adapters == ["b"]
    two.__exit__(None, None, None)
    one.__enter__()
    _in_a_thread(lambda: one.__exit__(None, None, None))
    assert model.active_adapters == ON
    with one, pytest.raises(UnsupportedModeError, match="open already"):
        one.__enter__()


def _in_a_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()
