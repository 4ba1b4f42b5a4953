package agent

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// machine is the directory that the fake agent takes for a machine.
type machine struct {
	t   *testing.T
	dir string
}

const password = "sesame and more"

func newMachine(t *testing.T, power string) (machine, Device) {
	t.Helper()
	path, err := filepath.Abs("testdata/fence_fake")
	if err != nil {
		t.Fatal(err)
	}
	m := machine{t, t.TempDir()}
	m.set("power", power)
	d := Device{
		Path: path, Timeout: 5 * time.Minute, Retries: 2, Poll: time.Millisecond,
		Parameters: map[string]string{"dir": m.dir}, Secrets: map[string]string{"password": password},
	}
	if err := d.Check(); err != nil {
		t.Fatal(err)
	}
	return m, d
}

func (m machine) set(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text+"\n"), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) get(name string) string {
	m.t.Helper()
	b, err := os.ReadFile(filepath.Join(m.dir, name))
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func (m machine) log() string { return strings.Join(strings.Fields(m.get("log")), " ") }

func TestCutIsVerified(t *testing.T) {
	m, d := newMachine(t, "on")
	if p, err := d.Status(t.Context()); err != nil || p != PowerOn {
		t.Fatalf("%q %v", p, err)
	}
	if err := d.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p, err := d.Status(t.Context()); err != nil || p != PowerOff || m.get("power") != "off" {
		t.Fatalf("%q %v", p, err)
	}
	if got := m.log(); got != "status off status status" {
		t.Errorf("the agent was asked: %s", got)
	}
}

func TestAFailedOrderIsGivenAgain(t *testing.T) {
	m, d := newMachine(t, "on")
	m.set("fail", "2")
	if err := d.Cut(t.Context()); err != nil || m.get("power") != "off" {
		t.Fatalf("%v, and the machine is %s", err, m.get("power"))
	}
	if got := m.log(); got != "off status off status off status" {
		t.Errorf("the agent was asked: %s", got)
	}
}

// An agent that fails and a machine that is off all the same: off is what counts.
func TestAFailureOfTheOrderAlone(t *testing.T) {
	m, d := newMachine(t, "off")
	m.set("fail", "100")
	if err := d.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := m.log(); got != "off status" {
		t.Errorf("the agent was asked: %s", got)
	}
}

func TestWhatIsNotConfirmedIsAFailure(t *testing.T) {
	for name, prepare := range map[string]func(machine, *Device){
		"orders fail":             func(m machine, d *Device) { m.set("fail", "100") },
		"orders are without hold": func(m machine, d *Device) { m.set("deaf", "100") },
		"every question fails":    func(m machine, d *Device) { d.Secrets["password"] = "wrong one" },
		"status without a word":   func(m machine, d *Device) { d.Parameters["mode"] = "no-words" },
		"status says both":        func(m machine, d *Device) { d.Parameters["mode"] = "both" },
		"word against code":       func(m machine, d *Device) { d.Parameters["mode"] = "liar" },
		"always on":               func(m machine, d *Device) { d.Parameters["mode"] = "mute" },
		"it hangs":                func(m machine, d *Device) { d.Parameters["mode"], d.Timeout = "hang", 50*time.Millisecond },
		"there is no such agent":  func(m machine, d *Device) { d.Path = filepath.Join(m.dir, "fence_nothing") },
	} {
		t.Run(name, func(t *testing.T) {
			m, d := newMachine(t, "on")
			d.Retries = 1
			prepare(m, &d)
			ctx := t.Context()
			if name == "orders are without hold" || name == "always on" {
				// The state stays another, and is asked for until there is no time any more: let that be soon.
				d.Timeout = 200 * time.Millisecond
			}
			err := d.Cut(ctx)
			if !errors.Is(err, ErrNotVerified) {
				t.Fatalf("%v", err)
			}
			if strings.Contains(err.Error(), m.dir) && name != "there is no such agent" || strings.Contains(err.Error(), "wrong one") || strings.Contains(err.Error(), password) {
				t.Errorf("a parameter is in the error: %v", err)
			}
			if off, err := d.Cycle(ctx); off || err == nil {
				t.Errorf("cycled: %v, %v", off, err)
			}
		})
	}
}

func TestTimeoutIsAFailure(t *testing.T) {
	_, d := newMachine(t, "off")
	d.Parameters["mode"], d.Timeout = "hang", 20*time.Millisecond
	if p, err := d.Status(t.Context()); p != "" || !errors.Is(err, ErrTimeout) {
		t.Errorf("%q %v", p, err)
	}
	if err := d.Monitor(t.Context()); !errors.Is(err, ErrTimeout) {
		t.Error(err)
	}
	d.Timeout = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Cut(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("with its time over: %v", err)
	}
}

func TestCycle(t *testing.T) {
	m, d := newMachine(t, "on")
	if off, err := d.Cycle(t.Context()); !off || err != nil || m.get("power") != "on" {
		t.Fatalf("%v %v, power %s", off, err, m.get("power"))
	}
	if got := m.log(); got != "off status on status" {
		t.Errorf("the agent was asked: %s", got)
	}
}

func TestMonitorAndMetadata(t *testing.T) {
	_, d := newMachine(t, "on")
	if err := d.Monitor(t.Context()); err != nil {
		t.Error(err)
	}
	if xml, err := d.Metadata(t.Context()); err != nil || !strings.Contains(xml, "fence_fake") {
		t.Errorf("%q %v", xml, err)
	}
}

func TestCheck(t *testing.T) {
	for want, d := range map[string]Device{
		"absolute path": {Path: "fence_ipmilan", Timeout: 1},
		"timeout":       {Path: "/x"},
		"retries":       {Path: "/x", Timeout: 1, Retries: 11},
		"line break":    {Path: "/x", Timeout: 1, Secrets: map[string]string{"password": "x\naction=on"}},
		"no space":      {Path: "/x", Timeout: 1, Parameters: map[string]string{"a b": "x"}},
		"not for the":   {Path: "/x", Timeout: 1, Parameters: map[string]string{"action": "on"}},
		"too":           {Path: "/x", Timeout: 1, Parameters: map[string]string{"ip": "1"}, Secrets: map[string]string{"ip": "2"}},
	} {
		if err := d.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, expected %q", d, err, want)
		}
	}
}

func TestSecrets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "secrets")
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("# of b\n\npassword= a=b \r\nlogin=x\n", 0o600)
	got, err := ReadSecrets(path)
	if err != nil || len(got) != 2 || got["password"] != " a=b " || got["login"] != "x" {
		t.Errorf("%q %v", got, err)
	}
	for _, text := range []string{"hush hush", "a=hush\na=hush", strings.Repeat("#\n", secretsMax)} {
		write(text, 0o600)
		if _, err := ReadSecrets(path); err == nil || strings.Contains(err.Error(), "hush") {
			t.Errorf("%.20q: %v", text, err)
		}
	}
	write("a=b", 0o640)
	if _, err := ReadSecrets(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Error(err)
	}
}

// The agent that Debian ships for trials, which keeps its machine's power in a file.
func TestDebiansDummy(t *testing.T) {
	path, err := exec.LookPath("fence_dummy")
	if err != nil {
		t.Skip("needs fence_dummy: Debian's package fence-agents is not installed")
	}
	file := filepath.Join(t.TempDir(), "status")
	if err := os.WriteFile(file, []byte("on"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := Device{Path: path, Timeout: 5 * time.Minute, Poll: time.Millisecond, Parameters: map[string]string{"status_file": file}}
	if p, err := d.Status(t.Context()); err != nil || p != PowerOn {
		t.Fatalf("%q %v", p, err)
	}
	if err := d.Monitor(t.Context()); err != nil {
		t.Error(err)
	}
	if err := d.Cut(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p, err := d.Status(t.Context()); err != nil || p != PowerOff {
		t.Fatalf("%q %v", p, err)
	}
	if err := d.Raise(t.Context()); err != nil {
		t.Fatal(err)
	}
	if xml, err := d.Metadata(t.Context()); err != nil || !strings.Contains(xml, "status_file") {
		t.Errorf("%.100q %v", xml, err)
	}
}
