package parts

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func TestUnsigned(t *testing.T) {
	module := []byte("the module")
	signature := append([]byte("signature"), make([]byte, 8)...)
	signed := append(append(bytes.Clone(module), signature...), binary.BigEndian.AppendUint32(nil, uint32(len("signature")))...)
	signed = append(signed, "~Module signature appended~\n"...)
	for name, b := range map[string][]byte{"signed": signed, "not signed": module} {
		if got, err := unsigned(b); err != nil || !bytes.Equal(got, module) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, bad := range [][]byte{signed[len(module)+12:], []byte("~Module signature appended~\n")} {
		if _, err := unsigned(bad); err == nil {
			t.Errorf("%q is taken for a signed module", bad)
		}
	}
	if _, err := CalmKVM([]byte("\x7fELF")); err == nil {
		t.Error("something else is taken for a module")
	}
}
