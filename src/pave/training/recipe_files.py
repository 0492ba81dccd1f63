"""The YAML files behind a recipe: strict loading, ``extends``, files laid over a recipe, and overrides."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pave.utils.reading import read_text

_MAX_VALUES, _MAX_DEPTH, _MAX_FILES = 100_000, 50, 200
_MAX_BYTES, _MAX_ALL_BYTES = 128 * 2**10, 2**20
"""Of a file, and of all that a recipe extends together: the parser takes seconds for so much."""
_MOST = 2**63
"""No whole number of a recipe comes near."""
_TOO_MUCH = f"with its aliases it holds over {_MAX_VALUES} values, or is nested over {_MAX_DEPTH} deep"
EXTENDS = "extends"
"""The key under which a mapping of a recipe names the files that it starts from."""


def read_values(path: str | Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """The values of a recipe as plain mappings, lists and scalars, with all that it extends.

    A mapping at any depth may have the key ``extends``: a file, or a list of files, relative to the file that names it. The
    mapping starts with the values of those files, a later one laid over an earlier one, and its own values are laid over
    them. Laying over goes key by key where both values are mappings; everything else, lists too, is replaced as a whole.

    Args:
        path: the YAML file.
        overrides: in order, ``key.path=value`` (list items by number), or the name of a .yaml file that is laid over the recipe.

    Returns:
        The values, and what to call them in an error.

    Raises:
        ValueError: naming the file or the override and what is wrong with it.
    """
    reader = _Reader()
    values = reader.mapping(Path(path), (), "a recipe is a mapping with the keys base, patch, data, training and output")
    where = str(path) + (f" (extends {', '.join(map(str, reader.extended))})" if reader.extended else "")
    _refuse_repeated(overrides)
    for override in overrides:
        if "=" not in override and Path(override).suffix in (".yaml", ".yml"):
            over = reader.mapping(Path(override), (), "a file laid over a recipe is a mapping with some of its keys")
            values = _laid_over(values, over)
        else:
            set_value(values, override)
    return values, f"{where} with {' '.join(overrides)}" if overrides else where


def set_value(values: dict[str, Any], override: str) -> None:
    """Set one value of a recipe, in place.

    Args:
        values: of the recipe, as plain mappings, lists and scalars.
        override: ``key.path=value``, list items by number, the value in YAML.

    Raises:
        ValueError: naming the override and what is wrong with it.
    """
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ValueError(
            f"override {_short(override)}: expected key=value, such as training.learning_rate=1e-4, or a .yaml file"
        )
    _set(values, key.split("."), _load(value, f"override {_short(override)}: not a YAML value"), override)


class _Reader:
    """Reads files with what they extend. The number of files, values and bytes is limited, as every mapping may name further ones."""

    def __init__(self) -> None:
        self.extended: list[Path] = []
        self._values = self._files = self._bytes = 0

    def mapping(self, path: Path, chain: tuple[Path, ...], complaint: str) -> dict[str, Any]:
        """A file whose content is a mapping."""
        self._files += 1
        if self._files > _MAX_FILES:
            raise ValueError(f"{path}: more than {_MAX_FILES} files are named by {EXTENDS}")
        asked = f" ({EXTENDS} in {chain[-1]})" if chain else ""
        try:
            place = path.resolve()
            text = read_text(path, min(_MAX_BYTES, _MAX_ALL_BYTES - self._bytes))
        except (OSError, RuntimeError):  # links that lead round in a circle
            raise ValueError(f"{path}: cannot be read (its links lead round in a circle){asked}") from None
        except ValueError as error:
            raise ValueError(
                (str(error) if str(path) in str(error) else f"{str(path)!r}: cannot be read ({error})") + asked
            ) from None
        self._bytes += len(text)
        if place in chain:
            circle = " -> ".join(p.name for p in (*chain[chain.index(place) :], place))
            raise ValueError(f"{chain[-1]}: {EXTENDS} goes round in a circle: {circle}; take one of them out")
        values = self._resolved(_load(text, f"{path}: not valid YAML"), path, (*chain, place))
        if not isinstance(values, dict):
            raise ValueError(f"{path}: {complaint}")
        return values

    def _resolved(self, value: Any, path: Path, chain: tuple[Path, ...]) -> Any:
        self._values += 1
        if self._values > _MAX_VALUES:
            raise ValueError(f"{path}: with the files that it extends it holds over {_MAX_VALUES} values")
        if isinstance(value, list):
            return [self._resolved(item, path, chain) for item in value]
        if not isinstance(value, dict):
            return value
        own = {key: self._resolved(item, path, chain) for key, item in value.items() if key != EXTENDS}
        merged: dict[str, Any] = {}
        for name in _names(value[EXTENDS], path) if EXTENDS in value else ():
            parent = path.parent / name
            if parent not in self.extended:
                self.extended.append(parent)
            merged = _laid_over(merged, self.mapping(parent, chain, "a file that is extended is a mapping"))
        return _laid_over(merged, own)


def _names(value: Any, path: Path) -> list[str]:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise ValueError(f"{path}: {EXTENDS} is the name of a file or a list of them, got {value!r}")
    return names


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _laid_over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def _load(text: str, complaint: str) -> Any:
    """A YAML value; aliases and merged keys may not make it recursive or blow it up, and its numbers mean something.

    Raises:
        ValueError: beginning with ``complaint``.
    """
    loader = None
    try:
        if len(text) > _MAX_BYTES:
            raise ValueError(f"it is longer than {_MAX_BYTES:,} characters")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _measured(node, {})
        values = loader.construct_document(node)
        _check_whole_numbers(values)
    except RecursionError:
        raise ValueError(f"{complaint}: {_TOO_MUCH}") from None
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        # yaml itself lets errors of int(), of dates and of keys that cannot be keys through
        raise ValueError(f"{complaint}: {' '.join(str(error).split())}") from None
    finally:
        if loader is not None:
            loader.dispose()
    return values


def _measured(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node stands for, aliases written out, and how deep they are nested. Nothing is made of the node before: each
    alias of an alias multiplies."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _MAX_VALUES, _MAX_DEPTH  # met again inside of itself, it has no end
    parts = [node.value] if isinstance(node, yaml.SequenceNode) else node.value if isinstance(node, yaml.MappingNode) else []
    size, depth = 1, 0
    for child in (child for part in parts for child in part):
        child_size, child_depth = _measured(child, known)
        size, depth = size + child_size, max(depth, child_depth)
        if size > _MAX_VALUES or depth >= _MAX_DEPTH:
            raise ValueError(_TOO_MUCH)
    if isinstance(node, yaml.ScalarNode):
        _check_text_of_number(node)
    known[id(node)] = size, depth + 1
    return known[id(node)]


def _check_text_of_number(node: yaml.ScalarNode) -> None:
    """Refuse, before it is one, a number that would be infinite or take long to read."""
    if node.tag == "tag:yaml.org,2002:int" and len(node.value) > 64:
        raise ValueError(f"the number {node.value[:20]}... of {len(node.value):,} digits is too large")
    if node.tag == "tag:yaml.org,2002:float" and "inf" not in node.value.lower():
        with contextlib.suppress(ValueError):  # whatever else YAML takes for a number
            if math.isinf(float(node.value.replace("_", ""))):
                raise OverflowError(f"the number {node.value[:40]} is too large; write .inf where infinity is meant")


def _check_whole_numbers(values: Any) -> None:
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, int) and abs(value) >= _MOST:
            raise ValueError(f"the number {str(value)[:20]}... of {len(str(value)):,} digits is too large")
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _refuse_repeated(overrides: Sequence[str]) -> None:
    """A key that is set twice keeps one of two values, and nobody says which was meant."""
    seen: dict[str, str] = {}
    for override in overrides:
        key, separator, _ = override.partition("=")
        if separator and key in seen:
            raise ValueError(f"override {_short(override)}: {key[:100]} is set already, by {_short(seen[key])}; give it once")
        seen[key] = override


def _short(override: str) -> str:
    return repr(override if len(override) <= 100 else f"{override[:100]}...")


def _set(values: Any, keys: list[str], value: Any, override: str) -> None:
    for place, key in enumerate(keys):
        last = place + 1 == len(keys)
        if isinstance(values, list):
            if not key.isdigit() or int(key) >= len(values):
                raise ValueError(
                    f"override {_short(override)}: {'.'.join(keys[:place])} is a list of {len(values)}, it has no item {key!r}"
                )
            index: Any = int(key)
        elif isinstance(values, dict):
            index = key
            if not last and values.get(key) is None:
                values[key] = {}
        else:
            raise ValueError(f"override {_short(override)}: {'.'.join(keys[:place])} is {values!r:.100} and has no keys")
        if last:
            values[index] = value
        else:
            values = values[index]


class _Loader(yaml.SafeLoader):
    """YAML by the scalars of version 1.2 (its core schema, decimal only), in which a key given twice is an error.

    By those of 1.1, ``yes`` is true, ``1:30`` is 90, ``010`` is 8 and ``2024-05-01`` a date; here all of them are text. ``1e-4`` is a
    number (1.1 wants ``1.0e-4``), and ``1e3`` a whole one.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Stops at once where it is too deep: the parser takes the longer the deeper it is."""
        self._depth += 1
        if self._depth > _MAX_DEPTH + 1:
            raise ValueError(_TOO_MUCH)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise ValueError(f"merged keys (<<) are not read; name a file with {EXTENDS}")
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_float(self, node: Any) -> Any:
        whole = re.fullmatch(r"([-+]?[0-9]{1,15})[eE]\+?([0-9]{1,2})", node.value)
        return int(whole[1]) * 10 ** int(whole[2]) if whole else super().construct_yaml_float(node)


class _Dumper(yaml.SafeDumper):
    """Puts text in quotes that either version of YAML would take for something else."""


_Loader.yaml_implicit_resolvers = {}  # without those of version 1.1
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("merge", r"^<<$", "<"),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def write_values(values: Any) -> str:
    """Plain mappings, lists and scalars as the text of a recipe, which ``read_values`` reads as the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
