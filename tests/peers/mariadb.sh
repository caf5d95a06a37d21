#!/bin/sh
# A fresh MariaDB on port 3306 with one user: lab, password lab.
set -eu
dir=$(mktemp -d "$PWD/mariadb.XXXXXX")
mariadb-install-db --no-defaults --datadir="$dir/data" --skip-test-db --auth-root-authentication-method=normal \
    --innodb-use-native-aio=0 >"$dir/install.log" 2>&1 || { cat "$dir/install.log" >&2; exit 1; }
cat >"$dir/init.sql" <<'SQL'
CREATE USER 'lab'@'%' IDENTIFIED BY 'lab';
GRANT ALL ON *.* TO 'lab'@'%';
SQL
exec mariadbd --no-defaults --datadir="$dir/data" --socket="$dir/socket" --pid-file="$dir/pid" --init-file="$dir/init.sql" \
    --bind-address=0.0.0.0 --port=3306 --skip-name-resolve --max-connect-errors=1000000 --innodb-use-native-aio=0 --innodb-flush-log-at-trx-commit=0
