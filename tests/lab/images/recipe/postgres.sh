# A PostgreSQL server as Debian sets it up, for the network that the guest is on. The cluster comes from
# postgresql-common's own hook, with checksums on its pages: what a takeover tore would be found.
apt-get -q -y install postgresql-common
echo "initdb_options = '--data-checksums'" >>/etc/postgresql-common/createcluster.conf
# Its JIT compiler is 100 MB that no statement here is worth: the server does without where the library is missing.
cat >>/etc/dpkg/dpkg.cfg.d/lab <<'END'
path-exclude=/usr/lib/postgresql/*/lib/bitcode/*
path-exclude=/usr/lib/x86_64-linux-gnu/libLLVM*
path-exclude=/usr/lib/llvm-*/*
END
apt-get -q -y install postgresql
conf=$(echo /etc/postgresql/*/main)
grep -q '^include_dir' "$conf/postgresql.conf"
cat >"$conf/conf.d/lab.conf" <<'END'
listen_addresses = '*'
fsync = on
synchronous_commit = on
full_page_writes = on
jit = off
shared_buffers = 48MB
max_connections = 32
max_wal_size = 256MB
checkpoint_timeout = 5min
END
echo 'host all all samenet scram-sha-256' >>"$conf/pg_hba.conf"

# Work for a busy guest: a compiler, and packages to install without a network.
apt-get -q -y install tcc libc6-dev
mkdir -p /srv/packages
cd /srv/packages
apt-get -q -o APT::Sandbox::User=root download bc tree zip unzip
