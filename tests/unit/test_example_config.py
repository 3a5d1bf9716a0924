"""The example file is the manual of the settings: it names every one of them, with its real default."""

import re
from dataclasses import Field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jobrunner.config import Config, settings
from jobrunner.config_loading import load_config

EXAMPLE = Path(__file__).parent.parent.parent / "config.example.ini"

SETTINGS = {(section, setting.name): setting for section, setting in settings()}

_SECTION = re.compile(r"\[(.+)\]")
_LINE = re.compile(r"(?P<comment>; ?)?(?P<key>[A-Za-z_][A-Za-z0-9_]*) *= *(?P<text>.*?)(?:\s+;.*)?")


class Line(NamedTuple):
    """A line of the form ``key = value``, active or commented out."""

    is_active: bool
    text: str


def read_example() -> dict[tuple[str, str], Line]:
    found: dict[tuple[str, str], Line] = {}
    section = ""
    for line in EXAMPLE.read_text(encoding="utf-8").splitlines():
        if heading := _SECTION.fullmatch(line):
            section = heading[1]
        elif match := _LINE.fullmatch(line):
            key = (section, match["key"])
            assert key not in found, f"{key} is described twice"
            found[key] = Line(match["comment"] is None, match["text"])
    return found


def described_settings() -> dict[tuple[str, str], Line]:
    return {key: line for key, line in read_example().items() if key[0] != "environment"}


def test_the_example_names_every_setting_and_nothing_else() -> None:
    assert set(described_settings()) == set(SETTINGS)


def test_the_example_has_the_section_of_the_jobs_environment() -> None:
    assert "[environment]" in EXAMPLE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(("section", "key"), SETTINGS)
def test_the_example_shows_the_real_default(section: str, key: str) -> None:
    setting: Field[Any] = SETTINGS[section, key]
    line = described_settings()[section, key]
    value = setting.metadata["parse"](line.text)  # also what is commented out could be used as it is

    if setting.default in {None, ()}:
        assert not line.is_active, "a setting without a default is commented out"
    else:
        assert value == setting.default


def test_loading_the_example_is_loading_the_defaults() -> None:
    assert load_config(EXAMPLE, {}) == Config()
