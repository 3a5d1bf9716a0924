"""``/v1/jobs/ID/files``: what a job has in its scratch directory."""

from urllib.parse import quote_from_bytes

from flask import Response, request

from jobrunner.domain.job import Job
from jobrunner.scratch import Entry, EntryType
from jobrunner.service.document import job_path, render_time
from jobrunner.web.api.blueprint import ApiBlueprint
from jobrunner.web.api.documents import FileListDocument, ProblemDocument
from jobrunner.web.api.schema import FilePath, FileQuery, JobPath, NoQuery
from jobrunner.web.render import json_response
from jobrunner.web.sending import send_file
from jobrunner.web.services import caller, services

bp = ApiBlueprint("files", __name__, url_prefix="/v1/jobs", abp_responses={"default": ProblemDocument})

CONTENT_TYPE = "application/octet-stream"
"""Of every file: what is in it is the job's word alone."""

_BYTES = {"description": "the bytes", "content": {CONTENT_TYPE: {}}}


@bp.get("/<job_id>/files", responses={200: FileListDocument})
def list_files(path: JobPath, query: NoQuery) -> Response:  # noqa: ARG001 refuses what is not known
    """List the scratch directory and all below it, by path. `truncated`: there is more than is listed."""
    job, found = services().files.list(path.job_id, caller())
    return json_response({"files": [_render(job, entry) for entry in found.entries], "truncated": found.is_truncated})


@bp.get("/<job_id>/files/<anything:file>", responses={200: _BYTES, 206: _BYTES})
def download(path: FilePath, query: FileQuery) -> Response:
    """Return a file as it is now, byte for byte: with `Range`, `If-Range`, and mostly an `ETag`."""
    found = services().files.open(path.job_id, caller(), _asked_path())
    return send_file(
        found.file,
        found.bytes,
        content_type=CONTENT_TYPE,
        download_name=found.name.decode(errors="surrogateescape") if query.download else None,
        etag=found.version,
    )


def _asked_path() -> bytes:
    """Return the bytes of the path behind ``/v1/jobs/ID/files/``: Werkzeug's text has lost what is no UTF-8."""
    whole: bytes = request.environ["PATH_INFO"].encode("latin-1")
    return whole.split(b"/", 5)[5]


def _render(job: Job, entry: Entry) -> dict[str, object]:
    is_file = entry.type is EntryType.FILE
    return {
        "path": entry.path.decode(errors="replace"),
        "type": entry.type.value,
        "bytes": entry.bytes,
        "modified_at": render_time(entry.modified_at),
        "href": f"{job_path(job)}/files/{quote_from_bytes(entry.path)}" if is_file else None,
    }
