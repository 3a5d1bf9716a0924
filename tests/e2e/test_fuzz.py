"""Bodies that nobody would write."""

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.e2e.checks import check_job, check_problem, post_raw
from tests.service import Service

text = st.text(max_size=20)
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)
MEMBERS: dict[str, st.SearchStrategy[Any]] = {
    "command": st.sampled_from(["true", "exit 1", "", "\0"]) | text.map(lambda words: f"true #{words}"),
    "argv": st.lists(st.sampled_from(["true", "", "/", "absent"]) | text.map(lambda word: f"./{word}"), max_size=3),
    "script": text,
    "args": st.lists(text, max_size=3),
    "source": text.map(lambda words: f"true #{words}") | st.just("#!"),
    "env": st.dictionaries(text, text, max_size=3),
    "cwd": text | st.sampled_from(["/", ".", "..", "/proc/self", "/dev/null"]),
    "stdin": text | st.fixed_dictionaries({"base64": text}),
    "files": st.dictionaries(text, text | st.fixed_dictionaries({"base64": text}), max_size=3),
    "stderr": st.sampled_from(["separate", "stdout"]) | text,
    "timeout": st.floats() | st.integers(),
    "grace": st.floats() | st.integers(),
    "name": text,
    "priority": st.sampled_from(["low", "normal", "high"]) | text,
    "labels": st.dictionaries(text, text, max_size=3),
    "callback_url": st.sampled_from(["http://127.0.0.1:1/", "http://[::", "http://0x7f.1:1/a?b#c"])
    | text.map("http://127.0.0.1:1/{}".format),
}
bodies = st.fixed_dictionaries({}, optional={name: kind | junk for name, kind in MEMBERS.items()}) | junk
PROGRAMS: list[dict[str, Any]] = [{"command": "true"}, {"argv": ["true"]}, {"source": "true"}]
likely = st.sampled_from(PROGRAMS).flatmap(
    lambda what: st.fixed_dictionaries(
        {name: st.just(value) for name, value in what.items()},
        optional={name: kind for name, kind in MEMBERS.items() if name not in {"command", "argv", "source", "script"}},
    )
)


def test_no_body_brings_the_service_to_its_knees(service: Service) -> None:
    accepted: list[str] = []

    @settings(max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(bodies | likely)
    def submit(body: Any) -> None:
        response = post_raw(service, json.dumps(body))
        if response.status_code == 202:
            accepted.append(check_job(response.json())["id"])
        else:
            assert response.status_code < 500
            check_problem(response, response.status_code)

    submit()
    assert accepted
    for job in accepted:
        check_job(service.wait(job))
