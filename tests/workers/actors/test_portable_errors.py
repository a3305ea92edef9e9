"""Errors of actors reach the driver with their text, whatever their class."""

import asyncio
import pickle

import pytest
from pydantic import BaseModel, ValidationError
from pydantic_core import ArgsKwargs

from layersweep.rollout.types import StaleWeights
from layersweep.workers.actors.portable_errors import ActorError, portable, portable_errors


class TwoArguments(RuntimeError):
    """Unpickled with its text alone, which its constructor does not take."""

    def __init__(self, file: str, row: int):
        super().__init__(f"{file}, row {row}: no such answer")


class Holds(ValueError):
    """As vLLM's, which hold pydantic's ArgsKwargs."""

    def __init__(self, text: str):
        super().__init__(text)
        self.input = ArgsKwargs((1,))


class Strict(BaseModel):
    prompts: int


def validation_error() -> ValidationError:
    try:
        Strict(prompts="many")
    except ValidationError as error:
        return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TwoArguments("train.jsonl", 7), "TwoArguments: train.jsonl, row 7: no such answer"),
        (Holds("max_model_len is too small"), "Holds: max_model_len is too small"),
        (validation_error(), "prompts"),
    ],
    ids=["arguments", "unpicklable", "pydantic"],
)
def test_what_cannot_be_pickled_keeps_class_name_and_text(error, text):
    """ray #43401."""
    sent = pickle.loads(pickle.dumps(portable(error)))
    assert text in str(sent)


def test_what_can_be_pickled_stays_what_it_is():
    error = StaleWeights("asked for version 3")
    assert portable(error) is error


@portable_errors
class Actor:
    def __init__(self, fails: bool = False):
        if fails:
            raise Holds("at the start")

    def plain(self) -> int:
        raise Holds("in a call")

    async def asynchronous(self) -> int:
        raise Holds("in an async call")

    async def stale(self) -> None:
        raise StaleWeights("as it is")


def test_all_methods_of_an_actor_raise_portable_errors():
    with pytest.raises(ActorError, match="^Holds: at the start$"):
        Actor(fails=True)
    with pytest.raises(ActorError, match="^Holds: in a call$") as caught:
        Actor().plain()
    assert isinstance(caught.value.__cause__, Holds)  # where it came from is in the traceback
    with pytest.raises(ActorError, match="^Holds: in an async call$"):
        asyncio.run(Actor().asynchronous())
    with pytest.raises(StaleWeights, match="^as it is$"):
        asyncio.run(Actor().stale())
    assert asyncio.iscoroutinefunction(Actor.asynchronous) and not asyncio.iscoroutinefunction(Actor.plain)
