#include "cpu.h"
#include "../core/hash.h"
#include "../core/machine.h"
#include "../core/text.h"

// Written by entry.S.
volatile u8 irq_pending, timer_fired;
u64 trap_vector, trap_error, trap_rip, trap_address;
u32 boot_info;

// Ends in the middle of a page: the other half is the parsed request's.
u8 user_stack[30 * KIB] __attribute__((aligned(4096), section(".bss.stack")));
__asm__(".global user_stack_top\n.set user_stack_top, user_stack + 30720 - 8");

struct gate {
	u16 offset0, selector;
	u8 stack, kind;
	u16 offset1;
	u32 offset2, zero;
};
struct gate idt[256] __attribute__((aligned(4096), section(".bss.pages")));

extern u8 exception_entries[], trap_call[], irq_device_x2apic[], irq_device_xapic[], irq_timer_x2apic[],
    irq_timer_xapic[], irq_spurious[];

static void gate(u32 vector, const u8 *entry, u32 privilege)
{
	u64 a = (u64)entry;
	// An interrupt gate: IF is off in the handler.
	idt[vector] = (struct gate){(u16)a, 0x18, 0, (u8)(0x8e | privilege << 5), (u16)(a >> 16), (u32)(a >> 32), 0};
}

enum { CALL_IDLE, CALL_ARM_AND_IDLE, CALL_MSR_WRITE, CALL_MSR_READ, CALL_CPUID };

struct cpuid cpuid(u32 leaf, u32 subleaf)
{
	struct cpuid r;
	__asm__ volatile("int3" : "=a"(r.a), "=b"(r.b), "=c"(r.c), "=d"(r.d) : "D"(CALL_CPUID), "a"(leaf), "c"(subleaf) : "memory");
	return r;
}

u64 msr_read(u32 msr)
{
	u32 low, high;
	__asm__ volatile("int3" : "=a"(low), "=d"(high) : "D"(CALL_MSR_READ), "c"(msr) : "memory");
	return (u64)high << 32 | low;
}

void msr_write(u32 msr, u64 value)
{
	__asm__ volatile("int3" ::"D"(CALL_MSR_WRITE), "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

// ---- the local APIC: x2APIC where there is one, else its registers in memory ----

#define APIC_BASE_MSR 0x1b
#define APIC_ID 0x02
#define APIC_TPR 0x08
#define APIC_SPURIOUS 0x0f
#define APIC_LVT_TIMER 0x32
#define APIC_TIMER_START 0x38
#define APIC_TIMER_NOW 0x39
#define APIC_TIMER_DIVIDE 0x3e
#define APIC_MASKED 0x10000
#define APIC_DIVIDE_BY_128 0xa
static bool x2apic;

static volatile u32 *apic_register(u32 n) { return (volatile u32 *)(0xfee00000ull + n * 16); }

static u32 apic_read(u32 n) { return x2apic ? (u32)msr_read(0x800 + n) : *apic_register(n); }

static void apic_write(u32 n, u32 v)
{
	if (x2apic)
		msr_write(0x800 + n, v);
	else
		*apic_register(n) = v;
}

u32 apic_id(void)
{
	u32 id = apic_read(APIC_ID);
	return x2apic ? id : id >> 24;
}

void cpu_init(void)
{
	for (u32 i = 0; i < 32; i++)
		gate(i, exception_entries + 16 * i, 0);
	gate(VECTOR_CALL, trap_call, 3);
	gate(VECTOR_SPURIOUS, irq_spurious, 0);
	out8(0x21, 0xff); // the PICs stay silent: everything comes by message
	out8(0xa1, 0xff);
	// The first call; it also turns interrupts on.
	struct cpuid features = cpuid(1, 0);
	x2apic = features.c >> 21 & 1;
	if (features.c >> 20 & 1)
		crc32c_use_cpu();
	gate(VECTOR_DEVICE, x2apic ? irq_device_x2apic : irq_device_xapic, 0);
	gate(VECTOR_TIMER, x2apic ? irq_timer_x2apic : irq_timer_xapic, 0);
	msr_write(APIC_BASE_MSR, msr_read(APIC_BASE_MSR) | 0x800 | (x2apic ? 0x400 : 0));
	apic_write(APIC_TPR, 0);
	apic_write(APIC_SPURIOUS, 0x100 | VECTOR_SPURIOUS);
}

// ---- time: the TSC ----

static u64 tsc_start, tsc_last, tsc_hz;
static u64 us_per_tick; // microseconds per tick of the TSC, times 2^40
static bool has_random;

// Counts TSC ticks against channel 0 of the PIT, which runs at 1193182 Hz on every PC.
static u64 calibrate(void)
{
	out8(0x43, 0x30); // channel 0, low and high byte, mode 0: counts down once
	out8(0x40, 0xff);
	out8(0x40, 0xff);
	u64 start = 0;
	u32 first = 0;
	for (u32 tries = 0; tries < 1000000; tries++) {
		out8(0x43, 0); // latch
		u32 low = in8(0x40), count = low | (u32)in8(0x40) << 8;
		u64 now = rdtsc();
		if (!start && count < 0xfff0) {
			start = now;
			first = count;
		} else if (start && first - count > 23863 && count < first) { // 20 ms
			return (now - start) * 1193182 / (first - count);
		}
	}
	return 0;
}

void clock_init(void)
{
	struct cpuid top = cpuid(0, 0), features = cpuid(1, 0);
	has_random = features.c >> 30 & 1;
	const char *source = "CPUID 0x15";
	if (top.a >= 0x15) {
		struct cpuid c = cpuid(0x15, 0);
		if (c.a && c.b && c.c)
			tsc_hz = (u64)c.c * c.b / c.a;
	}
	if (!tsc_hz && features.c >> 31 && cpuid(0x40000000, 0).a >= 0x40000010) {
		tsc_hz = cpuid(0x40000010, 0).a * 1000ull;
		source = "CPUID 0x40000010";
	}
	if (!tsc_hz) {
		tsc_hz = calibrate();
		source = "the PIT";
	}
	if (!tsc_hz) {
		tsc_hz = 1000000000;
		source = "a guess: no clock to measure it by";
	}
	us_per_tick = (u64)(((unsigned __int128)1000000 << 40) / tsc_hz);
	tsc_start = tsc_last = rdtsc();
	TEXT(t, 120);
	text_add(&t, "ledger: TSC at ");
	text_number(&t, tsc_hz / 1000);
	text_add(&t, " kHz, from ");
	text_add(&t, source);
	text_add(&t, x2apic ? "; x2APIC\n" : "; xAPIC\n");
	machine_log(t.at);
}

u64 machine_now(void)
{
	u64 now = rdtsc();
	// A takeover may put us on a host whose counter is behind. Time stands still then, never goes back.
	if (__builtin_expect(now < tsc_last, 0))
		tsc_start -= tsc_last - now;
	tsc_last = now;
	return 1 + (u64)(((unsigned __int128)(now - tsc_start) * us_per_tick) >> 40);
}

u64 machine_random(void)
{
	static u64 mixed;
	u64 v = 0;
	if (has_random)
		__asm__ volatile("rdrand %0" : "+r"(v)::"cc");
	mixed = (mixed ^ v ^ rdtsc()) * 0x9e3779b97f4a7c15;
	mixed ^= mixed >> 29;
	return mixed;
}

// ---- the timer: the local APIC's, one shot. Its count is relative, so it needs no TSC that CPL 0 and
// CPL 3 agree upon (on kvm-pvm only CPL 0 sees the guest's TSC offset). ----

static u64 timer_per_us; // ticks, times 2^16
static u64 timer_at = NEVER;

void timer_init(void)
{
	apic_write(APIC_TIMER_DIVIDE, APIC_DIVIDE_BY_128);
	apic_write(APIC_LVT_TIMER, APIC_MASKED | VECTOR_TIMER);
	apic_write(APIC_TIMER_START, 0xffffffff);
	u64 start = machine_now(), now;
	u32 before = apic_read(APIC_TIMER_NOW);
	do
		now = machine_now();
	while (now - start < 5000);
	u32 ticks = before - apic_read(APIC_TIMER_NOW);
	now = machine_now();
	timer_per_us = max_u32(ticks, 1) * 65536ull / (now - start);
	check(timer_per_us, "the local APIC's timer does not run");
	apic_write(APIC_TIMER_START, 0);
	apic_write(APIC_LVT_TIMER, VECTOR_TIMER);
}

void cpu_idle(u64 now, u64 until)
{
	if (timer_fired) {
		timer_fired = 0;
		timer_at = NEVER;
	}
	// A timer that goes off too early costs less than setting it again and again.
	if (until != NEVER && (timer_at > until || timer_at < now)) {
		u64 us = min_u64(until - now, 200 * SECOND);
		u64 ticks = (us * timer_per_us >> 16) + 1;
		u32 count = (u32)min_u64(ticks, 0xffffffff);
		timer_at = until;
		if (x2apic) {
			__asm__ volatile("int3" ::"D"(CALL_ARM_AND_IDLE), "c"(0x800 + APIC_TIMER_START), "a"(count), "d"(0) : "memory");
			return;
		}
		apic_write(APIC_TIMER_START, count);
	}
	__asm__ volatile("int3" ::"D"(CALL_IDLE) : "memory");
}

// ---- the end ----

_Noreturn void cpu_stop(void)
{
	for (;;) {
		irq_pending = 0;
		__asm__ volatile("int3" ::"D"(CALL_IDLE) : "memory");
	}
}

// A guest that has lost its way starts again: everything acknowledged is in the journal.
static _Noreturn void restart(void)
{
	out8(0xcf9, 0x06);
	out8(0x64, 0xfe);
	cpu_stop();
}

_Noreturn void panic(const char *why)
{
	serial_write("ledger: panic: ");
	serial_write(why);
	serial_write("\n");
	restart();
}

_Noreturn __attribute__((used)) void trap_report(void)
{
	TEXT(t, 160);
	text_add(&t, "ledger: exception ");
	text_number(&t, trap_vector);
	text_add(&t, " error ");
	text_hex(&t, trap_error);
	text_add(&t, " at ");
	text_hex(&t, trap_rip);
	text_add(&t, " address ");
	text_hex(&t, trap_address);
	text_add(&t, "\n");
	serial_write(t.at);
	restart();
}

void machine_poweroff(void)
{
	// ACPI: SLP_EN with the SLP_TYP of S5 into PM1a control. Pollux's machine has S5 = 5, QEMU's q35 has 0.
	out16(0x604, 5 << 10 | 1 << 13);
	out16(0x604, 0 << 10 | 1 << 13);
	cpu_stop();
}
