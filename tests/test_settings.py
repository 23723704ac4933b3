"""Options have priority over the environment, and the environment over defaults."""

from __future__ import annotations

import pytest

from lbagent.settings import Settings, load_handler_settings, load_settings


def test_the_defaults_are_the_documented_ones() -> None:
    assert load_settings({}, None, None, verbose=False) == Settings("/etc/lbagent/roles.yml", "/var/lib/lbagent")


def test_the_environment_overrides_the_defaults() -> None:
    environ = {"LBAGENT_ROLES": "/r.yml", "LBAGENT_STATE_DIR": "/s"}

    assert load_settings(environ, None, None, verbose=False) == Settings("/r.yml", "/s")


def test_options_override_the_environment() -> None:
    environ = {"LBAGENT_ROLES": "/r.yml", "LBAGENT_STATE_DIR": "/s", "STATE_DIRECTORY": "/d"}

    assert load_settings(environ, "/o.yml", "/o", verbose=True) == Settings("/o.yml", "/o", verbose=True)


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"STATE_DIRECTORY": "/d"}, "/d"),
        ({"STATE_DIRECTORY": "/d:/e"}, "/d"),
        ({"STATE_DIRECTORY": "/d", "LBAGENT_STATE_DIR": "/s"}, "/s"),
        ({"STATE_DIRECTORY": ""}, "/var/lib/lbagent"),
        ({"LBAGENT_STATE_DIR": ""}, "/var/lib/lbagent"),
    ],
)
def test_the_state_directory_of_systemd_is_used(environ: dict[str, str], folder: str) -> None:
    assert load_settings(environ, None, None, verbose=False).state_dir == folder


@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (["handle"], Settings("/etc/lbagent/roles.yml", "/var/lib/lbagent")),
        (["-v", "handle"], Settings("/etc/lbagent/roles.yml", "/var/lib/lbagent", verbose=True)),
        (["--roles", "/r", "--state-dir", "/s", "handle"], Settings("/r", "/s")),
        (["--roles=/r=1", "--state-dir=/s", "-v", "handle"], Settings("/r=1", "/s", verbose=True)),
        (["--roles", "handle", "handle"], Settings("handle", "/var/lib/lbagent")),
    ],
)
def test_a_plain_handle_needs_no_argument_parser(words: list[str], settings: Settings) -> None:
    assert load_handler_settings(words, {}) == settings


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["plan"],
        ["handle", "-v"],
        ["handle", "x"],
        ["--roles", "handle"],
        ["--help", "handle"],
        ["-vv", "handle"],
        ["--rol=/r", "handle"],
        ["x", "handle"],
    ],
)
def test_any_other_command_line_needs_the_argument_parser(words: list[str]) -> None:
    assert load_handler_settings(words, {}) is None


def test_the_command_line_is_not_changed() -> None:
    words = ["--roles", "/r", "handle"]

    load_handler_settings(words, {})

    assert words == ["--roles", "/r", "handle"]
