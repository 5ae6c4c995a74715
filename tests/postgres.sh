#!/usr/bin/env bash
# A throwaway PostgreSQL on 127.0.0.1 for tests: trusting, forgetful, gone afterwards.
set -euo pipefail

usage() {
  cat >&2 <<'USAGE'
postgres.sh with COMMAND...   run COMMAND with COUCOU_TEST_DATABASE_URL set to a server of its own
                              (a server that COUCOU_TEST_DATABASE_URL already names is used instead)
postgres.sh start DIR PORT    start a server with its data in DIR (made when missing), print its URL
postgres.sh stop DIR          stop it; start again on the same DIR keeps the data
USAGE
  exit 2
}

fail() {
  echo "postgres.sh: $*" >&2
  exit 1
}

# Prints the folder that holds initdb, pg_ctl and postgres.
find_binaries() {
  local folder
  for folder in \
    "$(dirname "$(readlink -f "$(command -v initdb || echo /nowhere/initdb)")")" \
    "$(pg_config --bindir 2>/dev/null || true)" \
    $(ls -d /usr/lib/postgresql/*/bin /usr/pgsql-*/bin /opt/homebrew/opt/postgresql*/bin 2>/dev/null | sort -rV); do
    if [[ -x $folder/initdb && -x $folder/pg_ctl && -x $folder/postgres ]]; then
      echo "$folder"
      return 0
    fi
  done
  return 1
}

require_binaries() {
  bin=$(find_binaries) && return 0
  if ((EUID == 0)) && command -v apt-get >/dev/null; then
    echo "postgres.sh: no PostgreSQL here: apt-get install postgresql" >&2
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends postgresql; } >/dev/null || true
    bin=$(find_binaries) && return 0
  fi
  fail "PostgreSQL's server is not installed: install it (Debian: apt-get install postgresql; macOS: brew" \
    "install postgresql), or name a running one in COUCOU_TEST_DATABASE_URL"
}

# The server refuses to run as root: then it runs as somebody without rights.
find_user() {
  user=""
  ((EUID != 0)) && return 0
  for user in postgres nobody; do id "$user" >/dev/null 2>&1 && return 0; done
  user=coucou-postgres
  useradd --system --no-create-home --shell /bin/sh "$user" || fail "found no unprivileged user to run PostgreSQL as"
}

unprivileged() {
  if [[ -z $user ]]; then
    "$@"
  elif command -v runuser >/dev/null; then
    runuser -u "$user" -- "$@"
  else
    setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups "$@"
  fi
}

start() {
  (($# == 2)) || usage
  local dir port=$2 options
  mkdir -p "$1" && dir=$(realpath "$1")
  require_binaries
  find_user
  [[ -z $user ]] || chown "$user" "$dir"
  cd "$dir"
  if [[ ! -f $dir/data/PG_VERSION ]]; then
    unprivileged "$bin/initdb" --pgdata="$dir/data" --username=postgres --auth=trust --encoding=UTF8 \
      --locale=C --no-sync >"$dir/initdb.log" 2>&1 || { cat "$dir/initdb.log" >&2; fail "initdb failed"; }
  fi
  options="-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories= -c max_connections=300"
  options+=" -c fsync=off -c synchronous_commit=off -c full_page_writes=off -c timezone=UTC"
  unprivileged "$bin/pg_ctl" start --pgdata="$dir/data" --log="$dir/server.log" --options="$options" \
    --wait --timeout=60 --silent </dev/null >/dev/null 2>&1 || {
    tail -n 5 "$dir/server.log" >&2 || true
    fail "the server did not start on port $port"
  }
  echo "postgres://postgres@127.0.0.1:$port/postgres"
}

stop() {
  (($# >= 1)) || usage
  local dir
  dir=$(realpath "$1")
  [[ -f $dir/data/postmaster.pid ]] || return 0
  require_binaries
  find_user
  cd "$dir"
  unprivileged "$bin/pg_ctl" stop --pgdata="$dir/data" --mode="${2:-fast}" --wait --timeout=60 --silent >/dev/null
}

# Below the range from which the system takes ports for outgoing connections.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

cleanup() {
  trap '' INT TERM HUP
  if [[ -n $child ]]; then kill -TERM -- "-$child" 2>/dev/null && wait "$child" || true; fi
  (stop "$cluster" immediate) || true
  rm -rf "$cluster"
}

with() {
  (($#)) || usage
  [[ -z ${COUCOU_TEST_DATABASE_URL-} ]] || exec "$@"
  child="" cluster=$(mktemp -d "${TMPDIR:-/tmp}/coucou-postgres.XXXXXX")
  chmod 755 "$cluster"
  trap cleanup EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  local url="" attempt status=0
  for attempt in 1 2 3 4 5; do
    url=$( (start "$cluster" "$(free_port)") 2>"$cluster.err") && break
    ((attempt < 5)) || { cat "$cluster.err" >&2; rm -f "$cluster.err"; exit 1; }
  done
  rm -f "$cluster.err"
  # A process group of its own, so that an interrupt ends all of it before the server goes away; its input
  # is closed, as a background group may not read from the terminal.
  set -m
  COUCOU_TEST_DATABASE_URL=$url "$@" </dev/null &
  child=$!
  set +m
  wait "$child" || status=$?
  child=""
  exit "$status"
}

(($#)) || usage
command=$1
shift
case $command in
  start | stop | with) "$command" "$@" ;;
  *) usage ;;
esac
