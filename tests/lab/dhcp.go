package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dhcpServer gives guests on the LAN their addresses: the first one that asks gets .100, and keeps it. RFC 2131 as
// far as clients on one wire need it.
type dhcpServer struct {
	mu     sync.Mutex
	leases map[string]byte // last byte, by MAC
	acked  map[string]bool
	wake   chan struct{} // closed and replaced with each lease that was taken
}

// BOOTP's fixed part (RFC 951) and the options in use (RFC 2132).
const (
	dhcpFixedBytes  = 240 // with the magic cookie
	dhcpCookie      = 0x63825363
	optionMask      = 1
	optionRouter    = 3
	optionLease     = 51
	optionType      = 53
	optionServer    = 54
	optionEnd       = 255
	dhcpDiscover    = 1
	dhcpOffer       = 2
	dhcpRequest     = 3
	dhcpAck         = 5
	dhcpLeaseTime   = 24 * time.Hour
	bootRequest     = 1
	bootReply       = 2
	etherTypeLength = 6
)

// serveDHCP starts the server on the LAN's switch.
func (l *Lab) serveDHCP() (*dhcpServer, error) {
	s := &dhcpServer{leases: make(map[string]byte), acked: make(map[string]bool), wake: make(chan struct{})}
	var conn net.PacketConn
	err := l.switches.Do(func() error {
		link, err := netlink.LinkByName(string(LAN))
		if err != nil {
			return err
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: LAN.Address(routerAddress), Mask: net.CIDRMask(24, 32)}}
		if err := netlink.AddrAdd(link, a); err != nil {
			return err
		}
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			if e := c.Control(func(fd uintptr) { err = unix.BindToDevice(int(fd), string(LAN)) }); e != nil {
				return e
			}
			return err
		}}
		conn, err = lc.ListenPacket(context.Background(), "udp4", ":67")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("DHCP on the lab's LAN: %w", err)
	}
	l.onClose(func() { conn.Close() })
	go s.serve(conn)
	return s, nil
}

func (s *dhcpServer) serve(conn net.PacketConn) {
	b := make([]byte, 1500)
	for {
		n, _, err := conn.ReadFrom(b)
		if err != nil {
			return // closed
		}
		if reply := s.answer(b[:n]); reply != nil {
			// To all: who asks has no address yet.
			_, _ = conn.WriteTo(reply, &net.UDPAddr{IP: net.IPv4bcast, Port: 68})
		}
	}
}

// answer makes the reply to a request; nil: none.
func (s *dhcpServer) answer(b []byte) []byte {
	if len(b) < dhcpFixedBytes || b[0] != bootRequest || b[2] != etherTypeLength || binary.BigEndian.Uint32(b[236:]) != dhcpCookie {
		return nil
	}
	var kind byte
	for rest := b[dhcpFixedBytes:]; len(rest) >= 2 && rest[0] != optionEnd; {
		if rest[0] == 0 {
			rest = rest[1:]
			continue
		}
		length := int(rest[1])
		if len(rest) < 2+length {
			return nil
		}
		if rest[0] == optionType && length == 1 {
			kind = rest[2]
		}
		rest = rest[2+length:]
	}
	mac := net.HardwareAddr(b[28:34]).String()
	last, ok := s.lease(mac, kind == dhcpRequest)
	if !ok {
		return nil
	}
	reply := make([]byte, dhcpFixedBytes, 300)
	copy(reply, b[:dhcpFixedBytes])
	reply[0] = bootReply
	reply[3] = 0                                        // hops
	copy(reply[16:20], LAN.Address(last))               // your address
	copy(reply[20:24], LAN.Address(routerAddress))      // the server's
	clear(reply[44:236])                                // its name, a boot file
	binary.BigEndian.PutUint32(reply[236:], dhcpCookie) //
	answer := map[byte]byte{dhcpDiscover: dhcpOffer, dhcpRequest: dhcpAck}[kind]
	if answer == 0 {
		return nil
	}
	server := LAN.Address(routerAddress)
	reply = append(reply, optionType, 1, answer, optionServer, 4)
	reply = append(reply, server...)
	reply = append(reply, optionLease, 4)
	reply = binary.BigEndian.AppendUint32(reply, uint32(dhcpLeaseTime/time.Second))
	reply = append(reply, optionMask, 4, 255, 255, 255, 0, optionRouter, 4)
	reply = append(reply, server...)
	return append(reply, optionEnd)
}

func (s *dhcpServer) lease(mac string, take bool) (byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, ok := s.leases[mac]
	if !ok {
		if len(s.leases) > lastLease-firstLease {
			return 0, false
		}
		last = byte(firstLease + len(s.leases))
		s.leases[mac] = last
	}
	if take && !s.acked[mac] {
		s.acked[mac] = true
		close(s.wake)
		s.wake = make(chan struct{})
	}
	return last, true
}

// Lease waits until the card with this MAC has taken its address on the LAN, and returns that.
func (l *Lab) Lease(ctx context.Context, mac string) (net.IP, error) {
	s := l.dhcp
	for {
		s.mu.Lock()
		last, ok, wake := s.leases[mac], s.acked[mac], s.wake
		s.mu.Unlock()
		if ok {
			return LAN.Address(last), nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, fmt.Errorf("%s has asked for no address: %w", mac, ctx.Err())
		}
	}
}
