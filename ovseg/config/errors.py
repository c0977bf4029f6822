"""Errors in configurations, as one sentence."""

from __future__ import annotations

import ast
import contextlib
import difflib
import operator
import re
from collections.abc import Iterator

import yaml

from ovseg.config.values import leaves
from ovseg.errors import OvsegError
from ovseg.io.plain_yaml import one_line


@contextlib.contextmanager
def explain_config_errors(cfg: dict, source: str, text: str = "") -> Iterator[None]:
    """Convert the exceptions of yacs, fvcore and PyYAML to :class:`OvsegError`.

    Args:
        cfg: the configuration that is being changed; the error suggests the most similar of its keys.
        source: origin of the values, for the message.
        text: YAML that is being read.
    """
    try:
        yield
    except yaml.constructor.ConstructorError as error:
        if ":python/" not in str(error.problem):
            raise OvsegError(f"{source} is not valid YAML: {one_line(error)}") from error
        raise OvsegError(_explain_tag(error, source, text)) from error
    except yaml.YAMLError as error:
        raise OvsegError(f"{source} is not valid YAML: {one_line(error)}") from error
    except (KeyError, AssertionError) as error:
        raise OvsegError(_explain_key(cfg, source, str(error.args[0]) if error.args else "")) from error
    except ValueError as error:
        raise OvsegError(f"{source}: {error}") from error


def _explain_key(cfg: dict, source: str, message: str) -> str:
    match = re.search(r"[Nn]on-existent (?:config )?key: (.*)", message, re.DOTALL)
    if match:
        nearest = difflib.get_close_matches(match[1], [key for key, _ in leaves(cfg)], n=1, cutoff=0.6)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        if nearest == [match[1]]:
            hint = f"; write its parts below each other, as in {': {'.join(nearest[0].split('.'))}: ...}}"
        return f"unknown configuration key {match[1] or repr(match[1])} in {source}{hint}"
    return f"{source}: {message}"


def _explain_tag(error: yaml.constructor.ConstructorError, source: str, text: str) -> str:
    mark = error.problem_mark
    where = f"{source}, line {mark.line + 1}" if mark else source
    message = f"{where}: YAML that runs code is refused ({' '.join(str(error.problem).split())})"
    line = text.split("\n")[mark.line] if mark and text else ""
    expression = re.search(r"eval\s*\[\s*([\"'])(.*)\1\s*\]", line)
    plain = _plain_list(expression[2]) if expression else None
    return f"{message}: write the plain list instead" + (f": {plain}" if plain is not None else "")


_OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def _plain_list(expression: str) -> list | None:
    """Return the value of ``[arithmetic of x for x in range(...)]`` without running it as code; else None."""
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
