package parts

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
)

// CalmKVM is a kvm-amd module that keeps an emulated lab host alive under guests that write to CR8, as UEFI firmware
// does at the end of each interrupt. QEMU (7.2, and as of its sources later ones) takes such a write of a nested guest
// for a change of an interrupt's state without holding the lock that this needs, and aborts, where KVM waits for
// the guest to take an interrupt. A hypervisor may as well intercept the writes: KVM begins so, and drops
// it in svm_update_cr8_intercept. Here that function returns at once. What Pollux sees of KVM is the same.
func CalmKVM(module []byte) ([]byte, error) {
	const function = "svm_update_cr8_intercept"
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, fmt.Errorf("module kvm-amd: %w", err)
	}
	symbols, err := f.Symbols()
	if err != nil {
		return nil, fmt.Errorf("module kvm-amd: %w", err)
	}
	for _, s := range symbols {
		if s.Name != function || int(s.Section) >= len(f.Sections) {
			continue
		}
		out := bytes.Clone(module)
		at := f.Sections[s.Section].Offset + s.Value
		if at+16 > uint64(len(out)) {
			break
		}
		// endbr64, where the kernel has it; then the call that function tracing knows, which stays.
		code := out[at:]
		code = bytes.TrimPrefix(code, []byte{0xf3, 0x0f, 0x1e, 0xfa})
		if code[0] != 0xe8 {
			return nil, fmt.Errorf("module kvm-amd: %s begins with % x, which is not known here", function, code[:8])
		}
		code[5] = 0xc3 // ret
		return unsigned(out)
	}
	return nil, fmt.Errorf("module kvm-amd has no %s", function)
}

// unsigned is a module without its signature, which no longer holds. The kernel loads it and says so.
func unsigned(module []byte) ([]byte, error) {
	const (
		magic  = "~Module signature appended~\n"
		header = 12 // struct module_signature; its last field is the length, big-endian
	)
	body, ok := bytes.CutSuffix(module, []byte(magic))
	if !ok {
		return module, nil
	}
	if len(body) < header {
		return nil, errors.New("a module's signature is cut off")
	}
	n := int64(binary.BigEndian.Uint32(body[len(body)-4:])) + header
	if n > int64(len(body)) {
		return nil, errors.New("a module's signature is longer than the module")
	}
	return body[:int64(len(body))-n], nil
}
