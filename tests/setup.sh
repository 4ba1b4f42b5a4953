#!/bin/sh
# Installs what the demo or the tests need on a bare Debian machine, and only what is missing.
# Usage: setup.sh demo|test|lab|model. Without root it says what to run and fails if the demo can't do without.
set -eu

missing=
need() { # need COMMAND PACKAGE
	PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 && return
	case " $missing " in *" $2 "*) ;; *) missing="$missing $2" ;; esac
}

case "${1:-}" in
demo)
	need redis-benchmark redis-tools
	;;
test)
	need redis-benchmark redis-tools
	need ip iproute2
	need gcc gcc        # the race detector, and the ledger's image
	need ld binutils
	need iasl acpica-tools
	need qemu-img qemu-utils
	# The C library's headers come apart from the compiler.
	[ -e /usr/include/stdlib.h ] || case " $missing " in *" libc6-dev "*) ;; *) missing="$missing libc6-dev" ;; esac
	;;
lab)
	need qemu-system-x86_64 qemu-system-x86
	need qemu-img qemu-utils
	need busybox busybox-static
	need mke2fs e2fsprogs
	need ldd libc-bin
	# The guest images.
	need debootstrap debootstrap
	need sfdisk fdisk
	need mcopy mtools
	# Guests that boot through firmware, and from disks of their own.
	need mkfs.vfat dosfstools
	need grub-mkstandalone grub-common
	[ -e /usr/lib/grub/x86_64-efi ] || missing="$missing grub-efi-amd64-bin"
	[ -e /usr/share/OVMF/OVMF_CODE_4M.fd ] || missing="$missing ovmf"
	need ssh-keygen openssh-client
	;;
model)
	need spin spin
	need gcc gcc
	[ -e /usr/include/stdlib.h ] || missing="$missing libc6-dev"
	;;
*)
	echo "usage: $0 demo|test|lab|model" >&2
	exit 2
	;;
esac

[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
	echo "missing:$missing; as root run: apt-get install -y --no-install-recommends$missing" >&2
	[ "$1" = test ] && exit 0 # those tests are skipped, and say so
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
# shellcheck disable=SC2086 # a list of words
apt-get install -q -y --no-install-recommends $missing
