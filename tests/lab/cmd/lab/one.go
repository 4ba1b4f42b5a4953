package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pollux-ha/pollux/tests/lab"
	"github.com/pollux-ha/pollux/tests/lab/emulator"
	"github.com/pollux-ha/pollux/tests/lab/parts"
)

// lone is lab.Lone, which says to people what it has to say.
func lone(ctx context.Context, files map[string]string, use func(*emulator.Machine) error) error {
	return lab.Lone(ctx, files, func(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }, use)
}

// runShell runs a shell command in a host that has pollux and, where this machine has them, the programs of its tests.
func runShell(ctx context.Context, args []string) error {
	return runWith(ctx, time.Hour, nil, append([]string{"sh", "-c"}, strings.Join(args, " ")))
}

// runDemo runs `pollux demo`.
func runDemo(ctx context.Context, args []string) error {
	fmt.Fprintln(os.Stderr, "lab: the demo runs in an emulated machine: everything takes several times as long as on a real one")
	return runWith(ctx, 30*time.Minute, []string{"redis-benchmark"}, append([]string{"pollux", "demo"}, args...))
}

// programs are what tests and demo use of this machine's.
var programs = []string{"redis-benchmark", "redis-cli", "setpriv"}

func runWith(ctx context.Context, limit time.Duration, needed, argv []string) error {
	pollux, err := parts.Program(ctx, "./cmd/pollux")
	if err != nil {
		return err
	}
	files := map[string]string{"/bin/pollux": pollux}
	for _, name := range programs {
		if err := addProgram(ctx, files, name); err != nil && slices.Contains(needed, name) {
			return fmt.Errorf("%w; as root: sh tests/setup.sh test", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return lone(ctx, files, func(m *emulator.Machine) error {
		return m.Run(ctx, emulator.Command{Argv: argv, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr})
	})
}

// addProgram adds a program of this machine with its libraries.
func addProgram(ctx context.Context, files map[string]string, name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	libraries, err := parts.Libraries(ctx, path)
	if err != nil {
		return err
	}
	files["/usr/bin/"+name] = path
	for _, l := range libraries {
		files[l] = l
	}
	return nil
}

// runTest runs a test binary as `go test -exec` asks for it: in the package's folder, with what lies in that.
func runTest(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("exec: which test binary?")
	}
	binary, err := filepath.Abs(args[0])
	if err != nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	limit := 10 * time.Minute
	for _, a := range args[1:] {
		if v, ok := strings.CutPrefix(a, "-test.timeout="); ok {
			if d, err := time.ParseDuration(v); err == nil && d > 0 {
				limit = d + emulator.BootLimit
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	files := map[string]string{"/test/" + filepath.Base(binary): binary}
	if err := addTree(files, filepath.Join(dir, "testdata")); err != nil {
		return err
	}
	// Tests of the program as a user has it look for it here.
	if p := filepath.Join(parts.Root(), "bin", "pollux"); exists(p) {
		files[p] = p
	}
	files[filepath.Join(parts.Root(), "go.mod")] = filepath.Join(parts.Root(), "go.mod")
	for _, name := range programs {
		if err := addProgram(ctx, files, name); err != nil {
			fmt.Fprintf(os.Stderr, "lab: %v\n", err) // its tests say that they need it
		}
	}
	return lone(ctx, files, func(m *emulator.Machine) error {
		if _, err := m.Exec(ctx, nil, "mkdir", "-p", dir); err != nil {
			return err
		}
		c := emulator.Command{
			Argv: append([]string{"/test/" + filepath.Base(binary)}, args[1:]...), Dir: dir,
			Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		}
		for _, v := range os.Environ() {
			if strings.HasPrefix(v, "POLLUX_") || strings.HasPrefix(v, "GOTRACEBACK=") || strings.HasPrefix(v, "GODEBUG=") {
				c.Env = append(c.Env, v)
			}
		}
		return m.Run(ctx, c)
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// addTree adds a folder's files under the paths that they have here.
func addTree(files map[string]string, dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files[path] = path
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
