#!/usr/bin/env bash
# Installs the published Standard Webhooks libraries, once, and prints the folder that they are in. Python is that of
# tests/homeserver.
#
# It is $COUCOU_CONSUMERS, or else ~/.cache/coucou-consumers. Without Node there is only Python.
set -euo pipefail

python_library=standardwebhooks==1.1.0
node_library=standardwebhooks@1.1.1

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${COUCOU_CONSUMERS:-${XDG_CACHE_HOME:-$HOME/.cache}/coucou-consumers}
done=$folder/.done
wanted="$python_library $node_library $(command -v node || true)"

install() {
  rm -rf "$folder/python" "$folder/node"
  # What the library asks for beside itself is for its HTTP client, not for signatures.
  "$here/../homeserver/synapse.sh" python -m pip install --quiet --no-deps --target "$folder/python" "$python_library" >&2
  if command -v npm >/dev/null; then
    mkdir -p "$folder/node"
    npm install --silent --no-audit --no-fund --prefix "$folder/node" "$node_library" >&2
  fi
  echo "$wanted" >"$done"
}

mkdir -p "$folder"
(
  ! command -v flock >/dev/null || flock 9
  [[ -f $done && $(<"$done") == "$wanted" ]] || install
) 9>"$folder/.lock"
echo "$folder"
