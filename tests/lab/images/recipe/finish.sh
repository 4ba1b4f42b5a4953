# What only the building needed goes, and services may start.
rm -f /usr/sbin/policy-rc.d
rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/cache/apt/*.bin /var/log/*.log /var/log/apt /usr/lib/grub /boot/grub-first.cfg
