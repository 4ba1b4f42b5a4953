# The tree that everything else grows from: a minimal Debian with its security updates, and no service started.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
chmod +x /usr/sbin/policy-rc.d

cat >/etc/dpkg/dpkg.cfg.d/lab <<'END'
force-unsafe-io
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-exclude=/usr/share/lintian/*
END
cat >/etc/apt/apt.conf.d/lab <<'END'
APT::Install-Recommends "false";
Acquire::Languages "none";
END
cat >/etc/apt/sources.list <<END
deb $MIRROR/debian $SUITE main
deb $MIRROR/debian $SUITE-updates main
deb $MIRROR/debian-security $SUITE-security main
END

apt-get -q update
apt-get -q -y upgrade
apt-get -q -y install systemd-sysv dbus udev openssh-client openssh-server iproute2 iputils-ping procps

find /usr/share/doc -type f ! -name copyright -delete
rm -rf /usr/share/man/* /usr/share/info/* /usr/share/locale/*
