"""The settings: an INI file and the environment become typed values, or a list of all that is wrong."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobrunner.config import Config, environment_name, settings
from jobrunner.config_loading import load_config
from jobrunner.config_values import parse_duration, parse_size, render_value
from jobrunner.domain.errors import ConfigError


@pytest.fixture
def ini(tmp_path: Path) -> Path:
    """The place of a configuration file."""
    return tmp_path / "config.ini"


def load(ini: Path, text: str, **environ: str) -> Config:
    ini.write_text(text, encoding="utf-8")
    return load_config(ini, environ)


def problems(ini: Path, text: str, **environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refusal:
        load(ini, text, **environ)
    return refusal.value.problems


# ── where values come from ──


def test_without_file_and_environment_the_defaults_apply() -> None:
    config = load_config(None, {})

    assert config == Config()
    assert (config.server.host, config.server.port, config.server.workers) == ("127.0.0.1", 8080, 2)
    assert config.database.synchronous == "full"
    assert (config.executor.max_running, config.executor.grace) == (16, 10.0)
    assert config.gc.max_age == 30 * 86400
    assert config.warnings == ()


def test_an_empty_file_changes_nothing(ini: Path) -> None:
    assert load(ini, "") == Config()


def test_the_file_overrules_the_defaults(ini: Path) -> None:
    config = load(
        ini,
        """
        [server]
        port = 9000
        allowed_hosts = Jobs.Example.org , other.example,
        [executor]
        default_timeout = 5m
        kill_leftovers = No
        [gc]
        max_bytes = 2g
        """.replace("        ", ""),
    )

    assert config.server.port == 9000
    assert config.server.allowed_hosts == ("jobs.example.org", "other.example")
    assert config.executor.default_timeout == 300.0
    assert config.executor.kill_leftovers is False
    assert config.gc.max_bytes == 2 << 30
    assert config.executor.max_running == 16


def test_the_environment_overrules_the_file(ini: Path) -> None:
    config = load(ini, "[executor]\nmax_running = 3\ngrace = 1\n", JOBRUNNER_EXECUTOR_MAX_RUNNING="4")

    assert (config.executor.max_running, config.executor.grace) == (4, 1.0)


def test_the_environment_can_name_the_file(ini: Path) -> None:
    ini.write_text("[server]\nport = 9001\n")

    assert load_config(None, {"JOBRUNNER_CONFIG": str(ini)}).server.port == 9001


def test_a_file_that_was_given_wins_over_the_one_in_the_environment(ini: Path) -> None:
    ini.write_text("[server]\nport = 9001\n")

    assert load_config(ini, {"JOBRUNNER_CONFIG": "/nowhere"}).server.port == 9001


def test_an_empty_name_of_a_file_is_none() -> None:
    assert load_config(None, {"JOBRUNNER_CONFIG": ""}) == Config()


def test_the_short_names_set_port_and_host(ini: Path) -> None:
    config = load(ini, "[server]\nport = 1\nhost = a\n", JOBRUNNER_PORT="9002", JOBRUNNER_HOSTNAME="jobs.example.org")

    assert (config.server.host, config.server.port) == ("jobs.example.org", 9002)
    assert config.warnings == ()


@pytest.mark.parametrize("short_first", [True, False])
def test_the_long_name_wins_over_the_short_one(*, short_first: bool) -> None:
    names = {"JOBRUNNER_PORT": "9002", "JOBRUNNER_SERVER_PORT": "9003"}
    environ = names if short_first else dict(reversed(names.items()))

    assert load_config(None, environ).server.port == 9003


def test_every_setting_has_a_name_of_its_own_in_the_environment() -> None:
    names = [environment_name(section, setting.name) for section, setting in settings()]

    assert len(names) == len(set(names))
    assert "JOBRUNNER_GC_MAX_AGE" in names
    assert environment_name("dialect:go-jobrunner", "enabled") == "JOBRUNNER_DIALECT_GO_JOBRUNNER_ENABLED"


def test_every_setting_can_be_set_by_environment_to_its_own_default() -> None:
    rendered = {environment_name(s, f.name): render_value(f.default) for s, f in settings()}

    assert load_config(None, {name: text for name, text in rendered.items() if text is not None}) == Config()


def test_the_values_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Config().server.port = 1  # type: ignore[misc]


# ── how a file is read ──


def test_a_semicolon_after_a_blank_begins_a_comment_and_others_do_not(ini: Path) -> None:
    config = load(ini, "; first\n[storage]\ndata_dir = /srv/a;b   ; the disk\n# another\n")

    assert config.storage.data_dir == Path("/srv/a;b")


def test_a_percent_sign_is_nothing_special(ini: Path) -> None:
    assert load(ini, "[storage]\ndata_dir = /srv/100%(x)s\n").storage.data_dir == Path("/srv/100%(x)s")


def test_the_environment_of_jobs_keeps_the_case_of_its_names(ini: Path) -> None:
    config = load(ini, "[environment]\nEDITOR = cat\neditor = ed\nMixed_Case = a = b ; a comment\nEMPTY =\n")

    assert config.environment == {"EDITOR": "cat", "editor": "ed", "Mixed_Case": "a = b", "EMPTY": ""}


def test_keys_of_settings_are_written_small(ini: Path) -> None:
    assert problems(ini, "[server]\nPort = 1\n") == (f"{ini}: [server] Port: unknown key; did you mean port?",)


def test_values_may_hold_any_letters(ini: Path) -> None:
    assert load(ini, "[environment]\nGREETING = Grüße ✓\n").environment["GREETING"] == "Grüße ✓"


# ── everything that is wrong, at once ──


def test_all_problems_are_reported_at_once_with_file_section_and_key(ini: Path) -> None:
    found = problems(
        ini,
        "[server]\nport = 70000\nprot = 1\n[srver]\nx = 1\n[executor]\non_stop = maybe\n[gc]\nmax_age = soon\n",
        JOBRUNNER_SERVER_WORKERS="0",
    )

    assert len(found) == 6
    for start in (
        f"{ini}: [server] port = 70000: expected a whole number from 0 to 65535",
        f"{ini}: [server] prot: unknown key; did you mean port?",
        f"{ini}: [srver]: unknown section; did you mean server?",
        f"{ini}: [executor] on_stop = maybe: expected keep or kill",
        f"{ini}: [gc] max_age = soon: expected seconds",
        "JOBRUNNER_SERVER_WORKERS = 0: expected a whole number from 1 to 256",
    ):
        assert any(problem.startswith(start) for problem in found), (start, found)


def test_the_message_of_the_error_has_a_line_for_each_problem(ini: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load(ini, "[server]\nport = x\nhost =\n")

    assert str(refusal.value).splitlines() == list(refusal.value.problems)
    assert len(refusal.value.problems) == 2


def test_a_word_that_resembles_nothing_gets_no_suggestion(ini: Path) -> None:
    assert problems(ini, "[zzz]\n[server]\nqqq = 1\n") == (
        f"{ini}: [zzz]: unknown section",
        f"{ini}: [server] qqq: unknown key",
    )


def test_the_section_default_is_no_section(ini: Path) -> None:
    """configparser would hand its keys down to every other section."""
    assert problems(ini, "[DEFAULT]\nport = 1\n") == (f"{ini}: [DEFAULT]: unknown section",)


def test_a_key_that_is_given_twice_is_a_problem_beside_the_others(ini: Path) -> None:
    found = problems(ini, "[server]\nport = 1\nport = 2\n[executor]\ngrace = never\n")

    assert any("port" in problem and "already exists" in problem for problem in found)
    assert any("[executor] grace = never" in problem for problem in found), found


def test_a_section_that_is_there_twice_is_a_problem(ini: Path) -> None:
    found = problems(ini, "[server]\nport = 1\n[server]\nworkers = 2\n")

    assert any("section 'server' already exists" in problem for problem in found)


@pytest.mark.parametrize("text", ["port = 1\n", "[server]\nport\n", "[server\nport = 1\n"])
def test_a_file_that_is_no_ini_file_is_a_problem_with_its_line(ini: Path, text: str) -> None:
    (problem, *_) = problems(ini, text)

    assert str(ini) in problem
    assert "line" in problem
    assert "\n" not in problem


def test_a_file_that_is_absent_is_a_problem(ini: Path) -> None:
    with pytest.raises(ConfigError, match="No such file") as refusal:
        load_config(ini, {})

    assert str(ini) in str(refusal.value)


def test_a_file_that_is_not_utf_8_is_a_problem(ini: Path) -> None:
    ini.write_bytes(b"[server]\nhost = \xff\n")

    with pytest.raises(ConfigError, match="not UTF-8 at byte 16"):
        load_config(ini, {})


def test_a_bad_value_in_the_environment_is_named_after_its_variable() -> None:
    with pytest.raises(ConfigError, match="JOBRUNNER_PORT = http: expected a whole number"):
        load_config(None, {"JOBRUNNER_PORT": "http"})


def test_a_value_that_the_environment_overrules_is_not_complained_about_twice(ini: Path) -> None:
    assert len(problems(ini, "[server]\nport = x\n", JOBRUNNER_SERVER_PORT="y", JOBRUNNER_PORT="z")) == 1


@pytest.mark.parametrize(
    ("section", "key", "text"),
    [
        ("server", "host", ""),
        ("server", "host", "a b"),
        ("server", "host", "http://a"),
        ("server", "port", "-1"),
        ("server", "port", "65536"),
        ("server", "port", "8080.0"),
        ("server", "port", "\N{FULLWIDTH DIGIT EIGHT}"),
        ("server", "workers", "0"),
        ("server", "threads", "1" * 5000),
        ("server", "max_body_bytes", "0"),
        ("output", "max_bytes", "16383"),
        ("output", "max_bytes", "-1"),
        ("output", "on_limit", "truncate"),
        ("server", "max_wait", "-1"),
        ("storage", "data_dir", ""),
        ("storage", "min_free_bytes", "1.5G"),
        ("executor", "default_timeout", "0"),
        ("executor", "max_timeout", "inf"),
        ("executor", "max_timeout", "999999999999w"),
        ("executor", "max_grace", "101w1d"),
        ("callbacks", "schedule", "0, 6000w"),
        ("policy", "allow_commands", ""),
        ("policy", "allow_commands", "git"),
        ("policy", "allow_commands", "/usr/bin/*, git"),
        ("policy", "allow_commands", "none, /usr/bin/git"),
        ("executor", "grace", "nan"),
        ("executor", "kill_leftovers", "true"),
        ("policy", "allow_shell", "1"),
        ("database", "synchronous", "FULL"),
        ("logging", "format", "xml"),
        ("logging", "level", "INFO"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_with_what_would(ini: Path, section: str, key: str, text: str) -> None:
    (problem,) = problems(ini, f"[{section}]\n{key} = {text}\n")

    assert problem.startswith(f"{ini}: [{section}] {key} = {text}: expected ")


@pytest.mark.parametrize("text", ["*", "none", "/usr/bin/git", "/usr/bin/git, /opt/*,*/bin/[ab]?", "?bin/*"])
def test_programs_are_patterns_of_absolute_paths(ini: Path, text: str) -> None:
    patterns = tuple(part.strip() for part in text.split(","))

    assert load(ini, f"[policy]\nallow_commands = {text}\n").policy.allow_commands == patterns
    assert load(ini, "", JOBRUNNER_POLICY_ALLOW_COMMANDS=text).policy.allow_commands == patterns


def test_a_program_that_is_named_by_a_link_is_a_warning(ini: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/")
    (warning,) = load(ini, f"[policy]\nallow_commands = /*, {tmp_path}/link/*\n").warnings

    assert warning.startswith(f"[policy] allow_commands = {tmp_path}/link/*: {tmp_path}/link is /, ")


def test_all_that_is_wrong_with_the_environment_of_jobs_is_told(ini: Path) -> None:
    found = problems(
        ini, f"[environment]\nJOBRUNNER_JOB_ID = 1\nNUL = a\0b\nLONG = {'x' * 131072}\nRIGHT = 1\n[server]\nport = x\n"
    )

    assert [problem.partition(" =")[0].partition(": must")[0].partition(": names")[0] for problem in found] == [
        f"{ini}: [environment] JOBRUNNER_JOB_ID",
        f"{ini}: [environment] NUL",
        f"{ini}: [environment] LONG",
        f"{ini}: [server] port",
    ]


def test_a_default_grace_period_beyond_the_ceiling_is_a_contradiction(ini: Path) -> None:
    assert problems(ini, "[executor]\ngrace = 2h\n") == (f"{ini}: [executor] grace is larger than max_grace",)


def test_a_default_timeout_beyond_the_ceiling_is_a_contradiction(ini: Path) -> None:
    (problem,) = problems(ini, "[executor]\ndefault_timeout = 2h\nmax_timeout = 1h\n")

    assert problem == f"{ini}: [executor] default_timeout is larger than max_timeout"


def test_scripts_of_qmd_may_run_no_longer_than_any_job(ini: Path) -> None:
    limits = "[executor]\ndefault_timeout = 30\nmax_timeout = 30\n"
    (problem,) = problems(ini, f"{limits}[dialect:qmd]\nenabled = yes\n")

    assert problem == f"{ini}: [dialect:qmd] max_exec_time is larger than [executor] max_timeout"
    ini.write_text(f"{limits}[dialect:qmd]\nmax_exec_time = 60\n")
    assert load_config(ini, {}).qmd is None


def test_a_contradiction_between_file_and_environment_is_found(ini: Path) -> None:
    (problem,) = problems(ini, "[executor]\nmax_timeout = 1h\n", JOBRUNNER_EXECUTOR_DEFAULT_TIMEOUT="2h")

    assert "[executor] default_timeout is larger than max_timeout" in problem


def test_a_value_that_could_not_be_read_contradicts_nothing(ini: Path) -> None:
    found = problems(ini, "[executor]\ndefault_timeout = 2d\nmax_timeout = 1 week\n")

    assert found == (f"{ini}: [executor] max_timeout = 1 week: {_refusal(parse_duration, '1 week')}",)


def test_a_contradiction_is_reported_together_with_all_else_that_is_wrong(ini: Path) -> None:
    found = problems(ini, "[server]\nport = x\n[executor]\ndefault_timeout = 2h\nmax_timeout = 1h\nzzz = 1\n")

    assert len(found) == 3
    assert f"{ini}: [executor] default_timeout is larger than max_timeout" in found


def test_nothing_contradicts_a_file_that_could_not_be_read(ini: Path) -> None:
    """It may say what would make it right."""
    (problem,) = problems(ini, "[executor\nmax_timeout = 3d\n", JOBRUNNER_EXECUTOR_DEFAULT_TIMEOUT="2d")

    assert "line" in problem


# ── what is odd but harmless ──


def test_unknown_names_in_the_environment_are_warnings() -> None:
    config = load_config(None, {"JOBRUNNER_SERVER_PROT": "1", "JOBRUNNER_ZZZ": "", "PATH": "/bin", "jobrunner_x": ""})

    assert config.warnings == (
        "JOBRUNNER_SERVER_PROT in the environment is not a setting; did you mean JOBRUNNER_SERVER_PORT?",
        "JOBRUNNER_ZZZ in the environment is not a setting",
    )
    assert config.server == Config().server


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("JOBRUNNER_SERVER_THREAD", "JOBRUNNER_SERVER_THREADS"),
        ("JOBRUNNER_EXECUTER_MAX_RUNING", "JOBRUNNER_EXECUTOR_MAX_RUNNING"),
        ("JOBRUNNER_STORAGE_DATADIR", "JOBRUNNER_STORAGE_DATA_DIR"),
        ("JOBRUNNER_HOST_NAME", "JOBRUNNER_HOSTNAME"),
        ("JOBRUNNER_TOKNE", "JOBRUNNER_TOKEN"),
    ],
)
def test_a_name_that_is_nearly_one_gets_it_as_a_suggestion(name: str, meant: str) -> None:
    (warning,) = load_config(None, {name: "x"}).warnings

    assert warning == f"{name} in the environment is not a setting; did you mean {meant}?"


@pytest.mark.parametrize(
    "name",
    ["HOME", "VERSION", "IMAGE", "DEBUG", "USER", "GROUP", "LOG", "SECRET", "API_KEY", "ENV", "SERVER", "JOB_ID", ""],
)
def test_a_name_that_is_none_of_ours_gets_no_suggestion(name: str) -> None:
    """All begin alike, which resembles nothing."""
    (warning,) = load_config(None, {f"JOBRUNNER_{name}": "x"}).warnings

    assert warning == f"JOBRUNNER_{name} in the environment is not a setting"


# ── Kubernetes ──

SERVICE_LINKS = {
    "JOBRUNNER_SERVICE_HOST": "10.0.0.1",
    "JOBRUNNER_SERVICE_PORT": "8080",
    "JOBRUNNER_SERVICE_PORT_HTTP": "8080",
    "JOBRUNNER_PORT": "tcp://10.0.0.1:8080",
    "JOBRUNNER_PORT_8080_TCP": "tcp://10.0.0.1:8080",
    "JOBRUNNER_PORT_8080_TCP_PROTO": "tcp",
    "JOBRUNNER_PORT_8080_TCP_PORT": "8080",
    "JOBRUNNER_PORT_8080_TCP_ADDR": "10.0.0.1",
}
"""What Kubernetes puts into the environment of every container beside a Service named jobrunner."""


def test_variables_of_a_kubernetes_service_of_our_name_are_no_settings() -> None:
    config = load_config(None, SERVICE_LINKS)

    assert config.server == Config().server
    (warning,) = config.warnings
    assert "Kubernetes" in warning
    assert all(name in warning for name in SERVICE_LINKS)


def test_settings_beside_those_of_kubernetes_count(ini: Path) -> None:
    config = load(ini, "[server]\nport = 9000\n", **SERVICE_LINKS, JOBRUNNER_HOSTNAME="jobs.example.org")

    assert (config.server.host, config.server.port) == ("jobs.example.org", 9000)
    assert load(ini, "", **SERVICE_LINKS, JOBRUNNER_SERVER_PORT="9001").server.port == 9001


def test_a_service_of_the_name_of_a_section_is_one_too() -> None:
    """``jobrunner-server``, say, whose port is named as the setting is."""
    links = {name.replace("JOBRUNNER_", "JOBRUNNER_SERVER_"): value for name, value in SERVICE_LINKS.items()}
    config = load_config(None, {**links, "JOBRUNNER_PORT": "udp://[fd00::1]:53"})

    assert config.server == Config().server
    assert len(config.warnings) == 1


def test_a_port_that_is_no_link_is_still_an_error() -> None:
    with pytest.raises(ConfigError, match="JOBRUNNER_PORT = http://jobs:8080: expected a whole number"):
        load_config(None, {"JOBRUNNER_PORT": "http://jobs:8080"})


def test_the_names_that_other_parts_read_are_no_warnings() -> None:
    environ = {"JOBRUNNER_URL": "http://x", "JOBRUNNER_TOKEN": "t", "JOBRUNNER_PORT": "1", "JOBRUNNER_HOSTNAME": "h"}

    assert load_config(None, environ).warnings == ()


# ── durations and sizes ──


def _refusal(parse: object, text: str) -> str:
    assert callable(parse)
    with pytest.raises(ValueError, match="expected") as refusal:
        parse(text)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("1.5", 1.5), ("10s", 10), ("2m", 120), ("1.5h", 5400), ("30d", 2592000), ("2w", 1209600)],
)
def test_durations_are_seconds_or_have_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "1 d", "1y", "1D", "d", "1e3", "inf", "nan", ".5", "1.", "1h30m", "१"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    assert "30d" in _refusal(parse_duration, text)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1024", 1024), ("1K", 1024), ("3m", 3 << 20), ("10G", 10 << 30), ("2T", 2 << 40)]
)
def test_sizes_are_bytes_or_have_a_unit(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "1 G", "1GB", "1P", "G", "0x10", "१", "1_000"])
def test_what_is_no_size_is_refused(text: str) -> None:
    assert "10G" in _refusal(parse_size, text)


@given(st.text(max_size=12))
def test_any_text_is_a_duration_and_a_size_or_refused(text: str) -> None:
    for parse in (parse_duration, parse_size):
        try:
            assert parse(text) >= 0
        except ValueError as refusal:
            assert str(refusal).startswith("expected")  # noqa: PT017 either way is right


@pytest.mark.parametrize("parse", [parse_duration, parse_size])
def test_a_number_beyond_all_measure_is_refused_like_any_other_nonsense(parse: object) -> None:
    _refusal(parse, "9" * 5000)


def test_a_value_is_shown_as_the_file_has_it() -> None:
    assert [render_value(value) for value in (True, False, 8080, 10.0, 0.5, ("a", "b"), Path("/x"), "keep")] == [
        "yes", "no", "8080", "10", "0.5", "a, b", "/x", "keep",
    ]  # fmt: skip
    assert render_value(None) is None
    assert render_value(()) is None


# ── what is derived ──


@pytest.mark.parametrize(
    ("host", "bind", "url"),
    [
        ("127.0.0.1", "127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("jobs.example.org", "jobs.example.org:8080", "http://jobs.example.org:8080"),
        ("0.0.0.0", "0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("::", "[::]:8080", "http://[::1]:8080"),
        ("::1", "[::1]:8080", "http://[::1]:8080"),
        ("[::1]", "[::1]:8080", "http://[::1]:8080"),
        ("2001:DB8::5", "[2001:db8::5]:8080", "http://[2001:db8::5]:8080"),
    ],
)
def test_an_ipv6_address_is_put_in_brackets(host: str, bind: str, url: str) -> None:
    config = load_config(None, {"JOBRUNNER_HOSTNAME": host})

    assert (config.bind, config.url) == (bind, url)


def test_a_unix_socket_is_listened_on_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert load_config(None, {"JOBRUNNER_SERVER_UNIX_SOCKET": "run.sock"}).bind == f"unix:{tmp_path}/run.sock"


def test_directories_are_absolute_and_scripts_are_kept_with_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(None, {})

    assert config.data_dir == tmp_path / "data"
    assert config.scripts_dir == tmp_path / "data" / "scripts"
    assert load_config(None, {"JOBRUNNER_STORAGE_SCRIPTS_DIR": "own"}).scripts_dir == tmp_path / "own"


@pytest.mark.parametrize(
    ("waiters", "workers", "share"), [("64", "2", 32), ("5", "2", 3), ("1", "4", 1), ("0", "3", 0)]
)
def test_the_waiters_are_shared_among_the_workers_and_none_goes_without(waiters: str, workers: str, share: int) -> None:
    environ = {"JOBRUNNER_SERVER_MAX_WAITERS": waiters, "JOBRUNNER_SERVER_WORKERS": workers}

    assert load_config(None, environ).server.waiters_per_worker == share


# ── callbacks ──

KEY = "whsec_" + "QUJD" * 8
OTHER = "whsec_" + "REVG" * 8


def test_several_secrets_sign(ini: Path) -> None:
    config = load(ini, f"[callbacks]\nsecret = {KEY}, {OTHER}")

    assert [secret.text for secret in config.callbacks.secret] == [KEY, OTHER]
    assert config.callbacks.secret != load(ini, f"[callbacks]\nsecret = {KEY}, {KEY}").callbacks.secret


@pytest.mark.parametrize(
    "text", ["whsec_QUJD", "whsec_" + "!" * 32, "QUJD" * 8, "whsec_" + "QUJD" * 30, f"{KEY} {KEY}"]
)
def test_a_secret_is_never_told_not_even_a_wrong_one(ini: Path, text: str) -> None:
    (problem,) = problems(ini, f"[callbacks]\nsecret = {text}")

    assert "[callbacks] secret: expected whsec_" in problem
    assert text not in problem
    secrets = load(ini, f"[callbacks]\nsecret = {KEY}, {OTHER}").callbacks
    assert render_value(secrets.secret) == "(not shown), (not shown)"
    assert KEY not in repr(secrets)


def test_a_schedule_is_a_list_of_durations(ini: Path) -> None:
    config = load(ini, "[callbacks]\nschedule = 0, 1.5, 2m,1h")

    assert config.callbacks.schedule == (0.0, 1.5, 120.0, 3600.0)
    assert render_value(config.callbacks.schedule) == "0, 1.5, 120, 3600"
    for text in ("", "soon", "1, -1"):
        assert "schedule" in problems(ini, f"[callbacks]\nschedule = {text}")[0]


def test_rules_about_receivers_are_hosts_and_networks(ini: Path) -> None:
    config = load(ini, "[callbacks]\nallow = Hooks.example.org, 10.0.0.0/8, ::1\ndeny =")

    assert render_value(config.callbacks.allow) == "hooks.example.org, 10.0.0.0/8, ::1/128"
    assert config.callbacks.deny == ()
    assert "host bits" in problems(ini, "[callbacks]\nallow = 10.0.0.1/8")[0]


# ── dialects ──


def test_no_dialect_is_spoken_by_default() -> None:
    config = load_config(None, {})

    assert config.enabled_dialects == {}
    assert config.binds == [config.bind]


def test_a_dialect_has_a_section_and_names_in_the_environment(ini: Path) -> None:
    config = load(ini, "[dialect:rtot]\nenabled = yes\nport = 8457\n", JOBRUNNER_DIALECT_RTOT_SECRET="of the service")
    original = load(ini, "[dialect:rtot]\nenabled = yes\nhost = ::1\nport = 8457\n", RTOT_SECRET="of the original")

    assert config.binds == ["127.0.0.1:8080", "127.0.0.1:8457"]
    assert original.dialect_binds == {"[::1]:8457": ("::1", 8457)}
    assert original.dialects["rtot"] != config.dialects["rtot"]
    assert "of the" not in repr(config) + repr(original) + str(render_value(original.section("dialect:rtot").secret))


def test_everything_that_is_wrong_with_a_dialect_is_told_at_once(ini: Path) -> None:
    found = problems(
        ini,
        """
        [server]
        port = 8457
        [dialect:rtot]
        enabled = yes
        port = 8457
        auth = token
        allow_from = 10.0.0.1/8
        [dialect:rtotx]
        """,
    )

    assert [problem.partition("[")[2].partition(": ")[0] for problem in found] == [
        "dialect:rtotx]",
        "dialect:rtot] allow_from = 10.0.0.1/8",
        "dialect:rtot] secret must be set",
        "dialect:rtot] port must be another than that of [server]",
    ]
    assert "did you mean dialect:rtot?" in found[0]


def test_who_needs_no_token_must_be_given_one(ini: Path) -> None:
    assert problems(ini, "[dialect:rtot]\nenabled = yes\nauth = none\n") == (
        f"{ini}: [dialect:rtot] run_as must name a token when auth = none",
    )
    assert load(ini, "[dialect:rtot]\nauth = none\n").warnings == (), "nobody asks there"
