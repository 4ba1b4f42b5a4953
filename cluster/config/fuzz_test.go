package config

import (
	"errors"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// FuzzParse: whatever is in the file, it is refused with a reason, or it is a configuration that can be used: it says
// the same when it is written and read again.
func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("name = \"a\"\napi_address = \"10.77.1.1:7702\"\n[firmware]\ncode = \"/c\"\n"))
	f.Add([]byte("nmae = 1\n[timeouts]\nraft_lease = \"9223372036s\"\n"))
	f.Add([]byte("[[bridges]]\nx = \"y\"\n"))
	f.Add([]byte("name = \"a\"\nname = \"b\"\n"))
	f.Add([]byte("\x00\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || err.Error() == "" {
				t.Fatalf("%v", err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		written, err := toml.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(written)
		if err != nil {
			t.Fatalf("%s\n%v", written, err)
		}
		twice, err := toml.Marshal(again)
		if err != nil || string(twice) != string(written) {
			t.Fatalf("%v\n%s\n%s", err, written, twice)
		}
	})
}
