// Command agent is the first program of a lab host. As process 1 it mounts what a Linux needs, loads the
// modules in /modules and adopts orphans; its child brings up the network and the data disk as /lab.json says
// and serves the control channel: commands and files of the lab.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() == 1 {
		first()
		return
	}
	fmt.Println("agent:", serve()) // it serves until the channel breaks
}

// first is process 1.
func first() {
	for _, m := range []struct{ kind, where, options string }{
		{"proc", "/proc", ""}, {"sysfs", "/sys", ""}, {"devtmpfs", "/dev", ""}, {"devpts", "/dev/pts", "ptmxmode=666"},
		{"tmpfs", "/dev/shm", ""}, {"tmpfs", "/run", ""},
	} {
		_ = os.MkdirAll(m.where, 0o755)
		if err := unix.Mount(m.kind, m.where, m.kind, 0, m.options); err != nil {
			fmt.Printf("agent: mount %s: %v\n", m.where, err)
		}
	}
	// The kernel opened the console before /dev was there.
	if c, err := os.OpenFile("/dev/console", os.O_RDWR, 0); err == nil {
		for fd := range 3 {
			_ = unix.Dup2(int(c.Fd()), fd)
		}
	}
	modules, _ := filepath.Glob("/modules/*.ko")
	slices.Sort(modules)
	for _, m := range modules {
		if err := load(m); err != nil {
			fmt.Println("agent:", err)
		}
	}
	os.Setenv("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	os.Setenv("HOME", "/")
	if out, err := exec.Command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		fmt.Printf("agent: install busybox: %v: %s\n", err, out)
	}
	child, err := os.StartProcess("/proc/self/exe", []string{"agent"}, &os.ProcAttr{
		Env: os.Environ(), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		fmt.Println("agent: start the server:", err)
		powerOff()
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err == nil && pid == child.Pid {
			fmt.Println("agent: the server has ended")
			powerOff()
		}
	}
}

func load(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return fmt.Errorf("load %s: %w", filepath.Base(file), err)
	}
	return nil
}

// powerOff does not come back.
func powerOff() {
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}
