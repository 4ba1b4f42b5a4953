package virtio

import (
	"net"
	"os"

	"github.com/pollux-ha/pollux/vmm/pci"
	"github.com/pollux-ha/pollux/vmm/platform"
)

// NetConfig describes a NIC.
type NetConfig struct {
	Index int // the NIC's number, as in Output.Transmit
	Tap   *os.File
	MAC   net.HardwareAddr
}

// Net is a virtio NIC on a tap.
type Net struct{}

// NewNet makes a NIC and puts it on the bus. The device lock is held.
func NewNet(p platform.Platform, h *pci.Host, c NetConfig) (*Net, error) { return &Net{}, nil }

// Emit puts a frame on the wire. Safe from any goroutine, lock or not.
func (n *Net) Emit(frame []byte) error { return nil }

// Inject gives the guest a frame as if received; false: dropped. Lock held.
func (n *Net) Inject(frame []byte) bool { return false }

// OnReceive sets the observer of received frames. Lock held.
func (n *Net) OnReceive(fn func(frame []byte)) {}

// SetActive begins or ends reading the tap (Activate and Suspend call it). Lock held.
func (n *Net) SetActive(on bool) error { return nil }

// SetLink says whether the wire has a carrier. Lock held.
func (n *Net) SetLink(up bool) {}

// Close frees what the device holds, not the tap. Lock held.
func (n *Net) Close() error { return nil }
