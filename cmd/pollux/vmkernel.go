package main

// builtinLedger names our own guest, whose image is part of this program.
const builtinLedger = "builtin:ledger"

func builtinKernel(name string) ([]byte, error) {
	return nil, usagef("--kernel %s: there is only %s", name, builtinLedger)
}
