"""From command line and YAML files to a `Config`, by jsonargparse over its dataclasses.

    defaults  <  preset  <  --config files, in order  <  --section.key of the command line

A layer that makes a choice (``--solver.forward.kind serial``, ``--optimizer.name sgd``, ``--training.epochs 3``) also
takes back what the layers below it gave for another choice (``cycles``, ``betas``, ``steps``); what contradicts itself
within one layer is an error, and a layer that chooses nothing takes nothing back. Whatever cannot be used is an
`InputError` of one line.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from lpnet import dynamics, steppers, yamltext
from lpnet.asked import Resume, Trial, resume_of, trial_of
from lpnet.choices import SCHEDULES, SOLVERS, require, solver_options
from lpnet.config import LAYER_KEYS, STEPPER_KEYS, Config, as_dict, fitting_steppers, trunk_options
from lpnet.errors import InputError, shown
from lpnet.fabrics import FABRICS
from lpnet.keys import DEFAULT_PRESET, leaves, one_line, require_known, sections, unknown_key
from lpnet.launch import Answer
from lpnet.optimizers import OPTIMIZERS, SEARCHING, WHOLE_BATCH, optimizer_options
from lpnet.presets import PRESETS
from lpnet.version import __version__

Flat = dict[str, Any]  # "trunk.layers" -> value
Parsed = TypeVar("Parsed")

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
        raise InputError(f"preset: {shown(preset)} given, one of {', '.join(PRESETS)} allowed")
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
    _check_words(arguments)
    return _flat(one_line(lambda: _parser().parse_args(list(arguments), defaults=False)))


def _check_words(arguments: Sequence[str]) -> None:
    """Refuse values without end, which are read as YAML, and a second value of what has one."""
    for key in ("ranks", "fabric", "resume"):
        count = sum(word.partition("=")[0] == f"--{key}" for word in arguments)
        require(count < 2, f"--{key}", count, "one of them")
    for word in arguments:
        key, _, value = word.partition("=") if word.startswith("--") else ("arguments", "", word)
        try:
            yamltext.require_plain(value if set(value) & set("[{&!\n") else "")
        except InputError as error:
            raise InputError(f"{key.lstrip('-')}: {error}") from None
        except yamltext.ValueWithoutSense:
            raise InputError(f"{key.lstrip('-')}: {shown(value)} given, values that fit their tags allowed") from None
        except yaml.YAMLError:
            continue  # a text


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


@cache
def _parser() -> ArgumentParser:
    """The parser, which takes longer to be made than to read what there is."""
    return _new_parser()


def _new_parser() -> ArgumentParser:
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
    parser = _new_parser()
    parser.set_defaults({key: value for key, value in values.items() if key in leaves()})
    return str(parser.format_help())


def _file(path: str) -> Flat:
    """The values that a YAML file gives."""
    text, content = yamltext.read(path, "--config")
    try:
        require_known(content)
        if all(value is None and key in sections() for key, value in content.items()):
            return {}
        values = _flat(one_line(lambda: _parser().parse_string(text, defaults=False)))
        return _checked({key: value for key, value in values.items() if not (value is None and key in sections())})
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
        if key in sections():
            raise InputError(f"{key}: {shown(value)} given, a mapping of its keys allowed")
        if key not in leaves() and key != "preset":
            raise InputError(unknown_key(key))
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
