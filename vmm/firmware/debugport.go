package firmware

import (
	"bytes"
	"fmt"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/vmm/platform"
)

const (
	debugPort  = 0x402
	debugMagic = 0xe9 // what tells firmware that somebody listens
	debugLine  = 512
)

// debugConsole is the port to which debug builds of OVMF write what they do. It has no state that a guest
// would miss: where nobody listens the bytes are lost.
type debugConsole struct {
	log  *zap.Logger
	line []byte
}

// MapDebugPort lets the log have what firmware writes to its debug port, line by line. Each byte is an exit: it is
// for looking for faults.
func MapDebugPort(p platform.Platform, log *zap.Logger) error {
	if err := p.Ports().Map(debugPort, 1, &debugConsole{log: log}); err != nil {
		return fmt.Errorf("map the firmware's debug port: %w", err)
	}
	return nil
}

func (d *debugConsole) Read(_ uint64, data []byte) { data[0] = debugMagic }

func (d *debugConsole) Write(_ uint64, data []byte) {
	d.line = append(d.line, data[0])
	if data[0] == '\n' || len(d.line) >= debugLine {
		d.log.Debug(string(bytes.TrimRight(d.line, "\r\n")))
		d.line = d.line[:0]
	}
}
