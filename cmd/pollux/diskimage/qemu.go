package diskimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// qemuImg runs qemu-img. What it tells of its progress goes to progress, where that is not nil.
func qemuImg(ctx context.Context, progress io.Writer, args ...string) ([]byte, error) {
	path, err := exec.LookPath("qemu-img")
	if err != nil {
		return nil, errors.New("qemu-img is missing, which knows the formats other than raw: apt-get install qemu-utils")
	}
	cmd := exec.CommandContext(ctx, path, args...)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if progress != nil {
		cmd.Stdout = progress
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("qemu-img %s: %w", args[0], ctx.Err())
		}
		text := strings.TrimPrefix(strings.TrimSpace(complaints.String()), "qemu-img: ")
		return nil, fmt.Errorf("qemu-img %s: %w: %s", args[0], err, text)
	}
	return out.Bytes(), nil
}

// local keeps qemu-img from taking a file's name for the address of something else ("nbd:...").
func local(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "./" + path
}
