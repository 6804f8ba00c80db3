"""Arguments of models under their former names."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def renamed_argument(before: str, now: str) -> Callable[[Function], Function]:
    """A decorator: the argument `now` is still taken by the name that it had, with a warning.

    Args:
        before: the name that it had.
        now: the name in the function's signature.

    Returns:
        What makes of a function one that takes either name, with the function's signature.

    Raises:
        TypeError: a call that gives both.

    Example:
        >>> @renamed_argument("columns", "word_starts")
        ... def count(word_starts): return len(word_starts)
        >>> count(word_starts=[1, 3])
        2
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def taking_both(*args: Any, **kwargs: Any) -> Any:
            if before in kwargs:
                if now in kwargs:
                    raise TypeError(f"{now} and {before}, its former name, are both given")
                warnings.warn(f"the argument {before} is called {now}", FutureWarning, stacklevel=2)
                kwargs[now] = kwargs.pop(before)
            return function(*args, **kwargs)

        return cast(Function, taking_both)

    return decorate
