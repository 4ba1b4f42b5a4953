#!/bin/sh
# Runs spin on the model of the protocol: it must hold, and each deliberate mistake must be found.
#
#   docs/model/check.sh [deep]
#
# Needs spin and gcc. Works in a folder of its own; takes one to two minutes, deep ten or more.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for tool in spin gcc; do
	command -v $tool >/dev/null || { echo "model: $tool is missing: apt-get install $tool" >&2; exit 2; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# run BOUNDS MISTAKE: prints what the verifier says.
run() {
	# shellcheck disable=SC2086 # a list of words
	spin $1 -DMISTAKE="$2" -a "$here/pair.pml" >/dev/null
	gcc -O2 -w -DSAFETY -DCOLLAPSE -DMEMLIM=12000 -o pan pan.c
	./pan -E -m500000
}

bounds="-DEPOCHS=3 -DTERMS=4 -DDEATHS=1 -DLOSSES=1"
[ "${1:-}" = deep ] && deep="-DEPOCHS=4 -DTERMS=5 -DDEATHS=2 -DLOSSES=1"
run "${deep:-$bounds}" 0 >said
if ! grep -q 'errors: 0' said || grep -q 'Search not completed\|max search depth too small' said; then
	cat said >&2
	echo "model: the model does not hold, or the search was not completed" >&2
	exit 1
fi
echo "model: holds in all $(sed -n 's/ *\([0-9]*\) states, stored.*/\1/p' said) states"
for mistake in 1 2 3 4 5 6 7; do
	run "$bounds" $mistake >said
	if ! grep -q 'assertion violated' said; then
		echo "model: mistake $mistake is not found" >&2
		exit 1
	fi
	echo "model: mistake $mistake is found after $(sed -n 's/ *\([0-9]*\) states, stored.*/\1/p' said) states"
done
