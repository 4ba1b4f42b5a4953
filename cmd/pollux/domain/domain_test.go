package domain

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"
)

func read(t testing.TB, name string) []byte {
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLibvirt(t *testing.T) {
	d, err := ParseLibvirt(read(t, "radiology.xml"))
	if err != nil {
		t.Fatal(err)
	}
	left := d.Left
	d.Left = nil
	want := &Domain{
		Name: "radiology", MemoryBytes: 4 << 30, CPUs: 2, CPU: "host", Firmware: true, OnPanic: "keep",
		Disks: []Disk{
			{Source: "/srv/radiology.qcow2", Format: "qcow2", Serial: "IMAGES-1"},
			{Source: "/dev/vg0/archive", Format: "raw", ReadOnly: true},
		},
		Nets: []Net{{MAC: "52:54:00:aa:bb:01", Network: "default", Queues: 2}, {MAC: "52:54:00:aa:bb:02", Network: "modality"}},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got  %+v\nwant %+v", d, want)
	}
	// What changes the guest is told, and nothing else.
	expect(t, left, "<uuid>", "<currentMemory>", "<nvram>", "<features>: <hyperv>", "<cpu mode=\"host-passthrough\">", "<cpu>: <topology>",
		"<clock offset=\"localtime\">", "disk 1: bus=\"scsi\"", "<disk type=\"file\" device=\"cdrom\">", "network card 1: model \"e1000e\"",
		"<graphics type=\"vnc\">", "<video>", "<hostdev type=\"pci\" mode=\"subsystem\">", "<watchdog model=\"ib700\">", "<launchSecurity type=\"sev\">")
}

func TestOVF(t *testing.T) {
	d, err := ParseOVF(read(t, "archive.ovf"))
	if err != nil {
		t.Fatal(err)
	}
	left := d.Left
	d.Left = nil
	want := &Domain{Name: "archive", MemoryBytes: 512 << 20, CPUs: 2, Firmware: true,
		Disks: []Disk{{Source: "archive-disk1.vmdk", SizeBytes: 8 << 20}}, Nets: []Net{{Network: "VM Network"}}}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("got  %+v\nwant %+v", d, want)
	}
	expect(t, left, "network card 0: VmxNet3", "\"card\" (resource type 24)")
}

func expect(t *testing.T, left []Left, want ...string) {
	t.Helper()
	found := map[string]bool{}
	for _, l := range left {
		found[l.What] = true
		if l.Why == "" {
			t.Errorf("%s is left out without a reason", l.What)
		}
	}
	for _, w := range want {
		if !found[w] && !found[w+"/var/lib/libvirt/qemu/nvram/radiology_VARS.fd"] {
			t.Errorf("nothing is said of %s; told is %v", w, left)
		}
	}
	if len(left) != len(want) {
		t.Errorf("%d things are left out, not %d: %v", len(left), len(want), left)
	}
}

func TestDirectBootAndBIOS(t *testing.T) {
	const rest = `<memory>524288</memory><vcpu>1</vcpu>`
	d, err := ParseLibvirt([]byte(`<domain type="kvm">` + rest + `<os><kernel>/k</kernel><initrd>/i</initrd><cmdline>root=/dev/vda</cmdline></os></domain>`))
	if err != nil || d.Kernel != "/k" || d.Initrd != "/i" || d.Cmdline != "root=/dev/vda" || d.Firmware || d.MemoryBytes != 512<<20 || len(d.Left) != 0 {
		t.Errorf("%+v %v", d, err)
	}
	d, err = ParseLibvirt([]byte(`<domain type="kvm">` + rest + `<os><type>hvm</type></os></domain>`))
	if err != nil || len(d.Left) != 1 || !strings.Contains(d.Left[0].What, "BIOS") {
		t.Errorf("%+v %v", d, err)
	}
}

func TestBadDescriptions(t *testing.T) {
	for name, text := range map[string]string{
		"no XML":          "qcow2?",
		"another root":    "<network/>",
		"no memory":       "<domain><vcpu>1</vcpu></domain>",
		"no CPUs":         "<domain><memory>1024</memory><vcpu>0</vcpu></domain>",
		"odd unit":        "<domain><memory unit='acre'>1</memory></domain>",
		"vast":            "<domain><memory unit='TiB'>99999999999</memory></domain>",
		"negative":        "<domain><memory>-1</memory></domain>",
		"card in the air": "<domain><memory>1024</memory><devices><interface type='bridge'/></devices></domain>",
	} {
		if _, err := ParseLibvirt([]byte(text)); !errors.Is(err, ErrDescription) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := ParseOVF([]byte(text)); !errors.Is(err, ErrDescription) {
			t.Errorf("%s as OVF: %v", name, err)
		}
	}
	missing := strings.Replace(string(read(t, "archive.ovf")), `ovf:fileRef="file1"`, "", 1)
	if _, err := ParseOVF([]byte(missing)); !errors.Is(err, ErrDescription) {
		t.Errorf("a disk without a file: %v", err)
	}
}

func FuzzDescriptions(f *testing.F) {
	f.Add(read(f, "radiology.xml"))
	f.Add(read(f, "archive.ovf"))
	f.Add([]byte("<domain><memory>1</memory><devices><disk/></devices></domain>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, parse := range []func([]byte) (*Domain, error){ParseLibvirt, ParseOVF} {
			d, err := parse(b)
			if err != nil {
				if d != nil && !errors.Is(err, ErrDescription) {
					t.Fatalf("an error of no kind: %v", err)
				}
				continue
			}
			if d.MemoryBytes == 0 || d.CPUs < 1 {
				t.Fatalf("a machine without memory or CPUs: %+v", d)
			}
		}
	})
}
