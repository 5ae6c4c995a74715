#!/bin/sh
# Reads a dump back into an empty PostgreSQL database.
#
#   COUCOU_STORE_URL=postgres://… deploy/backup/restore.sh coucou-2026-11-22.dump
#
# Stop every coucou first, and start it afterwards with the same COUCOU_STORE_PICKLE_KEY. What happened since the
# dump it takes from the homeserver: the rooms' timelines, and keys from the key backup. Messages that were delivered
# since the dump are delivered again, under the same webhook-id.
set -eu

[ $# -eq 1 ] || { echo "usage: COUCOU_STORE_URL=postgres://… $0 FILE" >&2; exit 2; }
: "${COUCOU_STORE_URL:?is not set: the database to restore into}"
[ -r "$1" ] || { echo "$1 cannot be read" >&2; exit 1; }

tables=$(psql --no-psqlrc --quiet --tuples-only --no-align --dbname="$COUCOU_STORE_URL" \
    --command="SELECT COUNT(*) FROM pg_tables WHERE schemaname = current_schema()")
[ "$tables" -eq 0 ] || { echo "the database has $tables tables: restore into an empty one" >&2; exit 1; }

pg_restore --no-owner --no-privileges --exit-on-error --single-transaction --dbname="$COUCOU_STORE_URL" "$1"
echo "restored from $1"
