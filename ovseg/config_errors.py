"""What went wrong in a configuration file, said in one sentence."""

from __future__ import annotations

import ast
import contextlib
import difflib
import operator
import re
from collections.abc import Iterator

import yaml

from ovseg.errors import OvsegError


@contextlib.contextmanager
def explain_config_errors(cfg: dict, source: str) -> Iterator[None]:
    """Turn the exceptions of yacs, fvcore and PyYAML into :class:`OvsegError`.

    Args:
        cfg: the configuration that is being changed; its keys are what an unknown key is compared with.
        source: where the values come from, for the message.
    """
    try:
        yield
    except yaml.constructor.ConstructorError as error:
        raise OvsegError(_explain_tag(error, source)) from error
    except yaml.YAMLError as error:
        raise OvsegError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError) as error:
        raise OvsegError(f"{source}: cannot read it ({error}): check the path given as --config-file") from error
    except (KeyError, AssertionError) as error:
        raise OvsegError(_explain_key(cfg, source, str(error.args[0]) if error.args else "")) from error
    except ValueError as error:
        raise OvsegError(f"{source}: {error}") from error


def _explain_key(cfg: dict, source: str, message: str) -> str:
    match = re.search(r"[Nn]on-existent (?:config )?key: ([\w.]+)", message)
    if match:
        nearest = difflib.get_close_matches(match[1], list(_dotted_keys(cfg)), n=1, cutoff=0.6)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        return f"unknown configuration key {match[1]} in {source}{hint}"
    if "does not exist" in message:
        return f"{message.rstrip('!')}: check the path given as --config-file"
    if "Override list has odd length" in message:
        return f"{source} must be pairs of KEY and VALUE: {message}"
    return f"{source}: {message}"


def _dotted_keys(node: dict, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _dotted_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _explain_tag(error: yaml.constructor.ConstructorError, source: str) -> str:
    mark = error.problem_mark
    where = f"{source}, line {mark.line + 1}" if mark else source
    text = f"{where}: YAML that runs code is refused ({' '.join(str(error.problem).split())})"
    expression = re.search(r"eval\s*\[\s*([\"'])(.*)\1\s*\]", _line(source, mark))
    plain = _plain_list(expression[2]) if expression else None
    return f"{text}: write the plain list instead" + (f": {plain}" if plain is not None else "")


def _line(source: str, mark: yaml.Mark | None) -> str:
    try:
        with open(source, encoding="utf-8") as file:
            return file.read().split("\n")[mark.line] if mark else ""
    except (OSError, UnicodeDecodeError, IndexError):
        return ""


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def _plain_list(expression: str) -> list | None:
    """Value of ``[arithmetic of x for x in range(...)]``, worked out without running it as code; else None."""
    try:
        body = ast.parse(expression, mode="eval").body
        if not isinstance(body, ast.ListComp) or len(body.generators) != 1 or body.generators[0].ifs:
            return None
        loop = body.generators[0]
        bounds = [_arithmetic(bound, {}) for bound in loop.iter.args]
        values = range(*bounds)
        return [_arithmetic(body.elt, {loop.target.id: x}) for x in values] if len(values) <= 1000 else None
    except (SyntaxError, AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _arithmetic(node: ast.expr, names: dict[str, int]) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.Name(id=name):
            return names[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_arithmetic(left, names), _arithmetic(right, names))
        case ast.Call(func=ast.Name(id="int" | "round" as name), args=[argument]):
            return {"int": int, "round": round}[name](_arithmetic(argument, names))
    raise ValueError("not plain arithmetic")
