package main

import "github.com/pollux-ha/pollux/guests/ledger"

// builtinLedger names our own guest, whose image is part of this program.
const builtinLedger = "builtin:ledger"

func builtinKernel(name string) ([]byte, error) {
	if name != builtinLedger {
		return nil, usagef("--kernel %s: there is only %s", name, builtinLedger)
	}
	return ledger.Image(), nil
}
