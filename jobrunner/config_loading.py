"""Reads the settings: an INI file and the environment become a `Config`.

Everything that is wrong is reported at once, with file, section and key
(`ConfigError`).

Every key can also be set as ``JOBRUNNER_<SECTION>_<KEY>``, which wins over the
file. ``JOBRUNNER_PORT`` and ``JOBRUNNER_HOSTNAME`` set ``[server]`` port and host.
What Kubernetes says of a Service named jobrunner (``JOBRUNNER_PORT=tcp://…``) is
passed over, with a warning.
"""

import configparser
import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from jobrunner.config import SECTIONS, Config, environment_name, settings
from jobrunner.config_dialects import DIALECTS, SECTION_PREFIX, SHORT_NAMES, contradictions
from jobrunner.domain.arguments import variable_problem
from jobrunner.domain.errors import ConfigError
from jobrunner.programs import pattern_warning

_SHORT_NAMES = {"JOBRUNNER_PORT": ("server", "port"), "JOBRUNNER_HOSTNAME": ("server", "host"), **SHORT_NAMES}
_RESERVED_NAMES = {"JOBRUNNER_CONFIG", "JOBRUNNER_URL", "JOBRUNNER_TOKEN"}

_SERVICE_LINK = re.compile(
    r"JOBRUNNER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*"
    r"|JOBRUNNER_(\w+_)?PORT=(tcp|udp|sctp)://.*"
)
"""A variable by which Kubernetes describes a Service, to every container beside it, in words that may be ours."""


def load_config(path: Path | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Read the settings.

    Args:
        path: the INI file; None takes ``JOBRUNNER_CONFIG``, and without that the defaults.
        environ: the process environment.

    Raises:
        ConfigError: with every problem that there is.
    """
    path = path or (Path(environ["JOBRUNNER_CONFIG"]) if environ.get("JOBRUNNER_CONFIG") else None)
    problems: list[str] = []
    texts = _read_file(path, problems) if path else {}
    is_read = bool(texts) or not problems
    jobs_environment = dict(texts.pop("environment", {}))
    for name, text in jobs_environment.items():
        if problem := variable_problem(name, text):
            problems.append(f"{path}: [environment] {name}: {problem}")
    values = {
        (section, key): (text, f"{path}: [{section}] {key}")
        for section, keys in texts.items()
        for key, text in keys.items()
    }
    warnings = _add_environment(values, environ)
    parsed: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    invalid: set[tuple[str, str]] = set()
    for (section, key), (text, where) in values.items():
        try:
            parsed[section][key] = SECTIONS[section].__dataclass_fields__[key].metadata["parse"](text)
        except ValueError as error:
            problems.append(f"{where}: {error}" if key == "secret" else f"{where} = {text}: {error}")
            invalid.add((section, key))
    sections = {section: kind(**parsed[section]) for section, kind in SECTIONS.items()}
    found = filter(None, map(pattern_warning, sections["policy"].allow_commands))
    warnings.extend(f"[policy] allow_commands = {warning}" for warning in found)
    dialects = {name: sections.pop(f"{SECTION_PREFIX}{name}") for name in DIALECTS}
    config = Config(**sections, dialects=dialects, environment=jobs_environment, warnings=tuple(warnings))
    if is_read:  # else the file may have what makes it right
        problems.extend(_contradictions(config, path, invalid))
    if problems:
        raise ConfigError(problems)
    return config


def _read_file(path: Path, problems: list[str]) -> dict[str, dict[str, str]]:
    """Read the sections of a file; whatever is unknown becomes a problem and is left out."""
    parser = _make_parser(strict=True)
    try:
        text = path.read_text(encoding="utf-8")
        try:
            parser.read_string(text, source=str(path))
        except (configparser.DuplicateOptionError, configparser.DuplicateSectionError) as error:
            problems.append(" ".join(str(error).split()))
            parser = _make_parser(strict=False)  # it has stopped reading there
            parser.read_string(text, source=str(path))
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
    except UnicodeDecodeError as error:
        problems.append(f"{path}: not UTF-8 at byte {error.start}")
    except configparser.Error as error:
        problems.append(" ".join(str(error).split()))
        parser = _make_parser(strict=False)  # what was read so far is not finished
    found: dict[str, dict[str, str]] = {}
    for section in parser.sections():
        if section == "environment":
            found[section] = dict(parser[section])
            continue
        if section not in SECTIONS:
            problems.append(f"{path}: [{section}]: unknown section{_did_you_mean(section, [*SECTIONS, 'environment'])}")
            continue
        known = [setting.name for setting in fields(SECTIONS[section])]
        unknown = [key for key in parser[section] if key not in known]
        problems.extend(f"{path}: [{section}] {key}: unknown key{_did_you_mean(key, known)}" for key in unknown)
        found[section] = {key: text for key, text in parser[section].items() if key in known}
    return found


def _make_parser(*, strict: bool) -> configparser.RawConfigParser:
    # A value may hold a percent sign: no interpolation. Names of environment
    # variables differ by case: no folding.
    parser = configparser.RawConfigParser(inline_comment_prefixes=(";",), default_section="", strict=strict)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the documented way to keep case
    return parser


def _add_environment(values: dict[tuple[str, str], tuple[str, str]], environ: Mapping[str, str]) -> list[str]:
    """Let the environment overrule the file; return warnings of names that are no settings."""
    links = [name for name in sorted(environ) if _SERVICE_LINK.fullmatch(f"{name}={environ[name]}")]
    names = {environment_name(section, setting.name): (section, setting.name) for section, setting in settings()}
    for name, target in {**_SHORT_NAMES, **names}.items():  # the long name wins over the short one
        if name in environ and name not in links:
            values[target] = (environ[name], name)
    known = [*names, *_SHORT_NAMES, *_RESERVED_NAMES]
    unknown = [name for name in sorted(environ) if name.startswith("JOBRUNNER_") and name not in [*known, *links]]
    warnings = [
        # All begin alike, which resembles nothing.
        f"{name} in the environment is not a setting{_did_you_mean(name, known, prefix='JOBRUNNER_', cutoff=0.8)}"
        for name in unknown
    ]
    if links:
        warnings.append(
            f"{', '.join(links)} in the environment are no settings: Kubernetes describes a Service by them"
        )
    return warnings


def _contradictions(config: Config, path: Path | None, invalid: set[tuple[str, str]]) -> Iterator[str]:
    """Name values that do not go together, if each of them is valid by itself."""
    for key, most in (("default_timeout", "max_timeout"), ("grace", "max_grace")):
        is_larger = getattr(config.executor, key) > getattr(config.executor, most)
        if is_larger and not {("executor", key), ("executor", most)} & invalid:
            yield f"{path or 'environment'}: [executor] {key} is larger than {most}"
    if config.qmd is not None and config.qmd.max_exec_time > config.executor.max_timeout:
        yield f"{path or 'environment'}: [dialect:qmd] max_exec_time is larger than [executor] max_timeout"
    port = None if config.server.unix_socket else config.server.port
    for section, key, problem in contradictions(config.enabled_dialects, port):
        if (section, key) not in invalid:
            yield f"{path or 'environment'}: [{section}] {key} {problem}"


def _did_you_mean(word: str, known: list[str], *, prefix: str = "", cutoff: float = 0.6) -> str:
    """Suggest what resembles a word most, but for a prefix that all have."""
    bare = [name.removeprefix(prefix) for name in known]
    close = difflib.get_close_matches(word.removeprefix(prefix), bare, n=1, cutoff=cutoff)
    return f"; did you mean {prefix}{close[0]}?" if close else ""
