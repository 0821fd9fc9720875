"""Training configs: YAML files with `includes`, and entries by dotted key.

Every command reads them here, so that a config which sweeps also trains. An included path counts from the working
directory, or else from the including file. A key that two included files set is an error; a file's own keys go
before what it includes.
"""

import ast
import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fairchem_piwsl.errors import UserError
from fairchem_piwsl.kinds import closest

#: the files of configs/s2ef/methods, which lie in the package too
METHODS = Path(__file__).parent / "methods"
#: settings of optim.piwsl that are about the data and the report, which every method keeps
KEPT = ("energy_unit", "share_graph", "validate_consistency")
#: upstream's trainers for energies and forces
STOCK_TRAINERS = ("ocp", "forces", "equiformerv2_forces")


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a key stands once in its block, and 1e-3 is a number."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A block; a key that stands in it twice is an error."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node; an alias to one that is not complete yet would hold itself."""
        node = super().compose_node(parent, index)
        if node is not None and node.end_mark is None:
            raise yaml.MarkedYAMLError(problem="an alias holds itself", problem_mark=node.start_mark)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?|\.\d)[\d_]*[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """A YAML file that must hold a mapping; `what` names its role in errors.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist: check the path.") from None
    except IsADirectoryError:
        raise UserError(f"{what} {path} is a folder: name a YAML file in it.") from None
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is not UTF-8 text: check the path, or save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read ({error.strerror}): check the path.") from None
    content = _parse(text, f"{what} {path}")
    if content is None:
        raise UserError(f"{what} {path} is empty: check the path.")
    if not isinstance(content, dict):
        kind = {"list": "a list", "str": "text"}.get(type(content).__name__, type(content).__name__)
        raise UserError(f"{what} {path} must be a block of keys, not {kind}: write 'key: value' lines.")
    return content


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise UserError(f"{where} is nested too deeply: correct its brackets.") from None
    # values that no type takes, such as a 13th month, leave PyYAML as errors of all kinds
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{where}{line} is not valid YAML ({problem}): correct it there.") from error


def load_config(path: Path, above: Sequence[Path] = ()) -> dict[str, Any]:
    """A training config with its `includes`, merged as fairchem does; `above` are the files that include it.

    Raises:
        UserError: a file is missing or is not YAML, includes itself, or two included files set the same key.
    """
    config = read_yaml(path, "config")
    if path.resolve() in above:
        raise UserError(f"config {path} includes itself: remove the circle from its 'includes'.")
    names = config.pop("includes", None)
    included = load_parts(path, names, "includes", (*above, path.resolve())) if names is not None else {}
    return merge(included, config)


def load_parts(path: Path, names: Any, key: str = "includes", above: Sequence[Path] = ()) -> dict[str, Any]:
    """The files that `key` of the file `path` lists, each with its own includes, as one config."""
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{path}: '{key}' must be a list of files, as in '{key}: [base.yml]'.")
    parts = []
    for name in names:
        candidates = [Path(name), path.parent / name]
        found = next((p for p in candidates if p.is_file()), None)
        if found is None:
            problem = "is a folder" if any(p.is_dir() for p in candidates) else "does not exist"
            raise UserError(f"{path}: {name} {problem}; correct '{key}' there.")
        parts.append((name, load_config(found, above)))
    for (first, one), (second, other) in itertools.combinations(parts, 2):
        for twice in _shared(one, other):
            raise UserError(f"{path}: {first} and {second} both set '{twice}'; remove it from one of them.")
    merged: dict[str, Any] = {}
    for _, part in parts:
        merged = merge(merged, part)
    return merged


def _shared(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """Dotted keys that both set, but for blocks that both have."""
    for key in sorted(one.keys() & other.keys(), key=str):
        if isinstance(one[key], Mapping) and isinstance(other[key], Mapping):
            yield from (f"{key}.{name}" for name in _shared(one[key], other[key]))
        else:
            yield str(key)


def read_config(
    path: Path, overrides: Sequence[str] = (), method: str | None = None, data: Path | None = None
) -> dict[str, Any]:
    """A config with what the command line lays over it: a data set, a method, then `--key=value`."""
    config = load_config(path)
    config = with_data(config, data) if data else config
    return with_overrides(with_method(config, method) if method else config, overrides)


def with_data(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config on another data set, in eV, with nothing of its own block `dataset`.

    Paths are those of `folder`, wherever it was when it was written. Its `dataset.yml` stands for it.

    Raises:
        UserError: the folder has no data set that `piwsl prepare` wrote for fairchem 1.10.
    """
    folder = folder.parent if folder.name == "dataset.yml" else folder
    if not folder.is_dir():
        raise UserError(
            f"--data {folder} is a file: turn structures into a folder by `piwsl prepare {folder} --out FOLDER`, and "
            "give that."
            if folder.exists()
            else f"--data {folder} does not exist: give the folder of --out of `piwsl prepare`."
        )
    path = folder / "dataset.yml"
    block = read_yaml(path, "the data set's").get("dataset") if path.is_file() else None
    if not isinstance(get_value(block, "train.src"), str):
        raise UserError(
            f"--data {folder} has no {path.name} of `piwsl prepare`: give the folder of its --out."
        )
    result = {**config, "dataset": moved(block, data_folder({"dataset": block}), folder)}
    if get_value(config, "optim.piwsl.energy_unit"):
        result = with_values(result, {"optim.piwsl.energy_unit": "eV"})
    return result


def data_folder(config: Mapping[str, Any]) -> Path:
    """Folder that `piwsl prepare` wrote: that of `train/data.lmdb`."""
    return Path(config["dataset"]["train"]["src"]).parent.parent


def moved(block: Any, old: Path, new: Path) -> Any:
    """A block of a config whose files (`src`, `file`) below the folder `old` are those of the folder `new`."""
    if not isinstance(block, Mapping):
        return block
    result = {key: moved(value, old, new) for key, value in block.items()}
    for key in ("src", "file"):
        path = result.get(key)
        if isinstance(path, str) and Path(path).is_relative_to(old):
            result[key] = str(new / Path(path).relative_to(old))
    return result


def with_method(config: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The config with another method of training.

    Args:
        config: any S2EF config; the stock trainer gives way to the plugin's.
        method: name of a file in `configs/s2ef/methods`, or path of such a file, whose `optim.piwsl` takes the place
            of the config's and whose other keys are laid over it; `piwsl` leaves the config's own weak terms.

    Raises:
        UserError: the method is not known, or is `piwsl` and the config has no weak terms.
    """
    own = get_value(config, "optim.piwsl") or {}
    if not isinstance(own, Mapping):
        raise UserError(f"optim.piwsl must be a block of settings, not {own!r}.")
    if method == "piwsl":
        if not any(own.get(key) for key in ("c_pitc", "c_pisc", "auto")):
            raise UserError(
                "--method piwsl: the config has no weak terms; set optim.piwsl.c_pitc there, or optim.piwsl.auto: true."
            )
        return dict(config)
    laid_over = load_config(_method_file(method))
    kept = {key: own[key] for key in KEPT if key in own}
    result = merge(with_values(config, {"optim.piwsl": kept}), laid_over)
    if result.get("trainer", STOCK_TRAINERS[0]) in STOCK_TRAINERS:
        result["trainer"] = "fairchem_piwsl.trainer.PIWSLForcesTrainer"
    return result


def _method_file(method: str) -> Path:
    known = {path.stem: path for path in METHODS.glob("*.yml")}
    if method in known:
        return known[method]
    if Path(method).suffix in (".yml", ".yaml"):
        return Path(method)
    close = closest(method, [*known, "piwsl"])
    hint = f"did you mean {close}?" if close else "or give the path of a YAML file."
    raise UserError(f"--method {method} is not one of {', '.join(sorted({*known, 'piwsl'}))}; {hint}")


def with_overrides(config: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """A copy of `config` changed by `--optim.batch_size=4` and the like; a block is merged into the one there is.

    Raises:
        UserError: an argument has no key or value, or its key leads through something that is no block.
    """
    result = dict(config)
    for argument in arguments:
        key, equals, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not key or not equals or not text.strip():
            raise UserError(
                f"'{argument}' is not understood; an override is --key=value, as --optim.batch_size=4."
            )
        value, old = parse_value(text, argument), get_value(result, key)
        both = isinstance(value, Mapping) and isinstance(old, Mapping)
        result = with_values(result, {key: merge(old, value) if both else value})  # type: ignore[arg-type]
    return result


#: words of YAML and Python for the same
_WORDS = {"true": True, "false": False, "null": None, "none": None}


def parse_value(text: str, where: str) -> Any:
    """The value in an override: a Python or YAML number, list or block, true, false, None, or else text."""
    if text.strip().lower() in _WORDS:
        return _WORDS[text.strip().lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return _parse(text, where) if text.lstrip()[0] in "[{" else text
    plain = isinstance(value, (bool, int, float, str, list, dict, type(None)))
    return value if plain else list(value) if isinstance(value, tuple) else text


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`low` with the entries of `high` laid over it, block by block."""
    result = dict(low)
    for key, value in high.items():
        old = result.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        result[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return result


def entries(config: Any, above: str = "", in_lists: bool = True) -> Iterator[tuple[str, Any]]:
    """Dotted key and value of all that stands in a config, blocks included; entries of lists count from 0."""
    if isinstance(config, Mapping):
        inside: Any = config.items()
    else:
        is_list = isinstance(config, Sequence) and not isinstance(config, str | bytes)
        inside = enumerate(config) if in_lists and is_list else ()
    for name, value in inside:
        key = f"{above}.{name}" if above else str(name)
        yield key, value
        yield from entries(value, key, in_lists)


def with_values(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `config` with the entries at dotted keys replaced; blocks on the way are made.

    Not OmegaConf's update, which puts a block in the place of a value on the way without a word.

    Raises:
        UserError: a key has an empty part, leads through a value, or counts further than its list.
    """
    result: dict[str, Any] = copy.deepcopy(dict(config))
    for key, value in values.items():
        *path, last = key.split(".")
        block: Any = result
        for depth, name in enumerate(path):
            place = _place(block, name, key, ".".join(path[:depth]))
            inner = block.get(place) if isinstance(block, dict) else block[place]
            block[place] = {} if inner is None else copy.copy(inner)  # an alias may put it elsewhere too
            block = block[place]
        block[_place(block, last, key, ".".join(path))] = copy.deepcopy(value)
    return result


def _place(block: Any, name: str, key: str, above: str) -> Any:
    """What `name`, a part of the dotted `key`, is in the block at the dotted key `above`."""
    if not name:
        raise UserError(f"'{key}' is not a dotted key: write it as optim.batch_size.")
    if isinstance(block, list):
        if not re.fullmatch(r"\d+", name) or int(name) >= len(block):
            raise UserError(
                f"'{key}': {above} is a list of {len(block)}, counted from 0; write the number of an entry."
            )
        return int(name)
    if not isinstance(block, dict):
        raise UserError(f"'{key}': {above} is {block!r} and holds no keys; correct the key.")
    return name


def get_value(config: Any, key: str, default: Any = None) -> Any:
    """The entry at a dotted key, or `default`."""
    for name in key.split("."):
        try:
            config = config[int(name)] if isinstance(config, list) else config[name]
        except (KeyError, IndexError, TypeError, ValueError):
            return default
    return config
