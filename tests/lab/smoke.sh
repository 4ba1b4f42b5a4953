#!/bin/sh
# Proves that a stock kernel runs on `pollux vm run`, on any machine that can emulate one.
#
#   tests/lab/smoke.sh [-v]        -v shows the lab host's console as it comes
#
# A lab host (L1) is a QEMU machine under software emulation whose CPU has SVM. In it ordinary kvm-amd
# runs, and on that Pollux runs the guest (L2): the same Debian cloud kernel with a small initrd. L2 says
# hello on its serial console, answers a line typed there, reads and writes its virtio disk, pings L1 over
# virtio-net, and powers off by ACPI; L1 then looks for what was written. Everything that is downloaded or
# built lies in .cache/lab. It takes about a minute and needs no /dev/kvm, no root and no network
# once the kernel package is there.
#
# Needs: go, apt-get, dpkg, qemu-system-x86, busybox-static, kmod, cpio (Debian's packages).
# LAB_TIME is the limit for the lab host in seconds (default 300). LAB_CPUS and LAB_MEMORY are the guest's (1, 192M);
# LAB_KERNEL is another kernel image for it, of the same version. KEEP=1 leaves the work directory.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
cache=$root/.cache/lab
limit=${LAB_TIME:-300}
mkdir -p "$cache"
work=$(mktemp -d "$cache/smoke.XXXXXX")
[ "${KEEP:-}" ] || trap 'rm -rf "$work"' EXIT

for tool in go apt-get dpkg qemu-system-x86_64 busybox modinfo cpio timeout; do
	command -v "$tool" >/dev/null || { echo "smoke: $tool is missing; see the head of $0" >&2; exit 2; }
done

# The kernel package holds vmlinuz and all modules for both levels.
if ! ls "$cache"/kernel/boot/vmlinuz-* >/dev/null 2>&1; then
	package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
	[ "$package" ] || { echo "smoke: linux-image-cloud-amd64 is unknown here: run apt-get update" >&2; exit 2; }
	(cd "$cache" && apt-get download "$package")
	rm -rf "$cache/kernel.new"
	dpkg -x "$(ls -t "$cache"/"$package"_*.deb | head -n 1)" "$cache/kernel.new"
	rm -rf "$cache/kernel"
	mv "$cache/kernel.new" "$cache/kernel"
fi
vmlinuz=$(ls "$cache"/kernel/boot/vmlinuz-* | head -n 1)

(cd "$root" && CGO_ENABLED=0 go build -o "$cache/pollux" ./cmd/pollux)

# modules DIR NAME...: puts modules into DIR/modules, numbered in the order in which they must be loaded. The
# package has no modules.dep, so what each needs comes from modinfo.
modules() {
	dir=$1; shift
	mkdir -p "$dir/modules"
	order=
	for name; do want "$name"; done
	n=100
	for name in $order; do
		cp "$(module "$name")" "$dir/modules/$n-$name.ko"
		n=$((n + 1))
	done
}
module() { find "$cache/kernel/lib/modules" \( -name "$1.ko" -o -name "$(echo "$1" | tr _ -).ko" \) | head -n 1; }
want() {
	case " $order " in *" $1 "*) return ;; esac
	[ "$(module "$1")" ] || { echo "smoke: the kernel package has no module $1" >&2; exit 2; }
	for dependency in $(modinfo -F depends "$(module "$1")" | tr ',' ' '); do want "$dependency"; done
	order="$order $1"
}

# skeleton DIR: a root file system of busybox alone.
skeleton() {
	mkdir -p "$1/bin" "$1/dev" "$1/proc" "$1/sys" "$1/tmp"
	cp "$(command -v busybox)" "$1/bin/busybox"
	cat >"$1/begin" <<-'END'
		/bin/busybox --install -s /bin
		export PATH=/bin
		mount -t proc proc /proc
		mount -t sysfs sysfs /sys
		[ -c /dev/null ] || mount -t devtmpfs dev /dev
		for m in /modules/*.ko; do insmod "$m" || echo "cannot load $m"; done
	END
}
pack() { (cd "$1" && find . | cpio -o -H newc --quiet -R 0:0) >"$2"; }

l2=$work/l2
skeleton "$l2"
modules "$l2" virtio_pci virtio_blk virtio_net virtio_rng
cat >"$l2/init" <<'END'
#!/bin/busybox sh
. /begin
exec </dev/ttyS0 >/dev/ttyS0 2>&1
check() { if eval "$2"; then echo "L2: ok $1"; else echo "L2: FAILED $1"; fi; }
echo "L2: hello from $(uname -r), $(grep -c ^processor /proc/cpuinfo) CPU(s)"
echo "L2: booted in $(cut -d ' ' -f 1 /proc/uptime) s with $(sed -n 's/MemTotal: *//p' /proc/meminfo)"
read -r line
check console '[ "$line" = "typed line" ]'
check disk-size '[ "$(cat /sys/block/vda/size)" = 8192 ]'
check disk-read '[ "$(dd if=/dev/vda bs=512 count=1 2>/dev/null | head -c 9)" = "from host" ]'
check disk-write 'echo "from guest" | dd of=/dev/vda bs=512 seek=8191 conv=fsync,sync 2>/dev/null'
check read-only '! echo x | dd of=/dev/vdb bs=512 conv=fsync 2>/dev/null'
ifconfig eth0 10.99.0.2 up
check network 'ping -c 1 -W 30 10.99.0.1 >/dev/null'
check random '[ "$(dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c)" = 16 ]'
echo "L2: clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
dmesg -r -s 1000000 | grep -iE '^<[0-3]>|WARNING: CPU|ACPI.*(error|warning)|firmware bug|XSAVE consistency' | sed 's/^/L2: complaint: /'
poweroff -f
END
chmod +x "$l2/init"
pack "$l2" "$work/l2.cpio"

l1=$work/l1
skeleton "$l1"
modules "$l1" kvm_amd tun
cp "${LAB_KERNEL:-$vmlinuz}" "$l1/kernel"
cp "$work/l2.cpio" "$l1/l2.cpio"
cp "$cache/pollux" "$l1/bin/pollux"
cat >"$l1/init" <<'END'
#!/bin/busybox sh
. /begin
exec </dev/ttyS0 >/dev/ttyS0 2>&1
echo "L1: up after $(cut -d ' ' -f 1 /proc/uptime) s"
echo "from host" >/disk
truncate -s 4M /disk
truncate -s 1M /readonly
tunctl -t tap0 >/dev/null
ifconfig tap0 10.99.0.1 up
# noxsave: QEMU's emulated SVM does not report a guest's XSETBV to KVM, which then has a wrong idea of the
# guest's extended state. Real CPUs do.
# A line typed before the guest has opened its console is lost, as on any serial port.
mkfifo /typed
exec 3<>/typed
{
	pollux vm run --kernel /kernel --initrd /l2.cpio --memory LAB_MEMORY --cpus LAB_CPUS \
		--cmdline "console=ttyS0 quiet panic=-1 noxsave" --disk /disk --disk /readonly,readonly --net tap=tap0 --no-reboot </typed
	echo "L1: pollux vm run ended with $?"
} 2>&1 | while read -r line; do
	echo "$line"
	case "$line" in *"L2: hello"*) echo "typed line" >&3 ;; esac
done
[ "$(dd if=/disk bs=512 skip=8191 2>/dev/null | head -c 10)" = "from guest" ] && echo "L1: the disk holds what L2 wrote"
echo "L1: done after $(cut -d ' ' -f 1 /proc/uptime) s"
poweroff -f
END
sed -i "s/LAB_MEMORY/${LAB_MEMORY:-192M}/; s/LAB_CPUS/${LAB_CPUS:-1}/" "$l1/init"
chmod +x "$l1/init"
pack "$l1" "$work/l1.cpio"

# nohz=off highres=off: with SVM guests QEMU 7.2 now and then leaves a CPU halted although an interrupt is pending in
# its LAPIC, and L1 would sleep for ever. A tick that comes again by itself wakes it.
out=$work/console
show() { if [ "${1:-}" = -v ]; then tee "$out"; else cat >"$out"; fi; }
timeout -k 5 "$limit" qemu-system-x86_64 -accel tcg,thread=multi -M q35 -m 1024 -smp 1 -cpu EPYC,+svm,+npt \
	-display none -serial stdio -monitor none -nodefaults -no-user-config -no-reboot \
	-kernel "$vmlinuz" -initrd "$work/l1.cpio" \
	-append "console=ttyS0 panic=-1 mitigations=off quiet transparent_hugepage=always nohz=off highres=off" </dev/null | show "$@"

failed=0
expect() { grep -q "$1" "$out" || { echo "smoke: missing: $1" >&2; failed=1; }; }
for check in console disk-size disk-read disk-write read-only network random; do expect "L2: ok $check"; done
expect "L2: hello from .*, ${LAB_CPUS:-1} CPU"
expect 'L1: pollux vm run ended with 0'
expect 'L1: the disk holds what L2 wrote'
if grep 'FAILED\|L2: complaint' "$out" >&2; then failed=1; fi
if [ $failed != 0 ]; then
	echo "smoke: FAILED; the console was:" >&2
	cat "$out" >&2
	exit 1
fi
grep 'L[12]: \(hello\|up\|booted\|done\|clock\)' "$out"
echo "smoke: a stock kernel runs on Pollux"
