#!/usr/bin/env bash
# Fuzzes a running coucou from its own description with schemathesis. The environment lives in $COUCOU_FUZZER (default
# ~/.cache/coucou-fuzzer).
#
#   fuzz.sh install   create the Python environment (fast when already there)
#   fuzz.sh run       fuzz the coucou that the file $COUCOU_FUZZ tells of, in JSON: url, read and admin (lists of tokens), hs_token.
#                     COUCOU_FUZZ_PHASES: coverage, which is systematic, and fuzzing, which is at random (default both)
#                     COUCOU_FUZZ_EXAMPLES: how many at random for each endpoint (default 15)
#                     COUCOU_FUZZ_SEED: another seed than the usual one
#                     COUCOU_FUZZ_REPORTS: a folder for what was sent and answered
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${COUCOU_FUZZER:-${XDG_CACHE_HOME:-$HOME/.cache}/coucou-fuzzer}

fail() {
  echo "fuzz.sh: $*" >&2
  exit 1
}

install() {
  cmp -s "$here/requirements.txt" "$venv/.requirements" && return 0
  mkdir -p "$(dirname "$venv")"
  # Two at once would write over each other: the second waits, and then finds the work done.
  (
    ! command -v flock >/dev/null || flock 9
    cmp -s "$here/requirements.txt" "$venv/.requirements" || make_environment
  ) 9>"$venv.lock"
}

make_environment() {
  echo "fuzz.sh: installing schemathesis from PyPI into $venv, once" >&2
  # With the Python that the tests' homeserver has found.
  "$here/../homeserver/synapse.sh" python -m venv --clear "$venv" 9>&-
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps -r "$here/requirements.txt" 9>&- ||
    fail "pip could not install schemathesis; what it said is above"
  cp "$here/requirements.txt" "$venv/.requirements"
}

run() {
  install
  [[ ${COUCOU_FUZZ-} ]] || fail "COUCOU_FUZZ names no file"
  local url folder seed=${COUCOU_FUZZ_SEED:-1} status=0
  url=$("$venv/bin/python" -c 'import json, os; print(json.load(open(os.environ["COUCOU_FUZZ"]))["url"])')
  folder=${COUCOU_FUZZ_REPORTS:-$(mktemp -d)}
  mkdir -p "$folder"
  cd "$folder"
  local examples=${COUCOU_FUZZ_EXAMPLES:-15}
  fuzz() {
    local name=$1
    shift
    PYTHONPATH=$here "$venv/bin/schemathesis" --config-file "$here/schemathesis.toml" run "$@" --seed "$seed" --warnings off \
      --report-ndjson-path "$name.ndjson" || status=1
  }
  fuzz api "$url/api/v1/openapi.json" --max-examples "$examples" --phases "${COUCOU_FUZZ_PHASES:-coverage,fuzzing}"
  # What the homeserver sends is taken however odd it is, so that nothing of it is said to be wrong.
  fuzz homeserver "$here/homeserver.yaml" --url "$url" --max-examples $((2 * examples)) --phases fuzzing --mode positive \
    --exclude-checks negative_data_rejection,positive_data_acceptance
  return "$status"
}

case ${1-} in
  install | run) "$1" ;;
  *) fail "install or run?" ;;
esac
