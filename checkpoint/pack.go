package checkpoint

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/s2"
)

// A blob is how the bulky parts of an epoch travel: coding u8, length u32 of the plain content, and the
// content plain or as one S2 block.
const (
	codingPlain = 0
	codingS2    = 1
	// minPack is the length below which compressing can't pay for itself, in bytes.
	minPack = 256
	// maxPause is the longest stretch of blobs that go out unseen after a run of bad ratios.
	maxPause = 256
)

// packer compresses blobs of one kind as long as that pays: a blob that does not shrink by an eighth
// lets the next ones pass untried, twice as many each time in a row, so that sending is never slower
// than sending plain by more than a trifle.
type packer struct {
	skip, pause int
	buf         []byte
}

// append appends content as a blob to dst.
func (p *packer) append(dst, content []byte) []byte {
	if len(content) >= minPack {
		if p.skip > 0 {
			p.skip--
		} else {
			if need := s2.MaxEncodedLen(len(content)); cap(p.buf) < need {
				p.buf = make([]byte, need)
			}
			packed := s2.Encode(p.buf[:cap(p.buf)], content)
			if len(packed) <= len(content)-len(content)/8 {
				p.pause = 0
				return append(blobHeader(dst, codingS2, len(content)), packed...)
			}
			p.pause = min(max(1, 2*p.pause), maxPause)
			p.skip = p.pause
		}
	}
	return append(blobHeader(dst, codingPlain, len(content)), content...)
}

func blobHeader(dst []byte, coding byte, n int) []byte {
	return binary.LittleEndian.AppendUint32(append(dst, coding), uint32(n))
}

// unpack returns the content of a blob that fills the rest of c, using buf where it must decompress.
// The content is valid until c's payload or buf is reused. limit bounds its length.
func unpack(c *cursor, buf *[]byte, limit int) ([]byte, error) {
	coding, n := c.u8(), c.u32()
	if c.short {
		return nil, fmt.Errorf("%w: blob header is truncated", ErrCorrupt)
	}
	if uint64(n) > uint64(limit) {
		return nil, fmt.Errorf("%w: blob of %d bytes, at most %d", ErrLimit, n, limit)
	}
	body := c.bytes(uint64(len(c.b)))
	switch coding {
	case codingPlain:
		if len(body) != int(n) {
			return nil, fmt.Errorf("%w: plain blob of %d bytes says %d", ErrCorrupt, len(body), n)
		}
		return body, nil
	case codingS2:
		if got, err := s2.DecodedLen(body); err != nil || got != int(n) {
			return nil, fmt.Errorf("%w: S2 block does not hold the %d bytes that it should", ErrCorrupt, n)
		}
		if cap(*buf) < int(n) {
			*buf = make([]byte, n)
		}
		content, err := s2.Decode((*buf)[:n], body)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		return content, nil
	}
	return nil, fmt.Errorf("%w: unknown blob coding %d", ErrCorrupt, coding)
}
