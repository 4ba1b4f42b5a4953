package boot

import "github.com/pollux-ha/pollux/vmm/memory"

func loadELF(ram *memory.RAM, p Params) (Entry, error) { return Entry{}, ErrKernel }
