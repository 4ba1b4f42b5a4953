package link

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// A confined process can't open files of its host. Where an order needs one the daemon opens it and sends it along
// (unix(7), SCM_RIGHTS). Only a process takes files: what one sends to the daemon is dropped by the kernel.

// errFiles says that a connection carries none.
var errFiles = errors.New("only a Unix socket carries open files")

// fileReader reads bytes, and keeps the last file that came with them.
type fileReader struct {
	c    *net.UnixConn
	file *os.File
}

func (r *fileReader) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := r.c.ReadMsgUnix(p, oob)
	if oobn > 0 {
		r.keep(oob[:oobn])
	}
	return n, err
}

func (r *fileReader) keep(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if r.file != nil {
				r.file.Close()
			}
			r.file = os.NewFile(uintptr(fd), "from the daemon")
		}
	}
}

// take returns the file that came with the message just read; nil: none.
func (r *fileReader) take() *os.File {
	f := r.file
	r.file = nil
	return f
}

// TakeFiles makes Receive take files that come with messages. It is called before Receive.
func (c *Conn) TakeFiles() {
	if u, ok := c.c.(*net.UnixConn); ok {
		c.files = &fileReader{c: u}
		c.r = c.files
	}
}

// sendFile sends bytes with an open file.
func (c *Conn) sendFile(b []byte, f *os.File) error {
	u, ok := c.c.(*net.UnixConn)
	if !ok {
		return errFiles
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("send a file: %w", err)
	}
	var n int
	err = errors.Join(raw.Control(func(fd uintptr) {
		n, _, err = u.WriteMsgUnix(b, unix.UnixRights(int(fd)), nil)
	}), err)
	if err == nil && n < len(b) {
		_, err = u.Write(b[n:])
	}
	return err
}
