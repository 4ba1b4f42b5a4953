// The four functions that gcc may call by itself.
#include "../core/base.h"

void *memcpy(void *to, const void *from, size_t n)
{
	void *start = to;
	if (n < 64) { // rep movs takes some thirty cycles to get going
		u8 *t = to;
		const u8 *f = from;
		for (; n >= 8; n -= 8, t += 8, f += 8)
			*(u64 __attribute__((may_alias, aligned(1))) *)t = *(const u64 __attribute__((may_alias, aligned(1))) *)f;
		while (n--)
			*t++ = *f++;
		return start;
	}
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
	return start;
}

void *memset(void *to, int c, size_t n)
{
	void *start = to;
	__asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(c) : "memory");
	return start;
}

void *memmove(void *to, const void *from, size_t n)
{
	if ((uintptr_t)to - (uintptr_t)from >= n)
		return memcpy(to, from, n);
	u8 *t = to;
	const u8 *f = from;
	while (n--)
		t[n] = f[n];
	return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const u8 *x = a, *y = b;
	for (; n; n--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}
