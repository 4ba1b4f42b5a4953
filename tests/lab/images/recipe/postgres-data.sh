# The database of the tests, made by the server itself: pgbench's tables and the ledger in which a transaction leaves the
# number that its client knows it by.
version=$(ls /etc/postgresql)
pg_ctlcluster "$version" main start
as() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
as psql -q -v ON_ERROR_STOP=1 <<'END'
CREATE ROLE lab SUPERUSER LOGIN PASSWORD 'lab';
CREATE DATABASE lab OWNER lab;
\c lab
CREATE EXTENSION amcheck;
CREATE TABLE ledger (client int NOT NULL, seq bigint NOT NULL, PRIMARY KEY (client, seq));
END
as "/usr/lib/postgresql/$version/bin/pgbench" -q -i -s 4 lab
as psql -q -d lab -c 'VACUUM FREEZE ANALYZE' -c CHECKPOINT
pg_ctlcluster "$version" main stop
