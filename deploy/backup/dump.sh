#!/bin/sh
# Writes a dump of coucou's PostgreSQL database, while coucou runs.
#
#   COUCOU_STORE_URL=postgres://… deploy/backup/dump.sh coucou-$(date +%F).dump
#
# It holds room keys and messages sealed with COUCOU_STORE_PICKLE_KEY, which is not in it: keep both, apart.
# pg_dump must be at least as new as the server.
set -eu

[ $# -eq 1 ] || { echo "usage: COUCOU_STORE_URL=postgres://… $0 FILE" >&2; exit 2; }
: "${COUCOU_STORE_URL:?is not set: the database to dump}"
[ ! -e "$1" ] || { echo "$1 is there already; a dump overwrites nothing" >&2; exit 1; }

umask 077
trap 'rm -f "$1.part"' EXIT
pg_dump --format=custom --no-owner --no-privileges --file="$1.part" --dbname="$COUCOU_STORE_URL"
# That it can be read to its end.
pg_restore --list "$1.part" >/dev/null
mv "$1.part" "$1"
echo "dumped to $1 ($(wc -c <"$1") bytes)"
