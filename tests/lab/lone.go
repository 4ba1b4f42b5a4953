package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/pollux-ha/pollux/tests/lab/control"
	"github.com/pollux-ha/pollux/tests/lab/emulator"
	"github.com/pollux-ha/pollux/tests/lab/parts"
)

// loneMemoryMiB is a lone host's. The emulator takes what is used of it.
const loneMemoryMiB = 3072

// Lone switches on a host that is alone, without networks and disk, with these files in it (path there: file of this
// machine), and hands it to use. The host ends with that. It needs no root. Where use fails otherwise than by
// a program's exit code, logf gets the host's console.
func Lone(ctx context.Context, files map[string]string, logf func(format string, a ...any), use func(*emulator.Machine) error) error {
	return lone(ctx, parts.Host{Files: files}, logf, use)
}

// LoneForFirmware is Lone for guests that boot through UEFI firmware.
func LoneForFirmware(ctx context.Context, files map[string]string, logf func(format string, a ...any), use func(*emulator.Machine) error) error {
	return lone(ctx, parts.Host{Files: files, CalmKVM: true}, logf, use)
}

func lone(ctx context.Context, host parts.Host, logf func(format string, a ...any), use func(*emulator.Machine) error) error {
	if err := parts.Check(); err != nil {
		return err
	}
	kernel, err := parts.Fetch(ctx, DefaultKernel)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "lab.")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	spec := emulator.Spec{
		Name: "lab", Kernel: kernel.Image, Initrd: filepath.Join(dir, "initrd"), Console: filepath.Join(dir, "console"),
		CPUs: 1, MemoryMiB: loneMemoryMiB,
	}
	host.Kernel, host.Setup = kernel, control.Setup{Name: "lab"}
	if err := host.Write(ctx, spec.Initrd); err != nil {
		return err
	}
	m, err := start(ctx, spec, logf)
	if err == nil {
		defer m.PowerCut()
		err = use(m)
	}
	var exit *emulator.ExitError
	if err != nil && !errors.As(err, &exit) {
		if b, e := os.ReadFile(spec.Console); e == nil {
			logf("console of the lab host:\n%s", end(string(b), 4000))
		}
	}
	return err
}

// start switches a machine on. A start that hangs is tried once more, and said so: the emulator can lose an interrupt.
func start(ctx context.Context, spec emulator.Spec, logf func(format string, a ...any)) (*emulator.Machine, error) {
	m, err := emulator.Start(ctx, spec)
	if errors.Is(err, emulator.ErrHung) {
		logf("LAB: %v; it is tried once more", err)
		m, err = emulator.Start(ctx, spec)
	}
	return m, err
}
