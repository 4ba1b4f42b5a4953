# The client's tools, run by chroot from whatever machine plays the client: nothing is installed there.
apt-get -q -y install postgresql-common
echo "create_main_cluster = false" >>/etc/postgresql-common/createcluster.conf
cat >>/etc/dpkg/dpkg.cfg.d/lab <<'END'
path-exclude=/usr/lib/postgresql/*/lib/bitcode/*
path-exclude=/usr/lib/x86_64-linux-gnu/libLLVM*
path-exclude=/usr/lib/llvm-*/*
END
apt-get -q -y install postgresql-15 postgresql-client-15 dcmtk e2fsprogs redis-tools dnsmasq-base
