// Reading requests: RESP arrays of bulk strings, and inline commands.
#ifndef LEDGER_RESP_H
#define LEDGER_RESP_H

#include "base.h"

#define KEY_MAX 512u
#define VALUE_MAX (64 * KIB)
#define ARGUMENTS_MAX 1024u
#define REQUEST_MAX (192 * KIB) // of one whole request, on the wire
#define INLINE_MAX (4 * KIB)
#define BULK_MAX (512 * MIB) // longer: a protocol error, as with Redis

enum parsed {
	PARSED,       // argc may be 0: nothing to do
	PARSE_MORE,   // incomplete; it takes at least need bytes
	PARSE_SKIP,   // over a limit of ours, but well-formed so far: see skip_
	PARSE_BROKEN, // not the protocol; error says what to tell
};

enum skip_reason { SKIP_NOT, SKIP_ARGUMENT, SKIP_REQUEST, SKIP_COUNT };

struct request {
	u32 consumed;
	u32 need;
	u32 argc;
	const char *error;
	// PARSE_SKIP: after consumed bytes, skip_bytes follow that nobody needs, then skip_arguments bulk strings.
	u32 skip_arguments;
	u64 skip_bytes;
	u8 skip_reason;
	struct slice argv[ARGUMENTS_MAX];
};

enum parsed resp_parse(const u8 *p, u32 n, struct request *r);
// The head of one bulk string, "$n\r\n": PARSED with its length in skip_bytes, MORE or BROKEN.
enum parsed resp_bulk(const u8 *p, u32 n, struct request *r);

#endif
