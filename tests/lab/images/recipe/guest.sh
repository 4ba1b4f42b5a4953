# What makes a tree a machine: kernel, boot loader, network, console, ssh. Little of it is special to a lab; what is
# left out is what a virtual machine has no use for, since each second of its boot is ten here.
mkdir -p /etc/initramfs-tools/conf.d
cat >/etc/initramfs-tools/conf.d/lab <<'END'
MODULES=list
COMPRESS=lz4
FSTYPE=ext4
RESUME=none
END
# The modules for a root file system on virtio-blk. They are named before the kernel comes, so that its initrd is made once.
mkdir -p /etc/initramfs-tools
printf '%s\n' virtio_pci virtio_blk ext4 crc32c_generic >/etc/initramfs-tools/modules
apt-get -q -y install initramfs-tools lz4 e2fsprogs
printf '%s\n' virtio_pci virtio_blk ext4 crc32c_generic >/etc/initramfs-tools/modules
apt-get -q -y install linux-image-cloud-amd64 grub-efi-amd64-bin

echo lab-guest >/etc/hostname
printf '127.0.0.1 localhost lab-guest\n' >/etc/hosts
: >/etc/resolv.conf
echo 'LABEL=root / ext4 errors=remount-ro 0 1' >/etc/fstab

cat >/etc/systemd/network/lab.network <<'END'
[Match]
Type=ether

[Network]
DHCP=ipv4
IPv6AcceptRA=no

[DHCPv4]
ClientIdentifier=mac
UseDNS=no
END
systemctl -q enable systemd-networkd
systemctl -q disable systemd-networkd-wait-online
# No disk writes for a journal that nobody reads after the test; the console has what matters.
mkdir -p /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\n' >/etc/systemd/journald.conf.d/lab.conf

# A root shell on the serial console: the lab's network is its own, and the console is the way in when it fails.
mkdir -p /etc/systemd/system/serial-getty@ttyS0.service.d
cat >/etc/systemd/system/serial-getty@ttyS0.service.d/lab.conf <<'END'
[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 %I linux
END
systemctl -q mask getty@tty1.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
	e2scrub_reap.service fstrim.timer systemd-pstore.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
	systemd-binfmt.service sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount dev-mqueue.mount \
	modprobe@drm.service modprobe@dm_mod.service modprobe@loop.service modprobe@fuse.service modprobe@configfs.service \
	sys-fs-fuse-connections.mount sys-kernel-config.mount systemd-network-generator.service
systemctl -q set-default multi-user.target
rm -f /etc/machine-id /var/lib/dbus/machine-id
# A fixed one: the first boot is like every other.
echo 0d5aa1ab0d5aa1ab0d5aa1ab0d5aa1ab >/etc/machine-id

mkdir -p -m 700 /root/.ssh
printf '%s\n' "$AUTHORIZED_KEY" >/root/.ssh/authorized_keys
chmod 600 /root/.ssh/authorized_keys
cat >/etc/ssh/sshd_config.d/lab.conf <<'END'
UseDNS no
PasswordAuthentication no
HostKey /etc/ssh/ssh_host_ed25519_key
END

# The boot loader looks for its configuration on the root file system, like one that a distribution installed.
cat >/boot/grub-first.cfg <<'END'
search --no-floppy --label root --set=root
set prefix=($root)/boot/grub
configfile $prefix/grub.cfg
END
mkdir -p /boot/grub
cat >/boot/grub/grub.cfg <<END
serial --unit=0 --speed=115200
terminal_output serial
set timeout=0
linux $(ls /boot/vmlinuz-*) $CMDLINE
initrd $(ls /boot/initrd.img-*)
boot
END
grub-mkimage -O x86_64-efi -o /boot/BOOTX64.EFI -c /boot/grub-first.cfg -p /boot/grub \
	part_gpt ext2 fat search search_label configfile normal linux serial terminal echo
