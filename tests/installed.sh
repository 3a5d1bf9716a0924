#!/usr/bin/env bash
# A wheel, installed into a venv of its own and used far from the checkout: entry point, migrations, executor, HTTP.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
server=
cleanup() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null && wait "$server" || true; fi
    rm -rf "$work"
}
trap cleanup EXIT

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet "$checkout"
cd "$work"
export JOBRUNNER_STORAGE_DATA_DIR=$work/data JOBRUNNER_PORT=${PORT:-18765}
"$work/venv/bin/jobrunner" serve 2>serve.log &
server=$!
url=http://127.0.0.1:$JOBRUNNER_PORT
ready() { "$work/venv/bin/python" -c "import requests,sys; sys.exit(not requests.get('$url/readyz', timeout=5).ok)" 2>/dev/null; }
for _ in $(seq 100); do ready && break; sleep 0.2; done
ready || { cat serve.log; exit 1; }
job=$("$work/venv/bin/jobrunner" submit -- sh -c 'echo installed; exit 5')
for _ in $(seq 100); do
    state=$("$work/venv/bin/jobrunner" list --json)
    case $state in *'"state": "failed"'*) break ;; esac
    sleep 0.1
done
test "$("$work/venv/bin/jobrunner" logs "$job")" = installed
test "$(echo from stdin | "$work/venv/bin/jobrunner" run -- cat)" = "from stdin"
"$work/venv/bin/jobrunner" status "$job" | grep -q 'exit code: *5'
"$work/venv/bin/jobrunner" db current | grep -Eq '^([0-9]+) \(known: \1\)$'
kill "$server"
wait "$server"
server=
echo "installed package: ok"
