package diskimage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
)

// Info says what an image is.
type Info struct {
	Path        string `json:"path"`
	Format      Format `json:"format"`
	SizeBytes   uint64 `json:"size_bytes"`   // as a guest sees it
	ActualBytes uint64 `json:"actual_bytes"` // what its file takes on this machine
}

// ErrForeign says that an image names other files of this machine.
var ErrForeign = errors.New("the image refers to files besides itself")

// description is what qemu-img says of an image.
type description struct {
	VirtualSize uint64 `json:"virtual-size"`
	ActualSize  uint64 `json:"actual-size"`
	Format      string `json:"format"`
	Backing     string `json:"backing-filename"`
	Encrypted   bool   `json:"encrypted"`
	Specific    struct {
		Data struct {
			DataFile string `json:"data-file"`
			Extents  []struct {
				Filename string `json:"filename"`
			} `json:"extents"`
		} `json:"data"`
	} `json:"format-specific"`
}

// Look finds out what an image is. With an empty format it is recognized by its content, which is good
// enough only for images that no guest has written to as raw. The error wraps ErrForeign where the image
// depends on others.
func Look(ctx context.Context, path string, format Format) (Info, error) {
	args := []string{"info", "--output=json"}
	if format != "" {
		args = append(args, "-f", drivers[format])
	}
	out, err := qemuImg(ctx, nil, append(args, "--", local(path))...)
	if err != nil {
		return Info{}, fmt.Errorf("look at %s: %w", path, err)
	}
	var d description
	if err := json.Unmarshal(out, &d); err != nil {
		return Info{}, fmt.Errorf("look at %s: what qemu-img says can't be understood: %w", path, err)
	}
	return d.judge(path)
}

// judge turns the description into an Info, or says why the image can't be used.
func (d *description) judge(path string) (Info, error) {
	f, ok := formatOf(d.Format)
	if !ok {
		return Info{}, fmt.Errorf("%s is a %s image; only %v can be read", path, d.Format, Formats())
	}
	i := Info{Path: path, Format: f, SizeBytes: d.VirtualSize, ActualBytes: d.ActualSize}
	switch {
	case d.Backing != "":
		return i, fmt.Errorf("%s: %w: it is an overlay of %q; flatten it where it comes from (qemu-img convert)", path, ErrForeign, d.Backing)
	case d.Specific.Data.DataFile != "":
		return i, fmt.Errorf("%s: %w: its data lie in %q", path, ErrForeign, d.Specific.Data.DataFile)
	case d.Encrypted:
		return i, fmt.Errorf("%s is encrypted; decrypt it where it comes from", path)
	}
	for _, e := range d.Specific.Data.Extents {
		if filepath.Dir(filepath.Clean(e.Filename)) != filepath.Dir(filepath.Clean(local(path))) {
			return i, fmt.Errorf("%s: %w: an extent lies in %q, outside of the image's folder", path, ErrForeign, e.Filename)
		}
	}
	return i, nil
}
