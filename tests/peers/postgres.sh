#!/bin/sh
# A fresh PostgreSQL on port 5432 with a certificate of its own; the user lab is trusted.
set -eu
dir=$(mktemp -d "$PWD/postgres.XXXXXX")
initdb -D "$dir/data" -U lab --auth=trust --no-sync --no-locale -E UTF8 >"$dir/initdb.log" 2>&1 ||
    { cat "$dir/initdb.log" >&2; exit 1; }
echo 'host all all all trust' >>"$dir/data/pg_hba.conf"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=postgres \
    -keyout "$dir/data/server.key" -out "$dir/data/server.crt" 2>/dev/null
chmod 600 "$dir/data/server.key"
exec postgres -D "$dir/data" -c listen_addresses=0.0.0.0 -c port=5432 -c unix_socket_directories= -c ssl=on -c fsync=off
