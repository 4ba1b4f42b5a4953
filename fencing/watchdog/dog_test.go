package watchdog

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fake is a device that notes what is done with it.
type fake struct {
	log      []string
	max      int // seconds that the driver can wait; 0: it can't be set
	noWrites bool
	noMagic  bool
}

func (f *fake) did(s string) { f.log = append(f.log, s) }

func (f *fake) Write(b []byte) (int, error) {
	if f.noWrites {
		return 0, errors.New("no")
	}
	f.did(strings.ReplaceAll(string(b), "\n", "feed"))
	return len(b), nil
}
func (f *fake) Close() error        { f.did("close"); return nil }
func (f *fake) Info() (Info, error) { return Info{Identity: "fake", MagicClose: !f.noMagic}, nil }
func (f *fake) SetTimeout(n int) (int, error) {
	if f.max == 0 {
		return 0, errors.New("no")
	}
	return min(n, f.max), nil
}

type kennel struct {
	*Dog
	f     *fake
	now   time.Duration
	err   error
	words int
	told  []string
}

func newKennel() *kennel {
	k := &kennel{f: &fake{max: 60}}
	k.Dog = New(func() (File, error) {
		if k.err != nil {
			return nil, k.err
		}
		k.f.did("open")
		return k.f, nil
	}, 20*time.Second, func() time.Duration { return k.now }, func(what string, err error) { k.told = append(k.told, what) })
	return k
}

// word is a new sign of life.
func (k *kennel) word() any { k.words++; return k.words }

func (k *kennel) did() string {
	s := strings.Join(k.f.log, " ")
	k.f.log = nil
	return s
}

func (k *kennel) expect(t *testing.T, want string) {
	t.Helper()
	if got := k.did(); got != want {
		t.Fatalf("%q, expected %q", got, want)
	}
}

func TestALifeOfADog(t *testing.T) {
	k := newKennel()
	k.Turn("g", false, nil)
	k.expect(t, "") // nobody needs it
	k.Turn("g", true, k.word())
	k.expect(t, "open")
	k.now += 4 * time.Second
	k.Turn("g", true, k.word())
	k.expect(t, "") // it has been fed long enough for now: a quarter of 20 s
	k.now += time.Second
	k.Turn("g", true, k.word())
	k.expect(t, "feed")
	k.Turn("g", false, nil)
	k.expect(t, "V close")
	k.Turn("g", true, k.word())
	k.expect(t, "open")
	k.Close()
	k.expect(t, "V close")
	k.Turn("g", true, k.word())
	k.expect(t, "") // after the end nothing is armed
	k.Close()
	k.expect(t, "")
}

func TestItIsNotFedByTheDaemonAlone(t *testing.T) {
	k := newKennel()
	w := k.word()
	k.Turn("g", true, w)
	k.expect(t, "open")
	for range 100 {
		k.now += time.Minute
		k.Turn("g", true, w)
	}
	k.expect(t, "") // the loop turns, and no data plane says anything
	k.Turn("g", true, k.word())
	k.expect(t, "feed")
}

func TestALoopThatHangs(t *testing.T) {
	k := newKennel()
	k.Turn("g", true, k.word())
	k.Turn("h", true, k.word())
	k.expect(t, "open")
	for range 10 {
		k.now += time.Minute
		k.Turn("g", true, k.word())
	}
	k.expect(t, "feed") // once, for the turn that h has made; then h's loop hangs
	k.Turn("h", true, nil)
	k.expect(t, "feed") // it goes on, and g's data plane has spoken
	k.now += time.Minute
	k.Turn("g", true, k.word())
	k.expect(t, "")
	k.Turn("h", false, nil) // its guest is gone, and with it its turn
	k.expect(t, "")
	k.Turn("g", true, k.word())
	k.expect(t, "feed")
}

func TestADriverWithItsOwnTimeout(t *testing.T) {
	k := newKennel()
	k.f.max = 0
	for range 3 {
		k.Turn("g", true, k.word())
	}
	k.expect(t, "open feed feed") // at every turn
	k.f.noMagic = true
	k.Close()
	k.expect(t, "V close")
	k = newKennel()
	k.f.max = 8
	k.Turn("g", true, k.word())
	k.now += 2 * time.Second
	k.Turn("g", true, k.word())
	k.expect(t, "open feed") // a quarter of what it can
}

func TestADeviceThatIsNotThere(t *testing.T) {
	k := newKennel()
	k.err = errors.New("busy")
	for range 100 {
		k.Turn("g", true, k.word())
	}
	if s := k.State(); s.Armed || s.Err == nil || len(k.told) != 1 {
		t.Errorf("%+v, told %q", s, k.told)
	}
	k.err = nil
	k.Turn("g", true, k.word())
	k.expect(t, "")
	k.now += reopenAfter
	k.Turn("g", true, k.word())
	k.expect(t, "open")
	if s := k.State(); !s.Armed || s.Err != nil || s.Identity != "fake" {
		t.Errorf("%+v", s)
	}
	// A write that fails is repeated.
	k.f.noWrites = true
	k.now += time.Minute
	k.Turn("g", true, k.word())
	k.f.noWrites = false
	k.Turn("g", true, k.word())
	k.expect(t, "feed")
}

func TestNoDog(t *testing.T) {
	var d *Dog
	d.Turn("g", true, 1)
	d.Close()
	if s := d.State(); s.Armed {
		t.Errorf("%+v", s)
	}
}

// A file that is no watchdog is found out by its first ioctl, and can be written and closed all the same.
func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "watchdog")
	if _, err := Open(path); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if i, err := f.Info(); err == nil {
		t.Errorf("a file is %+v", i)
	}
	if n, err := f.SetTimeout(10); err == nil {
		t.Errorf("a file waits %d s", n)
	}
	if _, err := f.Write([]byte("V")); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
