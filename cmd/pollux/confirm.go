package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/pollux-ha/pollux/console"
)

// confirm has the operator type the object's name again before something dangerous is done. Where
// nobody can be asked, --yes is needed. It returns the name for the request.
func confirm(cmd *cobra.Command, yes bool, kind, name, danger string) (string, error) {
	if yes {
		return name, nil
	}
	in, ok := cmd.InOrStdin().(*os.File)
	if !ok || !isTerminal(in) {
		return "", console.Errorf(console.CodeNeedsConfirmation, "%s; confirm with --yes", danger)
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s.\nType the %s's name (%s) to go on: ", danger, kind, name)
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && err != io.EOF {
		return "", fmt.Errorf("read the confirmation: %w", err)
	}
	if strings.TrimSpace(line) != name {
		return "", console.Errorf(console.CodeNeedsConfirmation, "not confirmed; nothing was done")
	}
	return name, nil
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
