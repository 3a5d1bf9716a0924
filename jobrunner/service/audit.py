"""Who did what, from where, by which rule: one line of the log for each change, and for each refusal.

The lines are the logger's `jobrunner.audit`, whatever ``[logging] level`` says.
They show no value of a job's environment, and nothing that a token can be made of.
"""

import logging

from jobrunner.domain.access import Caller, Grant
from jobrunner.domain.job import Job
from jobrunner.domain.masking import ARGV_MOST, Mask, MaskRules

logger = logging.getLogger("jobrunner.audit")

DETAIL_MOST = 300
"""Most characters of a problem's own words."""

_REFERENCE_MOST = 64
"""Most characters of what a client calls a job."""

_PLAIN = Mask(())


class Audit:
    """Writes the lines. Each use case calls it once, when what was asked for is done and durable.

    Args:
        masks: what is secret of what jobs are given; None for what is not about jobs.
    """

    def __init__(self, masks: MaskRules | None = None) -> None:
        self._masks = masks or MaskRules((), {})

    def submission(self, action: str, caller: Caller, job: Job, *, rule: str, is_repeat: bool) -> None:
        """Note a job that was queued, or one that an idempotency key has led to."""
        spec = job.spec
        mask, most = self._masks.mask(*spec.environments), ARGV_MOST // len(spec.steps)
        steps = [(step.kind.value, mask.hide_words(step.argv, most)) for step in spec.steps]
        about = {"kind": steps[0][0], "argv": steps[0][1]} if len(steps) == 1 else {"steps": steps}
        self.job(
            action,
            caller,
            job,
            result="repeated" if is_repeat else "accepted",
            rule=rule,
            env=_PLAIN.hide_words(sorted(set().union(*spec.environments))),
            name=spec.name,
            **about,
        )

    def job(self, action: str, caller: Caller, job: Job, *, result: str = "accepted", **more: object) -> None:
        """Note what was done with a job."""
        about = {"id": job.id, "owner": job.owner, **more}
        _write(logging.INFO, action, result, caller, about, number=job.number)

    def token(self, action: str, by: Caller, name: str, grant: Grant | None = None, **more: object) -> None:
        """Note that a token was made or revoked; ``grant`` is what it allows."""
        about: dict[str, object] = {"token": name}
        if grant is not None:
            about |= grant.describe()
        _write(logging.INFO, action, "accepted", by, about | more)

    def refusal(self, caller: Caller, *, status: int, rule: str | None, detail: str, job: str | None) -> None:
        """Note a request that was refused.

        Args:
            caller: who has asked; without a name it is nobody known.
            status: of the answer.
            rule: the name of the problem's type; None: it was told in another form.
            detail: the problem's own words.
            job: what the client calls the job that it is about.
        """
        about: dict[str, object] = {"status": status, "rule": rule, "detail": _PLAIN.hide(detail, DETAIL_MOST)}
        if job is not None:
            about["asked_job"] = _PLAIN.hide(job, _REFERENCE_MOST)
        _write(logging.WARNING, "request", "refused", caller, about)


def _write(
    level: int, action: str, result: str, caller: Caller, about: dict[str, object], number: int | None = None
) -> None:
    fields = {
        "action": action,
        "result": result,
        "by": caller.name or None,
        "from": caller.address,
        "route": caller.route,
        **about,
    }
    logger.log(level, "", extra={"job": number, "fields": fields})
