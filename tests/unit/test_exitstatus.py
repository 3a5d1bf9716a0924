"""Exit statuses, as the kernel reports them of real processes."""

import os
import signal

import pytest

from jobrunner.domain.exitstatus import ExitStatus, parse_signal, signal_name

ENDS = [
    pytest.param("exit 0", ExitStatus(code=0), id="0"),
    pytest.param("exit 3", ExitStatus(code=3), id="3"),
    pytest.param("exit 137", ExitStatus(code=137), id="137 is a code, not SIGKILL"),
    pytest.param("exit 255", ExitStatus(code=255), id="255"),
    pytest.param("kill -TERM $$", ExitStatus(signal=signal.SIGTERM), id="SIGTERM"),
    pytest.param("kill -KILL $$", ExitStatus(signal=signal.SIGKILL), id="SIGKILL"),
    pytest.param("ulimit -c 0; kill -SEGV $$", ExitStatus(signal=signal.SIGSEGV), id="SIGSEGV"),
    pytest.param("kill -64 $$", ExitStatus(signal=64), id="SIGRTMAX"),
]


def spawn(script: str) -> int:
    """Start a child that this process has to reap itself."""
    return os.posix_spawn("/bin/sh", ["sh", "-c", script], {})


@pytest.mark.parametrize(("script", "status"), ENDS)
def test_the_status_of_wait_is_read_as_code_or_signal(script: str, status: ExitStatus) -> None:
    _, wait_status = os.waitpid(spawn(script), 0)

    assert ExitStatus.from_wait_status(wait_status) == status


@pytest.mark.parametrize(("script", "status"), ENDS)
def test_siginfo_is_read_as_code_or_signal(script: str, status: ExitStatus) -> None:
    siginfo = os.waitid(os.P_PID, spawn(script), os.WEXITED)

    assert siginfo is not None
    assert ExitStatus.from_siginfo(siginfo.si_code, siginfo.si_status) == status


def test_a_core_dump_is_the_signal_that_caused_it() -> None:
    assert ExitStatus.from_siginfo(os.CLD_DUMPED, signal.SIGSEGV) == ExitStatus(signal=signal.SIGSEGV)
    assert ExitStatus.from_wait_status(signal.SIGSEGV | 0x80) == ExitStatus(signal=signal.SIGSEGV)


def test_only_exit_code_0_is_success() -> None:
    assert ExitStatus(code=0).ok
    assert not ExitStatus(code=1).ok
    assert not ExitStatus(signal=signal.SIGTERM).ok
    assert not ExitStatus().ok


@pytest.mark.parametrize("named", signal.Signals)
def test_a_signal_s_name_can_be_read_back(named: signal.Signals) -> None:
    assert signal_name(named) == named.name
    assert parse_signal(named.name) == named


def test_what_is_shown_of_a_real_time_signal_can_be_sent_too() -> None:
    assert parse_signal("SIGRTMIN+3") == signal.SIGRTMIN + 3


def test_the_signals_below_the_real_time_ones_get_no_name_that_looks_like_a_sum() -> None:
    """32 and 33 are the C library's own; a process can still die of one."""
    assert "+-" not in signal_name(32)


def test_real_time_signals_are_named_by_their_distance() -> None:
    assert signal_name(signal.SIGRTMIN) == "SIGRTMIN"
    assert signal_name(signal.SIGRTMIN + 3) == "SIGRTMIN+3"


@pytest.mark.parametrize("name", ["TERM", "SIGTERM"])
def test_a_signal_may_be_named_with_or_without_sig(name: str) -> None:
    assert parse_signal(name) == signal.SIGTERM


@pytest.mark.parametrize("name", ["", "SIG", "SIGNOTHING", "15", "0", "-9", "SIG_DFL", "_IGN", "TERM ", "SIGTERM\0"])
def test_what_is_no_signal_is_refused_with_its_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a signal") as refusal:
        parse_signal(name)

    assert repr(name) in str(refusal.value)
