package cpu

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MaxText bounds the text of a model or a host, in bytes.
const MaxText = 2048

// ErrText says that a text is none of a model, or of a later version of this program.
var ErrText = errors.New("CPU model")

const textVersion = "cpu1"

// Text is the model in one line of "key=value" words. All numbers are hexadecimal but those of rates and
// widths:
//
//	cpu1 vendor=AuthenticAMD sig=830f10 features=<16 words of 8 digits, separated by dots>
//	xsave=2:100:240,9:8:a80 archcaps=0 bits=48.48.48 caches=11.8.1.40.40.0,… tsc=2596132 events=3
//	brand=AMD EPYC processor
//
// xsave: component:size:offset, with an "a" where it is aligned. bits: physical, mapped by nested paging,
// linear. caches: level and type, ways, partitions, sets, line, flags. The brand is the rest of the line.
func (m *Model) Text() string {
	var b strings.Builder
	m.text(&b)
	b.WriteString(" brand=" + m.Brand)
	return b.String()
}

func (m *Model) text(b *strings.Builder) {
	fmt.Fprintf(b, "%s vendor=%s sig=%x features=", textVersion, m.Vendor, m.Signature)
	for i, w := range m.Features {
		if i > 0 {
			b.WriteByte('.')
		}
		fmt.Fprintf(b, "%08x", w)
	}
	var xsave, caches []string
	for _, c := range m.XSAVE {
		xsave = append(xsave, c.String())
	}
	for _, c := range m.Caches {
		caches = append(caches, fmt.Sprintf("%d%d.%x.%x.%x.%x.%x", c.Level, c.Type, c.Ways, c.Partitions, c.Sets, c.LineBytes, c.Flags))
	}
	fmt.Fprintf(b, " xsave=%s archcaps=%x bits=%d.%d.%d caches=%s tsc=%d events=%x", strings.Join(xsave, ","), m.ArchCaps,
		m.PhysBits, m.GuestPhysBits, m.LinearBits, strings.Join(caches, ","), m.TSCKHz, uint8(m.Events))
}

// Text is the host in one line: its model, and in front of the brand
//
//	scaling=1 msrs=10,174-176,… msrlist=<digest> microcode=0x830107c kernel=6.12.0
func (h *Host) Text() string {
	var b strings.Builder
	h.text(&b)
	scaling := 0
	if h.TSCScaling {
		scaling = 1
	}
	fmt.Fprintf(&b, " scaling=%d msrs=%s msrlist=%x microcode=%s kernel=%s brand=%s", scaling, h.MSRs, h.MSRList, word1(h.Microcode), word1(h.Kernel), h.Brand)
	return b.String()
}

// word1 makes one short word of what other programs said.
func word1(s string) string {
	s = strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return '_'
		}
		return r
	}, s)
	return s[:min(len(s), 64)]
}

// ParseModel reads a model's text.
func ParseModel(s string) (Model, error) {
	p := newParser(s)
	var m Model
	p.model(&m)
	m.Brand = p.brand()
	return m, p.done(m.Text)
}

// ParseHost reads a host's text.
func ParseHost(s string) (Host, error) {
	p := newParser(s)
	var h Host
	p.model(&h.Model)
	switch v := p.value("scaling"); v {
	case "0", "1":
		h.TSCScaling = v == "1"
	default:
		p.fail("scaling=%s", v)
	}
	for _, item := range list(p.value("msrs")) {
		first, last, isRange := strings.Cut(item, "-")
		from := p.number(first, 16, 32)
		to := from
		if isRange {
			to = p.number(last, 16, 32)
		}
		if to < from || to-from >= 256 || len(h.MSRs) > 1024 {
			p.fail("msrs: %s", item)
			break
		}
		for i := from; i <= to; i++ {
			h.MSRs.Add(uint32(i))
		}
	}
	h.MSRList = uint32(p.number(p.value("msrlist"), 16, 32))
	h.Microcode, h.Kernel = p.value("microcode"), p.value("kernel")
	h.Brand = p.brand()
	return h, p.done(h.Text)
}

// parser takes a text apart, word by word in their order. The first error stays.
type parser struct {
	all, rest string
	err       error
}

func newParser(s string) *parser {
	p := &parser{all: s, rest: s}
	if len(s) > MaxText {
		p.fail("%d bytes, at most %d are possible", len(s), MaxText)
		return p
	}
	version, rest, _ := strings.Cut(s, " ")
	if version != textVersion {
		p.fail("%.20q is not of this program's version (%s)", version, textVersion)
	}
	p.rest = rest
	return p
}

func (p *parser) fail(format string, a ...any) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: %s", ErrText, fmt.Sprintf(format, a...))
	}
}

// value takes the next word, which has this key.
func (p *parser) value(key string) string {
	if p.err != nil {
		return ""
	}
	w, rest, _ := strings.Cut(p.rest, " ")
	v, ok := strings.CutPrefix(w, key+"=")
	if !ok {
		p.fail("%q where %s=… is expected", w, key)
		return ""
	}
	p.rest = rest
	return v
}

func (p *parser) brand() string {
	v, ok := strings.CutPrefix(p.rest, "brand=")
	if !ok {
		p.fail("no brand")
	}
	if v != cleanBrand(v) {
		p.fail("brand %q", v)
	}
	return v
}

func (p *parser) number(s string, base, size int) uint64 {
	if p.err != nil {
		return 0
	}
	n, err := strconv.ParseUint(s, base, size)
	if err != nil {
		p.fail("%q is no number", s)
	}
	return n
}

// fields splits a value into so many parts.
func (p *parser) fields(s, by string, n int) []string {
	f := strings.Split(s, by)
	if len(f) != n {
		p.fail("%q has %d parts, %d are expected", s, len(f), n)
		return make([]string, n)
	}
	return f
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func (p *parser) model(m *Model) {
	m.Vendor = p.value("vendor")
	if p.err == nil && len(m.Vendor) != 12 {
		p.fail("vendor=%s", m.Vendor)
	}
	m.Signature = uint32(p.number(p.value("sig"), 16, 32))
	for i, w := range p.fields(p.value("features"), ".", int(words)) {
		m.Features[i] = uint32(p.number(w, 16, 32))
	}
	if !m.Features.Without(known).IsEmpty() {
		p.fail("features that this program does not know")
	}
	for _, item := range list(p.value("xsave")) {
		item, align := strings.CutSuffix(item, "a")
		f := p.fields(item, ":", 3)
		m.XSAVE = append(m.XSAVE, Component{
			ID: int(p.number(f[0], 10, 6)), Size: uint32(p.number(f[1], 16, 14)), Offset: uint32(p.number(f[2], 16, 14)), Align: align,
		})
	}
	if !slices.IsSortedFunc(m.XSAVE, func(a, b Component) int { return a.ID - b.ID }) {
		p.fail("XSAVE components out of order")
	}
	m.ArchCaps = p.number(p.value("archcaps"), 16, 64)
	f := p.fields(p.value("bits"), ".", 3)
	m.PhysBits, m.GuestPhysBits, m.LinearBits = int(p.number(f[0], 10, 6)), int(p.number(f[1], 10, 6)), int(p.number(f[2], 10, 6))
	for _, item := range list(p.value("caches")) {
		f := p.fields(item, ".", 6)
		lt := p.number(f[0], 10, 8)
		m.Caches = append(m.Caches, Cache{
			Level: int(lt / 10), Type: int(lt % 10), Ways: int(p.number(f[1], 16, 10)), Partitions: int(p.number(f[2], 16, 10)),
			Sets: int(p.number(f[3], 16, 25)), LineBytes: int(p.number(f[4], 16, 12)), Flags: uint32(p.number(f[5], 16, 3)),
		})
	}
	if len(m.Caches) > 8 || len(m.XSAVE) > 8 {
		p.fail("%d caches, %d XSAVE components", len(m.Caches), len(m.XSAVE))
	}
	m.TSCKHz = int(p.number(p.value("tsc"), 10, 30))
	m.Events = Events(p.number(p.value("events"), 16, 8))
}

// done says whether the text was right: a text that is not what would be written again hides something.
func (p *parser) done(again func() string) error {
	if p.err == nil && again() != p.all {
		p.fail("it is not in the form in which models are written")
	}
	return p.err
}
