package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// sessionVariable marks the process that Isolate has started.
const sessionVariable = "POLLUX_DEMO_SESSION"

// InSession says whether this process is a session's first.
func InSession() bool { return os.Getenv(sessionVariable) != "" && os.Getpid() == 1 }

// Isolate runs this program again with the same arguments, as the first process of a new session,
// and returns its exit code. The session ends with this process, even if that is killed; when ctx
// ends it is asked to end by itself.
//
// An ordinary user gets the session in a user namespace, where it may do with its own networks what
// only root may do elsewhere.
func Isolate(ctx context.Context) (int, error) { return IsolateArgs(ctx, os.Args[1:], os.Stdout) }

// IsolateArgs is Isolate with arguments of its own, and with another place for standard output.
func IsolateArgs(ctx context.Context, args []string, out io.Writer) (int, error) {
	// The death signal comes when the thread ends that has started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), sessionVariable+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, out, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Pdeathsig:  unix.SIGKILL,
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start a session in namespaces of its own: %w%s", err, namespaceHint(err))
	}
	// On Ctrl-C the terminal tells the child as well; a second word does no harm.
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(unix.SIGTERM) })
	defer stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("wait for the session: %w", err)
	}
	if code := cmd.ProcessState.ExitCode(); code >= 0 {
		return code, nil
	}
	return 0, fmt.Errorf("the session was ended: %s", cmd.ProcessState)
}

func namespaceHint(err error) string {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EACCES) {
		return ""
	}
	if os.Geteuid() == 0 {
		return " (this environment does not let root make namespaces; in a container, give it the capability SYS_ADMIN)"
	}
	return " (user namespaces are not allowed here: run it as root, or as root set sysctl kernel.unprivileged_userns_clone=1 and user.max_user_namespaces above 0, and kernel.apparmor_restrict_unprivileged_userns=0 where that exists)"
}

// settle makes a namespace's first process at home there: mounts that nobody else sees, and a /proc
// that shows its own processes.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc (in a container this needs an unmasked /proc): %w", err)
	}
	// /sys shows the interfaces of the network namespace in which it was mounted. A container may not
	// allow this; then those who look there find the wrong ones and say so.
	_ = unix.Mount("sysfs", "/sys", "sysfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	return nil
}

// patience bounds what takes moments unless something is broken.
const patience = 10 * time.Second
