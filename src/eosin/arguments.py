"""From the words of a command line to a call: a verb's arguments are those of its function.

What is wrong with them is told in one line. The parser, tyro, would tell it in a box of several; what can be known
before it is asked is therefore checked before, and what it says is cut to its first sentence.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import itertools
import operator
import re
import shlex
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eosin import __version__
from eosin.core.errors import EosinError, nearest

__all__ = ["command_line", "listed", "output", "print_help", "print_verb_help", "read", "say"]

Verb = Callable[..., int]

output = Console(highlight=False)
"""Standard output."""


def read(name: str, verb: Verb, words: Sequence[str]) -> Callable[[], int]:
    """Bind a verb's arguments.

    Args:
        name: How the verb is called.
        verb: Its function. If it has a parameter `field`, options that it does not know are taken as fields.
        words: The words after the verb.

    Returns:
        The verb with its arguments.

    Raises:
        EosinError: If the words do not fit.
    """
    words = _with_fields(words, _options(verb)) if "--field" in _options(verb) else words
    _check_options(name, verb, words)

    @functools.wraps(verb)
    def bind(*given: Any, **options: Any) -> Callable[[], int]:
        return functools.partial(verb, *given, **options)

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(bind, prog=f"eosin {name}", args=words)
    except SystemExit:
        lines = [line.strip(" │─-") for line in said.getvalue().splitlines()[1:]]
        said_first = itertools.takewhile(bool, itertools.dropwhile(operator.not_, lines))
        problem = " ".join(said_first).removesuffix(".")
        problem = re.sub(
            r"no type matching \S*\|(\w+) could be instantiated from \['(.*)'\]", r"'\2' is no \1", problem
        )
        problem = problem or "the arguments cannot be read"
        raise EosinError(f"eosin {name}: {problem}; see `eosin {name} --help`") from None


def command_line() -> str:
    """Return the command as it can be pasted into a shell."""
    return shlex.join(["eosin", *sys.argv[1:]])


def say(line: str) -> None:
    """Print a closing line as it is: cut at the terminal's width, a path could not be copied."""
    output.print(line, markup=False, soft_wrap=True)


def listed(text: str) -> list[str]:
    """Split an argument that holds several, separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _options(verb: Verb) -> set[str]:
    parameters = inspect.signature(verb).parameters.values()
    return {f"--{p.name.replace('_', '-')}" for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _repeatable(verb: Verb) -> set[str]:
    """Options that may be given several times: those annotated with tyro's UseAppendAction."""
    hints = typing.get_type_hints(verb, include_extras=True)
    marked = {name for name, hint in hints.items() if typing.get_origin(hint) is Annotated}
    append = typing.get_args(tyro.conf.UseAppendAction[int])[1:]
    return {f"--{name.replace('_', '-')}" for name in marked if set(append) & set(typing.get_args(hints[name])[1:])}


def _takes_paths(verb: Verb) -> bool:
    """Whether words that are no options are paths."""
    hints = typing.get_type_hints(verb)
    words = [
        p.name for p in inspect.signature(verb).parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    return any(hints[word] is Path or Path in typing.get_args(hints[word]) for word in words)


def _check_options(name: str, verb: Verb, words: Sequence[str]) -> None:
    """Refuse an unknown or missing option in one line, before the parser would in several."""
    signature = inspect.signature(verb)
    known = _options(verb)
    given = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    for option in sorted(given - known):
        hint = nearest(option, known) if known else f"see `eosin {name} --help`"
        raise EosinError(f"eosin {name}: unknown option '{option}'; {hint}")
    for option in sorted(given):
        places = [at for at, word in enumerate(words) if word.partition("=")[0].replace("_", "-") == option]
        if len(places) > 1 and option not in _repeatable(verb):
            raise EosinError(f"eosin {name}: {option} is given twice; keep one")
        if option != "--field" and [*words[places[0]].split("=")[1:], *words[places[0] + 1 :]][:1] == [""]:
            raise EosinError(f"eosin {name}: the value of {option} is empty; give one")
    if "" in words and _takes_paths(verb):
        # It would be the current folder.
        raise EosinError(f"eosin {name}: a path is empty, as of a shell variable that is not set; give one")
    required = [
        f"--{p.name.replace('_', '-')}"
        for p in signature.parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is inspect.Parameter.empty
    ]
    missing = [option for option in required if option not in given]
    if missing:
        raise EosinError(f"eosin {name}: {', '.join(missing)} missing; see `eosin {name} --help`")


def _with_fields(words: Sequence[str], known: set[str]) -> list[str]:
    """Rewrite `--a.b value`, for options that are not the verb's own, as `--field a.b=value`."""
    rewritten: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        name, separator, value = word.partition("=")
        if not word.startswith("--") or name in known:
            rewritten.append(word)
            continue
        if not separator:
            if position == len(words) or words[position].startswith("--"):
                raise EosinError(f"{name} needs a value: {name} VALUE")
            value = words[position]
            position += 1
        rewritten += ["--field", f"{name[2:]}={value}"]
    return rewritten


def print_help(verbs: Mapping[str, Verb]) -> None:
    """Print a line for each verb."""
    output.print(f"[bold]eosin {__version__}[/bold]: pre-train image encoders on H&E tiles, and measure any encoder\n")
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, verb in verbs.items():
        table.add_row(f"  [bold]eosin {name}[/bold]", escape((verb.__doc__ or "").strip().splitlines()[0]))
    output.print(table)
    output.print("\nA verb's arguments: eosin VERB --help. --debug shows the traceback of an error.")


def print_verb_help(name: str, verb: Verb, words: Sequence[str]) -> None:
    """Print a verb's arguments; for `pretrain`, the recipes too, or the fields of the one that is named."""
    with contextlib.suppress(SystemExit):
        tyro.cli(verb, prog=f"eosin {name}", args=["--help"])
    if name == "pretrain":
        _recipe_help(next((word for word in words if not word.startswith("-")), None))


def _recipe_help(name: str | None) -> None:
    from eosin.pretrain import load_recipe, recipe_names

    if name is None:
        table = Table(title="Recipes", title_justify="left", show_header=False)
        for recipe in recipe_names():
            table.add_row(recipe, escape(load_recipe(recipe).summary))
        output.print(table)
        return
    from eosin.core.config import describe_fields

    table = Table(title=f"Fields of {name}", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("field", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("meaning")
    for field, value, meaning in describe_fields(load_recipe(name)):
        table.add_row(f"--{field}", escape(str(value)), escape(meaning))
    output.print(table)
