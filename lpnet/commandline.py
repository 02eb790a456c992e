"""From command line and YAML files to a `Config`, by jsonargparse over its dataclasses.

    defaults  <  preset  <  --config files, in order  <  --section.key of the command line

A layer that makes a choice (``--solver.forward.kind serial``, ``--optimizer.name sgd``, ``--training.epochs 3``) also
takes back what the layers below it gave for another choice (``cycles``, ``betas``, ``steps``); what contradicts itself
within one layer is an error, and a layer that chooses nothing takes nothing back. Whatever cannot be used is an
`InputError` of one line.
"""

import argparse
import dataclasses
import difflib
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from lpnet import dynamics, steppers
from lpnet.asked import Resume, Trial, resume_of, trial_of
from lpnet.choices import SCHEDULES, SOLVERS, solver_options
from lpnet.config import LAYER_KEYS, STEPPER_KEYS, Config, as_dict, fitting_steppers, trunk_options
from lpnet.errors import InputError
from lpnet.fabrics import FABRICS
from lpnet.launch import Answer
from lpnet.optimizers import OPTIMIZERS, SEARCHING, WHOLE_BATCH, optimizer_options
from lpnet.presets import PRESETS
from lpnet.version import __version__

Flat = dict[str, Any]  # "trunk.layers" -> value
Parsed = TypeVar("Parsed")

DEFAULT_PRESET = "peaks"
_ANSWERS = ("help", "version", "print_config")


def parse(arguments: Sequence[str]) -> Config:
    """The configuration that the arguments of ``lpnet.train`` ask for, resolved.

    Raises:
        InputError: a key, value or file that cannot be used.
        Answer: help, version or configuration were asked for.
    """
    return parse_run(arguments)[0]


def parse_run(arguments: Sequence[str]) -> tuple[Config, Trial | None]:
    """The same, and the dry run that they ask for instead of training; None: they ask for none."""
    given = _given(arguments)
    wants = [key for key in _ANSWERS if given.pop(key, False)]
    given.pop("resume", None)  # of no interest to an answer
    trial = trial_of(given)
    layers = [_file(path) for path in given.pop("config", None) or []] + [_checked(given)]
    preset = DEFAULT_PRESET
    for layer in layers:
        named = layer.pop("preset", None)
        preset = preset if named is None else named
    if preset not in PRESETS:
        raise InputError(f"preset: {preset!r} given, one of {', '.join(PRESETS)} allowed")
    values = overlay(_flat(as_dict(Config())), _flat(PRESETS[preset]))
    if wants and wants[0] != "print_config":
        raise Answer(_help(values) if wants[0] == "help" else f"lpnet {__version__}")
    for layer in layers:
        values = overlay(values, layer)
    config = _made(Config, _nested(values | {"preset": preset})).resolved()
    if wants:
        raise Answer(dump(config))
    return config, trial


def parse_resume(arguments: Sequence[str]) -> Resume | None:
    """The run that the arguments ask to go on with; None: they ask for something else.

    Raises:
        InputError: an argument that cannot be used.
    """
    if not any(argument.partition("=")[0] == "--resume" for argument in arguments):
        return None
    given = _given(arguments)
    return None if any(given.get(key) for key in _ANSWERS) else resume_of(given)


def _given(arguments: Sequence[str]) -> Flat:
    return _flat(one_line(lambda: _parser().parse_args(list(arguments), defaults=False)))


def from_mapping(values: Mapping[str, Any]) -> Config:
    """The configuration of nested dicts (such as `as_dict` makes), with types and values checked."""
    one_line(lambda: _parser().parse_object(dict(values), defaults=False))
    return _made(Config, values)


def dump(config: Config) -> str:
    """The configuration as YAML, which ``--config`` reads."""
    return str(yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True))


def overlay(lower: Flat, upper: Flat) -> Flat:
    """The values of `upper` over those of `lower`, without those of `lower` that belong to choices which are undone."""
    defaults = _flat(as_dict(Config()))
    undone = {key: defaults[key] for key in _undone(lower, upper)}
    before, after = lower["optimizer.name"], upper.get("optimizer.name", lower["optimizer.name"])
    if (after in SEARCHING) != (before in SEARCHING):  # a first step to try is not of the order of other rates
        undone["optimizer.lr"] = 1.0 if after in SEARCHING else defaults["optimizer.lr"]
    if after in WHOLE_BATCH and before not in WHOLE_BATCH:
        undone["training.batch"] = None
    for one, other in (("training.steps", "training.epochs"), ("training.epochs", "training.steps")):
        if upper.get(one) is not None:
            undone[other] = None
    return lower | undone | upper


def _undone(lower: Flat, upper: Flat) -> Iterator[str]:
    """Keys of `lower` that what `upper` chooses makes meaningless."""
    if upper.get("data.name", lower["data.name"]) != lower["data.name"]:
        yield from (key for key in lower if key.startswith("data.") and key != "data.name")
    choices: tuple[tuple[str, str, Mapping[str, Any], Callable[[str], Mapping[str, Any]]], ...] = (
        ("solver.forward", "kind", SOLVERS, solver_options),
        ("solver.adjoint", "kind", SOLVERS, solver_options),
        ("optimizer", "name", OPTIMIZERS, lambda name: optimizer_options(name) | {"clip": None}),
        ("schedule", "name", SCHEDULES, lambda name: SCHEDULES[name] | {"warmup": 0}),
    )
    for section, choice, known, options in choices:
        chosen = upper.get(f"{section}.{choice}")
        if isinstance(chosen, str) and chosen in known:
            own = {choice, *options(chosen)}
            yield from (key for key in lower if key.startswith(section + ".") and key.rpartition(".")[2] not in own)
    if upper.get("training.method", lower["training.method"]) != lower["training.method"]:
        yield from (f"solver.{which}.{key}" for which in ("forward", "adjoint") for key in ("cycles", "initial"))
    levels, shares = upper.get("multilevel.levels"), lower["multilevel.shares"]
    if levels is not None and shares is not None and len(shares) != levels:
        yield "multilevel.shares"
    yield from _undone_trunk(lower, upper)


def _undone_trunk(lower: Flat, upper: Flat) -> Iterator[str]:
    if upper.get("trunk.controls", 1) is None:
        yield "trunk.basis"
    if not {"trunk.dynamics", "trunk.stepper"} & upper.keys():
        return
    name = upper.get("trunk.dynamics", lower["trunk.dynamics"])
    stepper = upper.get("trunk.stepper", lower["trunk.stepper"])
    if name not in dynamics.REGISTRY or stepper not in (None, *steppers.REGISTRY):
        return
    fitting = fitting_steppers(name)
    if stepper not in fitting:
        yield "trunk.stepper"
        stepper = fitting[0]
    own, kind = trunk_options(name, stepper), steppers.REGISTRY[stepper]
    yield from (f"trunk.{key}" for key in LAYER_KEYS + STEPPER_KEYS if key not in own)
    if not kind.reversible and lower["trunk.store"] == "reverse":
        yield "trunk.store"
    if not kind.continuous:
        yield "trunk.gradient"
    if not kind.takes_passes:
        yield from (f"solver.{which}.passes" for which in ("forward", "adjoint"))


# ---- jsonargparse --------------------------------------------------------------------------------------------------


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="lpnet.train",
        usage="[mpirun -n P] python -m lpnet.train [PRESET] [--config FILE.yaml] [--section.key VALUE ...]",
        description="Train a very deep residual network in parallel over its layers.",
        exit_on_error=False,
        allow_abbrev=False,
        add_help=False,
        print_config=None,
    )
    parser.add_argument("preset", nargs="?", type=str, help=f"{', '.join(PRESETS)} ({DEFAULT_PRESET} if none is given)")
    parser.add_argument("--config", action="append", type=str, help="YAML file with keys of the sections below")
    # Plain flags, since what they print depends on all the other arguments, and rank 0 alone prints.
    parser.add_argument("-h", "--help", action="store_true", help="print this, with the defaults of the preset")
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--print_config", action="store_true", help="print the whole configuration as YAML")
    parser.add_argument("--dry-run", action="store_true", help="train nothing: print what the run would take")
    parser.add_argument("--ranks", type=str, help="of a dry run: number of ranks (those there are)")
    parser.add_argument("--fabric", type=str, help=f"of a dry run: interconnect, {', '.join(FABRICS)} (default)")
    parser.add_argument("--resume", type=str, help="go on with the run of this folder, on any number of ranks")
    for section in dataclasses.fields(Config):
        if section.name != "preset":
            parser.add_argument(f"--{section.name}", type=section.type, default=getattr(Config(), section.name))
    return parser


def _help(values: Flat) -> str:
    parser = _parser()
    parser.set_defaults({key: value for key, value in values.items() if key in leaves()})
    return str(parser.format_help())


def _file(path: str) -> Flat:
    """The values that a YAML file gives."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"--config: {path!r} given ({reason}), a readable YAML file allowed") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--config: {path!r} given, which is not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, Mapping):
        raise InputError(f"--config: {path!r} given, no mapping; lines like 'trunk:', '  layers: 64' allowed")
    try:
        values = _flat(one_line(lambda: _parser().parse_string(text, defaults=False)))
        return _checked({key: value for key, value in values.items() if not (value is None and key in _sections())})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _flat(values: Mapping[str, Any] | Namespace, prefix: str = "") -> Flat:
    found: Flat = {}
    for key, value in vars(values).items() if isinstance(values, Namespace) else values.items():
        if isinstance(value, Namespace | Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + str(key)] = value
    return found


def _nested(values: Flat) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        *path, leaf = key.split(".")
        place = found
        for part in path:
            place = place.setdefault(part, {})
        place[leaf] = value
    return found


def _checked(values: Flat) -> Flat:
    """Refuse what jsonargparse lets pass: a section that is no mapping, and flags of the command line in a file."""
    for key, value in values.items():
        if key in _sections():
            raise InputError(f"{key}: {value!r} given, a mapping of its keys allowed")
        if key not in leaves() and key != "preset":
            raise InputError(_unknown(key))
    return values


def _made(kind: type[Parsed], values: Mapping[str, Any]) -> Parsed:
    """The dataclass of this type from nested dicts; lists become tuples."""
    made = {}
    for key, hint in get_type_hints(kind).items():
        if key in values:
            value = values[key]
            part = _made(hint, value) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else value
            made[key] = tuple(part) if isinstance(part, list) else part
    return kind(**made)


def leaves(kind: Any = Config, prefix: str = "") -> dict[str, Any]:
    """All keys of the sections, "trunk.layers" and so on, with their types."""
    found: dict[str, Any] = {}
    for key, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= leaves(hint, f"{prefix}{key}.")
        elif prefix:
            found[prefix + key] = hint
    return found


def _sections() -> set[str]:
    return {key.rpartition(".")[0] for key in leaves()} | {"solver"}


# ---- errors in one line --------------------------------------------------------------------------------------------


def one_line(parse: Callable[[], Parsed]) -> Parsed:
    """Call jsonargparse, and turn its errors into one line in the form of all others."""
    try:
        return parse()
    except (ArgumentError, argparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        raise InputError(_said(str(error))) from None


def _said(message: str) -> str:
    """What an error of jsonargparse says, as key, value given, values allowed."""
    wrong = re.search(r'Parser key "([^"]+)":', message)
    if wrong and wrong[1] in leaves():
        given = re.search(r"Got value: (.*)|Given value: (.*)", message)
        value = str(given[1] or given[2]) if given else "an unusable value"
        return f"{wrong[1]}: {value} given, {_words(leaves()[wrong[1]])} allowed"
    if wrong and wrong[1] in _sections():
        return f"{wrong[1]}: no mapping of its keys given; give them as --{wrong[1]}.KEY VALUE"
    for pattern in (r"unrecognized arguments: (\S+)", r"Option '(.*)' is not accepted"):
        if unknown := re.search(pattern, message):
            return _unknown(unknown[1])
    if unknown := re.search(r"Group '(.*)' does not accept option '(.*)'", message):
        return _unknown(f"{unknown[1]}.{unknown[2]}")
    if missing := re.search(r"argument (?:-\w/)?--(\S+): expected one argument", message):
        hint = leaves().get(missing[1])
        return f"{missing[1]}: nothing given, {_words(hint) if hint else 'a value'} needed"
    return " ".join(message.split())


def _unknown(argument: str) -> str:
    key = argument.lstrip("-").partition("=")[0]
    if key == "preset":
        return f"{argument}: unknown key; a preset is named without it, as in lpnet.train {DEFAULT_PRESET}"
    if not argument.startswith("-") and key not in leaves() and "." not in key and key not in _sections():
        known = f"one preset and options --section.key allowed (sections: {', '.join(sorted(_sections()))})"
        return f"{argument}: unknown, {known}"
    close = difflib.get_close_matches(key, leaves(), n=1, cutoff=0.75)
    section = key.rpartition(".")[0]
    own = [leaf for leaf in leaves() if leaf.rpartition(".")[0] == section] or sorted(_sections())
    return f"{key}: unknown key, " + (f"did you mean {close[0]}?" if close else f"allowed: {', '.join(own)}")


def _words(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_words(part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list of numbers" if get_args(hint)[-1] is Ellipsis else f"a list of {len(get_args(hint))} numbers"
    plain = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", type(None): "null"}
    return plain.get(hint, str(hint))
