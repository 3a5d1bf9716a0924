"""All dialects that there are."""

from jobrunner.web.dialects import go_jobrunner, http_runner, qmd, rexec, rtot
from jobrunner.web.dialects.dialect import Dialect

_MODULES = (go_jobrunner, http_runner, qmd, rexec, rtot)

DIALECTS: dict[str, Dialect] = {module.DIALECT.name: module.DIALECT for module in _MODULES}
