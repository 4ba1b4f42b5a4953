package checkpoint

import (
	"encoding/binary"

	"github.com/zeebo/xxh3"
)

// BootDigest is that of what a guest boots from: its kernel, initial RAM disk and command line. (Firmware
// is a mirrored disk.) A host where a reset would boot something else must not become the guest's replica.
func BootDigest(parts ...[]byte) Digest {
	var h xxh3.Hasher128
	for _, p := range parts {
		_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(p)))) // a Hasher's Write can't fail
		_, _ = h.Write(p)
	}
	return Digest(h.Sum128().Bytes())
}
