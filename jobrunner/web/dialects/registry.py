"""All dialects that there are."""

from jobrunner.web.dialects import go_jobrunner, http_runner, rtot
from jobrunner.web.dialects.dialect import Dialect

DIALECTS: dict[str, Dialect] = {module.DIALECT.name: module.DIALECT for module in (go_jobrunner, http_runner, rtot)}
