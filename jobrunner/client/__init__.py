"""A client of the service, for Python: requests, typed, with the exceptions of the domain.

    from jobrunner.client import Client, Output

    with Client("http://127.0.0.1:8080", token) as client:
        job = client.submit({"argv": ["make", "all"]})
        for event in client.follow(job["id"]):      # goes on at the exact byte when a connection breaks
            if isinstance(event, Output):
                sys.stdout.buffer.write(event.data)
        print(event.job["exit_code"])               # the last event is an `Ended`

Documents are dictionaries, as docs/api.md describes them. A job is meant by
its id or its number. Everything raises a `JobrunnerError`
(`jobrunner.domain.errors`) when the service refuses, and `Unreachable` when
nobody answers or an answer breaks off.
"""

from jobrunner.client.api import Client
from jobrunner.client.events import Dropped, Ended, Event, Moved, Output, event_id
from jobrunner.client.patience import Patience
from jobrunner.client.transport import Document, NeverSent, ServiceError

__all__ = [
    "Client",
    "Document",
    "Dropped",
    "Ended",
    "Event",
    "Moved",
    "NeverSent",
    "Output",
    "Patience",
    "ServiceError",
    "event_id",
]
