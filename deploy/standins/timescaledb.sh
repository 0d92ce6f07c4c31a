#!/bin/bash
# Makes a cluster in a new volume, and starts the server.
set -euo pipefail

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username="$POSTGRES_USER" --pwfile=<(echo "$POSTGRES_PASSWORD") --auth-host=scram-sha-256 >/dev/null
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    printf '%s\n' "listen_addresses = '*'" "shared_preload_libraries = 'timescaledb'" \
        'timescaledb.telemetry_level = off' >>"$PGDATA/postgresql.conf"
    pg_ctl --silent --wait --options='-c listen_addresses=' start
    psql=(psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 "--username=$POSTGRES_USER")
    for database in postgres template1; do "${psql[@]}" "--dbname=$database" --command='CREATE EXTENSION timescaledb'; done
    "${psql[@]}" --dbname=postgres --command="CREATE DATABASE \"$POSTGRES_DB\""
    pg_ctl --silent --wait --mode=fast stop
fi
exec "$@"
