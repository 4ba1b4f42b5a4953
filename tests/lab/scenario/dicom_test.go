package scenario

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/tests/lab"
	"github.com/pollux-ha/pollux/tests/lab/images"
	"github.com/pollux-ha/pollux/tests/lab/scenario/dicom"
)

// study is the nth of this scenario's studies: 500 small slices.
func study(n int) dicom.Study { return dicom.Study{Number: n, Images: 500, Side: 128} }

// store sends a study to the server, on one association.
func (s *stage) store(d dicom.Study) *program {
	s.Helper()
	name := fmt.Sprint("study", d.Number)
	if err := os.MkdirAll(s.outside(name), 0o755); err != nil {
		s.Fatal(err)
	}
	if err := d.Write(s.outside(name)); err != nil {
		s.Fatal(err)
	}
	return s.start("Received Store Response (Success)", "storescu", "-v", "-aet", images.ClientTitle, "-aec", images.DICOMTitle,
		"--scan-directories", s.address, fmt.Sprint(images.DICOMPort), s.inside(name))
}

// stored waits until a study is stored and returns how long it took since a moment.
func (s *stage) stored(d dicom.Study, p *program, since time.Time) float64 {
	s.Helper()
	if n := p.end(); n != d.Images {
		s.Fatalf("%d of %d images were accepted\n%s", n, d.Images, p.said())
	}
	seconds := time.Since(since).Seconds()
	s.step("study %d is stored, %.1f images a second", d.Number, float64(d.Images)/seconds)
	return seconds
}

// fetch asks for a study: C-GET on the client's association, or C-MOVE, for which the server opens one to the client.
func (s *stage) fetch(d dicom.Study, move bool) *program {
	s.Helper()
	dir := fmt.Sprintf("fetched%d", d.Number)
	if err := os.RemoveAll(s.outside(dir)); err != nil {
		s.Fatal(err)
	}
	if err := os.MkdirAll(s.outside(dir), 0o777); err != nil {
		s.Fatal(err)
	}
	argv := []string{"getscu"}
	if move {
		argv = []string{"movescu", "-aem", images.ClientTitle, "--port", fmt.Sprint(images.ClientDICOMPort)}
	}
	argv = append(argv, "-v", "-S", "-aet", images.ClientTitle, "-aec", images.DICOMTitle, "-od", s.inside(dir),
		"-k", "QueryRetrieveLevel=STUDY", "-k", "StudyInstanceUID="+d.UID(), s.address, fmt.Sprint(images.DICOMPort))
	mark := "Received C-STORE Request"
	if move {
		mark = "Received Store Request"
	}
	return s.start(mark, argv...)
}

// fetched waits until a study has come and looks at every image.
func (s *stage) fetched(d dicom.Study, p *program, since time.Time) float64 {
	s.Helper()
	p.end()
	seconds := time.Since(since).Seconds()
	files, err := filepath.Glob(s.outside(fmt.Sprintf("fetched%d/*", d.Number)))
	if err != nil {
		s.Fatal(err)
	}
	byUID := make(map[string]string)
	for _, f := range files {
		_, uid, _ := strings.Cut(filepath.Base(f), ".")
		byUID[uid] = f
	}
	lost, wrong := 0, 0
	for n := range d.Images {
		data, err := os.ReadFile(byUID[d.ImageUID(n)])
		if err != nil {
			lost++
		} else if !bytes.HasSuffix(data, d.Pixels(n)) {
			wrong++
		}
	}
	if lost+wrong > 0 || len(files) != d.Images {
		s.Errorf("of %d images %d did not come and %d have other pixels; %d files came\n%s", d.Images, lost, wrong, len(files), p.said())
	}
	s.step("study %d is fetched, %.1f images a second", d.Number, float64(d.Images)/seconds)
	return seconds
}

// dicomUp waits until the server answers.
func (s *stage) dicomUp() {
	s.Helper()
	s.eventually("the DICOM server answers", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		_, err := s.run(ctx, nil, "echoscu", "-aet", images.ClientTitle, "-aec", images.DICOMTitle, s.address, fmt.Sprint(images.DICOMPort))
		return err
	})
}

// A radiology department's image server loses its host while a study is being stored and while it is being fetched: no
// image is lost, no association breaks. How many images a second go through is measured with a replica and without.
func TestImagesOutliveTheirHost(t *testing.T) {
	s := newStage(t, options{image: orthanc, qemu: true})
	if a := s.client.Address(lab.LAN).String(); a != images.ClientAddress {
		t.Fatalf("the client has the address %s, and the server sends to %s", a, images.ClientAddress)
	}
	s.dicomUp()
	rates := make(map[string]float64)
	rate := func(what string, d dicom.Study, seconds float64) { rates[what] = float64(d.Images) / seconds }

	began := time.Now()
	rate("store, protected", study(1), s.stored(study(1), s.store(study(1)), began))
	s.mirror()
	began = time.Now()
	rate("fetch, protected", study(1), s.fetched(study(1), s.fetch(study(1), false), began))

	s.mirror()
	began = time.Now()
	p := s.store(study(2))
	p.until(100)
	dead, _ := s.pullPlug()
	s.stored(study(2), p, began)

	began = time.Now()
	rate("store, solo", study(3), s.stored(study(3), s.store(study(3)), began))
	began = time.Now()
	rate("fetch, solo", study(3), s.fetched(study(3), s.fetch(study(3), false), began))

	s.must(dead.Name+" is on again", dead.PowerOn(s.Context()))
	s.protected()
	began = time.Now()
	p = s.fetch(study(2), true)
	p.until(100)
	s.pullPlug()
	s.fetched(study(2), p, began)
	began = time.Now()
	s.fetched(study(1), s.fetch(study(1), false), began)

	// The same guest on the same emulated hardware, on QEMU. Its twin's host is off, as it was for solo.
	alive, other := s.hosts()
	s.stopGuest()
	if other.On() {
		s.must(other.Name+" is off", other.PowerOff(s.Context()))
	}
	s.startOnQEMU(s.Context(), alive)
	s.dicomUp()
	began = time.Now()
	rate("store, QEMU", study(4), s.stored(study(4), s.store(study(4)), began))
	began = time.Now()
	rate("fetch, QEMU", study(4), s.fetched(study(4), s.fetch(study(4), false), began))

	for _, what := range []string{"store", "fetch"} {
		qemu, solo, protected := rates[what+", QEMU"], rates[what+", solo"], rates[what+", protected"]
		t.Logf("%s: %.1f images a second on QEMU, %.1f solo, %.1f protected: protected is %.2f of solo, solo %.2f of QEMU",
			what, qemu, solo, protected, protected/solo, solo/qemu)
	}
}
