"""Errors that cross actor borders whole: Ray pickles what an actor raises, and some classes do not survive it."""

import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

Cls = TypeVar("Cls", bound=type)


class ActorError(RuntimeError):
    """An error whose own class cannot be pickled; the text has the class's name and its text."""


def portable(error: Exception) -> Exception:
    """Return the error itself if pickling keeps its class and text, else an ActorError with both."""
    try:
        copy = pickle.loads(pickle.dumps(error))
        whole = type(copy) is type(error) and str(copy) == str(error)
    except Exception:  # a class may raise anything here
        whole = False
    return error if whole else ActorError(f"{type(error).__name__}: {error}")


def portable_errors(cls: Cls) -> Cls:
    """Let every method of an actor class, its constructor included, raise portable errors alone."""
    for name, method in vars(cls).items():
        if inspect.isfunction(method):
            setattr(cls, name, _wrap(method))
    return cls


def _wrap(method: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            try:
                return await method(*args, **kwargs)
            except Exception as error:
                if (sent := portable(error)) is error:
                    raise
                raise sent from error

        return asynchronous

    @functools.wraps(method)
    def synchronous(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            if (sent := portable(error)) is error:
                raise
            raise sent from error

    return synchronous
