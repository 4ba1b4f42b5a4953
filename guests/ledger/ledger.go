// Package ledger holds Pollux's own guest: a kernel image that serves the Redis protocol over
// virtio and keeps every write durable. Tests, benchmarks and the demo run it where a stock
// operating system would be too slow to boot, or can't run at all (on kvm-pvm). What it does and
// how it is built is in README.md; build it with make.
package ledger

import (
	_ "embed"
	"slices"
)

//go:embed ledger.elf
var image []byte

// Image returns a copy of the kernel image, an ELF file with a PVH entry.
func Image() []byte { return slices.Clone(image) }
