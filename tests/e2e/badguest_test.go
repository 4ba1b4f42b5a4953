package e2e

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/guests/ledger"
	"github.com/pollux-ha/pollux/vmm/kvm"
)

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b) // it can't fail
	return b
}

// bzImage is the head of a Linux kernel that claims more code than there is.
func bzImage() []byte {
	b := make([]byte, 4096)
	le := binary.LittleEndian
	b[0x1f1] = 1                     // setup sectors
	le.PutUint32(b[0x1f4:], 100_000) // size of the code, in 16 bytes
	le.PutUint16(b[0x1fe:], 0xaa55)  // boot flag
	b[0x201] = 0x6a                  // the header's end
	copy(b[0x202:], "HdrS")          // magic
	le.PutUint16(b[0x206:], 0x020f)  // protocol
	b[0x211] = 1                     // loaded high
	b[0x236] = 1                     // 64-bit entry
	le.PutUint64(b[0x258:], 16<<20)  // preferred address
	return b
}

// What is wrong with a guest is said by `pollux vm run` before any machine is made.
func TestGuestsThatCantRun(t *testing.T) {
	pollux := builtProgram(t)
	dir := t.TempDir()
	sized := func(name string, size int64) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		return path
	}
	busy := sized("busy", 1<<20)
	f, err := os.Open(busy)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	image := ledger.Image()
	k := func(name string, content []byte) []string { return []string{"--kernel", file(t, name, content)} }
	d := func(disk string) []string { return []string{"--kernel", "builtin:ledger", "--disk", disk} }
	for name, tc := range map[string]struct {
		args []string
		code int
		say  []string
	}{
		"kernel of random bytes":         {k("noise", noise(100_000)), 1, []string{"noise: kernel image can't be booted", "neither an ELF image nor a Linux bzImage", "/boot"}},
		"kernel is a text":               {k("text", []byte("vmlinuz\n")), 1, []string{"text: kernel image can't be booted", "neither an ELF image nor a Linux bzImage"}},
		"kernel is empty":                {k("empty", nil), 1, []string{"the file is empty"}},
		"kernel is missing":              {[]string{"--kernel", dir + "/none"}, 1, []string{"kernel", dir + "/none", "no such file"}},
		"kernel is a directory":          {[]string{"--kernel", dir}, 1, []string{"not a regular file"}},
		"kernel without end":             {[]string{"--kernel", "/dev/zero"}, 1, []string{"not a regular file"}},
		"ELF cut off in its header":      {k("elf", image[:40]), 1, []string{"truncated"}},
		"ELF cut off in its code":        {k("elf", image[:len(image)/2]), 1, []string{"truncated", "copy it again"}},
		"bzImage cut off in its header":  {k("bz", bzImage()[:600]), 1, []string{"truncated", "copy it again"}},
		"bzImage cut off in its code":    {k("bz", bzImage()), 1, []string{"truncated", "copy it again"}},
		"no such builtin":                {[]string{"--kernel", "builtin:linux"}, 2, []string{"there is only builtin:ledger"}},
		"no kernel":                      {nil, 2, []string{"--kernel is needed"}},
		"disk is missing":                {d(dir + "/none"), 1, []string{"does not exist", "truncate -s"}},
		"disk is empty":                  {d(sized("d0", 0)), 1, []string{"too small", "512"}},
		"disk is no multiple of sectors": {d(sized("d1", 1000)), 1, []string{"not a multiple of 512", "qemu-img convert"}},
		"disk is a directory":            {d(dir), 1, []string{dir, "is a directory"}},
		"disk is in use":                 {d(busy), 1, []string{busy, "in use by another"}},
		"disk with an unknown option":    {d(busy + ",rw"), 2, []string{"known are readonly"}},
		"no such tap":                    {[]string{"--kernel", "builtin:ledger", "--net", "tap=nowhere"}, 1, []string{`no tap "nowhere"`, "ip tuntap add"}},
		"no size":                        {[]string{"--kernel", "builtin:ledger", "--memory", "lots"}, 2, []string{"--memory", "256M"}},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, "", append([]string{pollux, "vm", "run"}, tc.args...)...).refused(t, tc.code, tc.say...)
		})
	}
}

// A guest that its machine has no room for.
func TestGuestsThatDontFit(t *testing.T) {
	pollux := builtProgram(t)
	if err := kvm.Check(); err != nil {
		t.Skip("needs /dev/kvm: ", err)
	}
	vm := []string{pollux, "vm", "run", "--kernel", "builtin:ledger"}
	run(t, "", append(vm, "--memory", "2M")...).refused(t, 1, "does not fit", "give it more")
	run(t, "", append(vm, "--cpus", "9999")...).refused(t, 1, "9999 vCPUs", "64")
	run(t, "", append(vm, "--cmdline", strings.Repeat("x", 5000))...).refused(t, 1, "command line", "shorten it")
	initrd := file(t, "initrd", bytes.Repeat([]byte{1}, 4<<20))
	run(t, "", append(vm, "--memory", "3M", "--initrd", initrd)...).refused(t, 1, "initrd", "do not fit")
}

// Hosts on which no guest can run say why, and what to do.
func TestNoKVM(t *testing.T) {
	needRoot(t, "to take /dev/kvm away")
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skip("needs /dev/kvm: it is taken away here")
	}
	pollux := publicCopy(t)
	for name, tc := range map[string]struct {
		where []string
		say   []string
	}{
		"no permission": {asNobody, []string{"/dev/kvm", "permission denied", "group kvm"}},
		"no device":     {noDevices, []string{"/dev/kvm", "no such file", "firmware", "kvm_intel"}},
		"another thing": {notKVM, []string{"/dev/kvm", "does not answer as KVM does"}},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, "", append(tc.where, pollux, "vm", "run", "--kernel", "builtin:ledger")...).refused(t, 1, tc.say...)
			run(t, "", append(tc.where, pollux, "demo")...).refused(t, 1, tc.say...)
		})
	}
}
