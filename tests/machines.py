"""What the state machines of the tests share: things happen to a system in an order that hypothesis makes up."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

SETTINGS = settings(
    deadline=None,
    database=None,
    print_blob=True,
    report_multiple_bugs=False,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)

Event = tuple[str, dict[str, st.SearchStrategy[Any]]]
"""A method of the machine, and what its arguments are chosen from."""


class Machine(RuleBasedStateMachine):
    """A system that things happen to, one after the other.

    There is one rule for all of them: of several, hypothesis leaves half out of
    an example, and without some of them a job does not come far.
    """

    # By the type checker's reckoning only: hypothesis has a metaclass of its own, which leaves no place for ABC's.
    @abstractmethod
    def events(self) -> Sequence[Event]:
        """Return what may happen next; twice what should happen more often."""

    @rule(event=st.runner().flatmap(lambda machine: machine.choose()))
    def happen(self, event: tuple[str, dict[str, Any]]) -> None:
        what, arguments = event
        getattr(self, what)(**arguments)

    def choose(self) -> st.SearchStrategy[tuple[str, dict[str, Any]]]:
        return st.sampled_from(self.events()).flatmap(
            lambda event: st.tuples(st.just(event[0]), st.fixed_dictionaries(event[1]))
        )


def run_machine(make: Callable[[], Machine], settings: settings) -> None:
    """Have hypothesis look for an order of events that breaks the machine."""
    run_state_machine_as_test(make, settings=settings)  # type: ignore[arg-type]
