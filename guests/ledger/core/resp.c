#include "resp.h"
#include "text.h"

// A line that ends with CR LF, from p on. PARSED: *line is without the end and *used with it.
static enum parsed read_line(const u8 *p, u32 n, u32 longest, struct slice *line, u32 *used)
{
	for (u32 i = 0; i < n && i <= longest; i++)
		if (p[i] == '\n') {
			*line = (struct slice){p, i && p[i - 1] == '\r' ? i - 1 : i};
			*used = i + 1;
			return PARSED;
		}
	return n > longest ? PARSE_BROKEN : PARSE_MORE;
}

static enum parsed broken(struct request *r, const char *why)
{
	r->error = why;
	return PARSE_BROKEN;
}

enum parsed resp_bulk(const u8 *p, u32 n, struct request *r)
{
	struct slice line;
	u32 used;
	s64 length;
	if (n && p[0] != '$')
		return broken(r, "-ERR Protocol error: expected '$'\r\n");
	enum parsed e = read_line(p, n, 32, &line, &used);
	if (e == PARSE_MORE) {
		r->need = n + 1;
		return e;
	}
	if (e == PARSE_BROKEN || !parse_signed((struct slice){line.p + 1, line.n - 1}, &length) || length < 0 ||
	    length > BULK_MAX)
		return broken(r, "-ERR Protocol error: invalid bulk length\r\n");
	r->consumed = used;
	r->skip_bytes = (u64)length;
	return PARSED;
}

// Inline commands are unquoted in here; only the request being executed refers to it.
static u8 inline_line[INLINE_MAX] __attribute__((section(".bss.large")));

static int hex_digit(u8 c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool is_space(u8 c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

// One word of an inline command, unquoted as redis-cli quotes. Returns false at unbalanced quotes.
static bool unquote(const u8 **at, const u8 *end, u8 **to)
{
	const u8 *p = *at;
	u8 *o = *to, quote = 0;
	for (; p < end; p++) {
		if (quote == '"' && *p == '\\' && p + 1 < end) {
			if (p[1] == 'x' && p + 3 < end && hex_digit(p[2]) >= 0 && hex_digit(p[3]) >= 0) {
				*o++ = (u8)(hex_digit(p[2]) * 16 + hex_digit(p[3]));
				p += 3;
				continue;
			}
			static const u8 from[] = "nrtba", into[] = "\n\r\t\b\a";
			u8 c = *++p;
			for (u32 i = 0; i < 5; i++)
				if (c == from[i]) {
					c = into[i];
					break;
				}
			*o++ = c;
		} else if (quote == '\'' && *p == '\\' && p + 1 < end && p[1] == '\'') {
			*o++ = *++p;
		} else if (quote && *p == quote) {
			quote = 0;
			if (p + 1 < end && !is_space(p[1]))
				return false;
		} else if (!quote && (*p == '"' || *p == '\'')) {
			quote = *p;
		} else if (!quote && is_space(*p)) {
			break;
		} else {
			*o++ = *p;
		}
	}
	*at = p;
	*to = o;
	return !quote;
}

static enum parsed parse_inline(const u8 *p, u32 n, struct request *r)
{
	struct slice line;
	enum parsed e = read_line(p, n, INLINE_MAX - 1, &line, &r->consumed);
	if (e == PARSE_MORE)
		r->need = n + 1;
	if (e == PARSE_BROKEN)
		return broken(r, "-ERR Protocol error: too big inline request\r\n");
	if (e != PARSED)
		return e;
	u8 *to = inline_line;
	const u8 *at = line.p, *end = line.p + line.n;
	for (;;) {
		while (at < end && is_space(*at))
			at++;
		if (at == end)
			return PARSED;
		if (r->argc == ARGUMENTS_MAX)
			return broken(r, "-ERR Protocol error: too many arguments in an inline request\r\n");
		u8 *start = to;
		if (!unquote(&at, end, &to))
			return broken(r, "-ERR Protocol error: unbalanced quotes in request\r\n");
		r->argv[r->argc++] = (struct slice){start, (u32)(to - start)};
	}
}

enum parsed resp_parse(const u8 *p, u32 n, struct request *r)
{
	r->argc = 0;
	if (!n) {
		r->need = 1;
		return PARSE_MORE;
	}
	if (p[0] != '*')
		return parse_inline(p, n, r);
	struct slice line;
	u32 at;
	s64 count;
	enum parsed e = read_line(p, n, 32, &line, &at);
	if (e == PARSE_MORE) {
		r->need = n + 1;
		return e;
	}
	if (e == PARSE_BROKEN || !parse_signed((struct slice){line.p + 1, line.n - 1}, &count) || count > 1024 * 1024)
		return broken(r, "-ERR Protocol error: invalid multibulk length\r\n");
	if (count > ARGUMENTS_MAX) {
		r->consumed = at;
		r->skip_bytes = 0;
		r->skip_arguments = (u32)count;
		r->skip_reason = SKIP_COUNT;
		return PARSE_SKIP;
	}
	for (s64 i = 0; i < count; i++) {
		e = resp_bulk(p + at, n - at, r);
		if (e == PARSE_MORE)
			r->need += at;
		if (e != PARSED)
			return e;
		at += r->consumed;
		u32 length = (u32)r->skip_bytes;
		if (length > VALUE_MAX || at + length + 2 > REQUEST_MAX) {
			r->consumed = at;
			r->skip_bytes = (u64)length + 2;
			r->skip_arguments = (u32)(count - i - 1);
			r->skip_reason = length > VALUE_MAX ? SKIP_ARGUMENT : SKIP_REQUEST;
			return PARSE_SKIP;
		}
		if (n - at < length + 2) {
			r->need = at + length + 2;
			return PARSE_MORE;
		}
		r->argv[i] = (struct slice){p + at, length};
		at += length + 2; // the CR LF is not looked at, as in Redis
	}
	r->argc = count > 0 ? (u32)count : 0;
	r->consumed = at;
	return PARSED;
}
