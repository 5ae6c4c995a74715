#!/usr/bin/env bash
# coucou at its one job, on a homeserver of its own: a bridge's ghost says COUCOU in an encrypted room, a
# webhook gets it in clear; and again after a SIGKILL, in the same Megolm session.
set -euo pipefail
cd "$(dirname "$0")/.."

homeserver=tests/homeserver/synapse.sh
dir=$(mktemp -d "${TMPDIR:-/tmp}/coucou-demo.XXXXXX")
pids=() step="" began="" log=""

# Ends the step before, and says what comes now.
step() {
  done_with_step
  step=$1 began=${EPOCHREALTIME/[.,]/} log=${2:-}
  printf '%-62s' "$step …"
}

done_with_step() {
  [[ -n $step ]] || return 0
  local took=$(((${EPOCHREALTIME/[.,]/} - began) / 100000))
  printf ' %d.%d s\n' "$((took / 10))" "$((took % 10))"
  step=""
}

fail() {
  [[ -z $step ]] || printf ' FAILED\n'
  echo "demo: failed at \"$step\": $*" >&2
  step=""
  exit 1
}

cleanup() {
  local status=$? pid
  trap '' INT TERM
  if ((status)) && [[ -n $step ]]; then
    printf ' FAILED\ndemo: failed at "%s" (exit code %d)\n' "$step" "$status" >&2
  fi
  if ((status)) && [[ -n $log && -s $log ]]; then
    echo "demo: the end of its log:" >&2
    tail -n 15 "$log" >&2
  fi
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  [[ ! -d $dir/hs ]] || "$homeserver" stop --dir "$dir/hs" || true
  rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A port on which nothing listens.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
  done
  echo "$port"
}

# Waits until a port answers, as long as the process lives.
wait_for_port() {
  local port=$1 pid=$2 name=$3 _
  for _ in {1..300}; do
    (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null && return 0
    kill -0 "$pid" 2>/dev/null || fail "$name ended at once"
    sleep 0.1
  done
  fail "$name does not answer on port $port"
}

start_coucou() {
  COUCOU_HOMESERVER_URL=http://127.0.0.1:$synapse_port \
    COUCOU_APPSERVICE_REGISTRATION=$dir/registration.yaml \
    COUCOU_HTTP_PORT=$coucou_port \
    COUCOU_STORE_URL=sqlite:$dir/coucou.db \
    COUCOU_WEBHOOK_URL=http://127.0.0.1:$listen_port/ \
    COUCOU_WEBHOOK_SECRET=$secret \
    "$coucou" serve >>"$dir/coucou.log" 2>&1 &
  coucou_pid=$!
  pids+=("$coucou_pid")
  wait_for_port "$coucou_port" "$coucou_pid" coucou
}

# Lets the ghost speak; in the portal that is given, else in a new one.
say() {
  "$homeserver" python tests/homeserver/sender.py send --homeserver "http://127.0.0.1:$synapse_port" \
    --registration "$dir/bridge.yaml" --state "$dir/bridge.db" --invite @coucou:localhost \
    --messages text --text COUCOU "$@" >"$dir/said" 2>"$dir/sender.log"
}

# Waits for the delivery of what was said last, and shows it.
show() {
  "$homeserver" python tests/homeserver/delivered.py --said "$dir/said" --received "$dir/received" \
    >"$dir/delivery" 2>"$dir/delivered.log" || fail "$(tail -n 1 "$dir/delivered.log")"
  done_with_step
  sed 's/^/    /' "$dir/delivery"
}

step "Build coucou (cargo build)" "$dir/build.log"
cargo build --locked >"$dir/build.log" 2>&1
coucou=$(cargo metadata --no-deps --format-version 1 --locked 2>/dev/null |
  sed -n 's/.*"target_directory":"\([^"]*\)".*/\1/p')/debug/coucou
[[ -x $coucou ]] || fail "there is no $coucou"

step "Install Synapse from PyPI (once, into ~/.cache)" "$dir/install.log"
"$homeserver" install >"$dir/install.log" 2>&1

step "Generate the registrations of coucou and of a bridge" "$dir/registration.log"
synapse_port=$(free_port) coucou_port=$(free_port) listen_port=$(free_port)
"$coucou" registration --server-name localhost --url "http://127.0.0.1:$coucou_port" \
  --output "$dir/registration.yaml" >"$dir/registration.log" 2>&1
"$homeserver" python tests/homeserver/sender.py registration >"$dir/bridge.yaml" 2>>"$dir/registration.log"
secret=whsec_$("$homeserver" python -c 'import base64, os; print(base64.b64encode(os.urandom(32)).decode())')

step "Start Synapse, with encrypted application services" "$dir/synapse.log"
"$homeserver" start --dir "$dir/hs" --port "$synapse_port" --registration "$dir/registration.yaml" \
  --registration "$dir/bridge.yaml" >"$dir/synapse.log" 2>&1

step "Start the webhook (coucou listen)" "$dir/listen.log"
COUCOU_WEBHOOK_SECRET=$secret "$coucou" listen --port "$listen_port" --json \
  >"$dir/received" 2>"$dir/listen.log" &
listen_pid=$!
pids+=("$listen_pid")
wait_for_port "$listen_port" "$listen_pid" "coucou listen"

step "Start coucou (SQLite)" "$dir/coucou.log"
start_coucou

step "A ghost says COUCOU in an encrypted Instagram portal" "$dir/sender.log"
say
portal=$(sed -n '1s/.*"portal": "\([^"]*\)".*/\1/p' "$dir/said")
[[ -n $portal ]] || fail "the bridge made no portal"
step "The webhook has it, verified and decrypted" "$dir/coucou.log"
show

step "Kill coucou (SIGKILL), and start it again" "$dir/coucou.log"
kill -KILL "$coucou_pid"
wait "$coucou_pid" 2>/dev/null || true
start_coucou
cp "$dir/said" "$dir/said.first"

step "The ghost says COUCOU again, in the same Megolm session" "$dir/sender.log"
say --room "$portal"
session() { sed -n 's/.*"session_id": "\([^"]*\)".*/\1/p' "$1"; }
[[ $(session "$dir/said") == "$(session "$dir/said.first")" ]] || fail "the bridge began another session"
step "The webhook has it, too" "$dir/coucou.log"
show

step "Clean up"
kill "$coucou_pid" "$listen_pid"
wait "$coucou_pid" || fail "coucou did not end well"
wait "$listen_pid" || true
pids=()
"$homeserver" stop --dir "$dir/hs"
done_with_step
echo "It works."
