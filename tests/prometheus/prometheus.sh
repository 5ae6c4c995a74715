#!/usr/bin/env bash
# Prometheus and promtool for tests: the system's, else Debian's package, unpacked and not installed, so that no service
# of it runs. It lives in $COUCOU_PROMETHEUS (default ~/.cache/coucou-prometheus).
#
#   prometheus.sh install              see to it that both are there (fast when they are)
#   prometheus.sh prometheus ARGS...   run Prometheus, in place of this script
#   prometheus.sh promtool ARGS...     run its tool
set -euo pipefail

folder=${COUCOU_PROMETHEUS:-${XDG_CACHE_HOME:-$HOME/.cache}/coucou-prometheus}

fail() {
  echo "prometheus.sh: $*" >&2
  exit 1
}

# Prints where the two programs are.
find_binaries() {
  local bin
  for bin in "$(dirname "$(command -v prometheus || echo /nowhere/prometheus)")" "$folder/usr/bin"; do
    if [[ -x $bin/prometheus && -x $bin/promtool ]]; then
      echo "$bin"
      return 0
    fi
  done
  return 1
}

install() {
  find_binaries >/dev/null && return 0
  mkdir -p "$(dirname "$folder")"
  # Two at once would write over each other: the second waits, and then finds the work done.
  (
    ! command -v flock >/dev/null || flock 9
    find_binaries >/dev/null || unpack
  ) 9>"$folder.lock"
}

unpack() {
  local missing="Prometheus is not installed: install it with promtool (Debian: apt-get install prometheus; macOS: brew install prometheus)"
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || fail "$missing"
  echo "prometheus.sh: unpacking Debian's Prometheus into $folder, once" >&2
  rm -rf "$folder.new"
  mkdir -p "$folder.new"
  download || { ((EUID == 0)) && apt-get update >/dev/null && download; } || fail "$missing"
  dpkg-deb --extract "$folder.new"/prometheus_*.deb "$folder.new" || fail "the package cannot be unpacked"
  rm "$folder.new"/prometheus_*.deb
  rm -rf "$folder"
  mv "$folder.new" "$folder"
  find_binaries >/dev/null || fail "the package has no prometheus and promtool"
}

download() { (cd "$folder.new" && apt-get download -qq prometheus >/dev/null 2>&1); }

case ${1-} in
  install) install ;;
  prometheus | promtool)
    install
    exec "$(find_binaries)/$1" "${@:2}"
    ;;
  *) fail "install, prometheus or promtool?" ;;
esac
