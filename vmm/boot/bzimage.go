package boot

import "github.com/pollux-ha/pollux/vmm/memory"

func isBzImage(k []byte) bool { return false }

func loadBzImage(ram *memory.RAM, p Params) (Entry, error) { return Entry{}, ErrKernel }
