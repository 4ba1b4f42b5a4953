// The bare machine: CPU, interrupts, time, ports.
#ifndef LEDGER_CPU_H
#define LEDGER_CPU_H

#include "../core/base.h"

// Vectors. Those below 32 are the CPU's own exceptions.
#define VECTOR_CALL 3
#define VECTOR_DEVICE 0x30
#define VECTOR_TIMER 0x31
#define VECTOR_SPURIOUS 0xff

static inline void out8(u16 port, u8 v) { __asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(port)); }
static inline void out16(u16 port, u16 v) { __asm__ volatile("outw %0, %1" ::"a"(v), "Nd"(port)); }
static inline void out32(u16 port, u32 v) { __asm__ volatile("outl %0, %1" ::"a"(v), "Nd"(port)); }
static inline u8 in8(u16 port)
{
	u8 v;
	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static inline u32 in32(u16 port)
{
	u32 v;
	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static inline u64 rdtsc(void)
{
	u32 low, high;
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (u64)high << 32 | low;
}
// Orders what another agent (the device) sees: a store before a following load.
static inline void fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

struct cpuid {
	u32 a, b, c, d;
};
struct cpuid cpuid(u32 leaf, u32 subleaf);
u64 msr_read(u32 msr);
void msr_write(u32 msr, u64 value);

void cpu_init(void);  // traps, then the local APIC
void clock_init(void);
void timer_init(void);
u32 apic_id(void);
// Sleeps until an interrupt, or about the given time. Clear irq_pending before the last look for work.
void cpu_idle(u64 now, u64 until);
extern volatile u8 irq_pending;

_Noreturn void cpu_stop(void);

void serial_init(bool quiet);
void serial_write(const char *s); // also when quiet

#endif
