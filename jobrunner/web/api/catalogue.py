"""``/v1/scripts``: what can be run by name."""

from flask import Response

from jobrunner.domain.access import Scope
from jobrunner.service.document import render_time
from jobrunner.web.api.blueprint import ApiBlueprint
from jobrunner.web.api.documents import ProblemDocument, ScriptListDocument
from jobrunner.web.api.schema import NoQuery
from jobrunner.web.render import json_response
from jobrunner.web.services import caller, services

bp = ApiBlueprint("scripts", __name__, url_prefix="/v1/scripts", abp_responses={"default": ProblemDocument})


@bp.get("", responses={200: ScriptListDocument})
def list_scripts(query: NoQuery) -> Response:  # noqa: ARG001 refuses what is not known
    """List the catalogue by name: the scripts that the caller's token is for."""
    services().access.require(caller(), Scope.READ)
    return json_response(
        {
            "scripts": [
                {
                    "name": script.name,
                    "description": script.description,
                    "bytes": script.bytes,
                    "modified_at": render_time(script.modified_at),
                }
                for script in services().catalogue.list()
                if caller().grant.allows_script(script.name)
            ]
        }
    )
