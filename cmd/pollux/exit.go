package main

import (
	"errors"
	"fmt"

	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/console"
)

// The exit codes are documented and stable.
const (
	exitDone              = 0
	exitFailed            = 1
	exitUsage             = 2
	exitNoSuchGuest       = 3
	exitNoQuorum          = 4
	exitUnprotected       = 5
	exitTimeout           = 6
	exitUnknown           = 7
	exitNeedsConfirmation = 8
	exitRefused           = 9
	exitUnavailable       = 10
	exitForbidden         = 11
)

const exitCodesHelp = `Exit codes:
   0  done
   1  failed
   2  the command line or the configuration is wrong
   3  there is no such guest
   4  no majority of the voters answers: nothing was changed
   5  it needs a protected guest, and this one is not
   6  it was asked for, and has not come about in time
   7  nobody can say yet whether the change was made: look before you ask again
   8  dangerous, and not confirmed
   9  refused: the state does not allow it
  10  the daemon does not answer, or asks for fewer requests
  11  the token is not good, or its user's role does not reach that far`

var exitCodes = map[console.Code]int{
	console.CodeInvalid:           exitUsage,
	console.CodeNoSuchGuest:       exitNoSuchGuest,
	console.CodeNoQuorum:          exitNoQuorum,
	console.CodeUnprotected:       exitUnprotected,
	console.CodeTimeout:           exitTimeout,
	console.CodeUnknown:           exitUnknown,
	console.CodeNeedsConfirmation: exitNeedsConfirmation,
	console.CodeRefused:           exitRefused,
	console.CodeExists:            exitRefused,
	console.CodeUnavailable:       exitUnavailable,
	console.CodeTooMany:           exitUnavailable,
	console.CodeUnauthorized:      exitForbidden,
	console.CodeForbidden:         exitForbidden,
	console.CodeFailed:            exitFailed,
}

// exitError carries an exit code of its own. Without an error everything has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usagef makes an error of the command line.
func usagef(format string, a ...any) error {
	return &exitError{code: exitUsage, err: fmt.Errorf(format, a...)}
}

// exitCode is the exit code for an error.
func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	var own *exitError
	if errors.As(err, &own) {
		return own.code
	}
	if errors.Is(err, config.ErrInvalid) {
		return exitUsage
	}
	var api *console.Error
	if errors.As(err, &api) {
		if code, ok := exitCodes[api.Code]; ok {
			return code
		}
	}
	return exitFailed
}
