// A guest that writes to as many pages as it is told, whenever it is told to, and does nothing else:
// what a checkpoint costs can be measured with exactly that many dirty pages. It runs at CPL 3, which
// every KVM runs natively, and spins while it waits, so that a pause finds it in the guest.
//
// The mailbox, eight bytes a field. The first two are the turn that is wanted, by the host, and the
// one that is done, by the guest.

#define MAILBOX 0x200000
#define TURN 0
#define DONE 8
#define FIRST 16	// address of the first page
#define STRIDE 24	// bytes from one page to the next
#define COUNT 32	// pages, at least 1
#define PLACES 40	// how many offsets in a page a write may begin at
#define LEAST 48	// words that a write changes, at least
#define RANGE 56	// and how many more there may be, plus 1

// The Xen note that makes this a PVH kernel: 18 is XEN_ELFNOTE_PHYS32_ENTRY.
	.section .note.xen, "a", @note
	.align 4
	.long 4, 8, 18
	.asciz "Xen"
	.quad start

#define PRESENT_WRITE_USER 0x67		// with accessed and dirty set: the CPU never writes to these pages
#define PAGE_2M (PRESENT_WRITE_USER | 0x80)
#define CODE64 0x08
#define DATA 0x10
#define USER_DATA (0x18 | 3)
#define USER_CODE (0x20 | 3)

	.data
	.align 4096
pml4:	.quad pdpt + PRESENT_WRITE_USER
	.fill 511, 8, 0
pdpt:	.quad directory + PRESENT_WRITE_USER
	.fill 511, 8, 0
directory: // 1 GiB in pages of 2 MiB
	.set i, 0
	.rept 512
	.quad (i << 21) + PAGE_2M
	.set i, i + 1
	.endr
gdt:	.quad 0
	.quad 0x00af9b000000ffff // CODE64
	.quad 0x00cf93000000ffff // DATA
	.quad 0x00cff3000000ffff // USER_DATA
	.quad 0x00affb000000ffff // USER_CODE
gdt_pointer:
	.word . - gdt - 1
	.long gdt
	.skip 256
stack_top:

	.text
	.code32
	.global start
start:
	cli
	lgdt gdt_pointer
	movl $0x20, %eax // PAE
	movl %eax, %cr4
	movl $pml4, %eax
	movl %eax, %cr3
	movl $0xc0000080, %ecx // EFER
	rdmsr
	orl $0x100, %eax // LME
	wrmsr
	movl $0x80010033, %eax // PG WP NE ET MP PE
	movl %eax, %cr0
	ljmp $CODE64, $start64

	.code64
start64:
	movl $DATA, %eax
	movl %eax, %ss
	movl $stack_top, %esp
	movl $USER_DATA, %eax
	movl %eax, %ds
	movl %eax, %es
	pushq $USER_DATA
	pushq $stack_top
	pushq $2
	pushq $USER_CODE
	pushq $user
	iretq

	.macro random // the next of Marsaglia's xorshift, in r9
	movq %r9, %rax
	shlq $13, %rax
	xorq %rax, %r9
	movq %r9, %rax
	shrq $7, %rax
	xorq %rax, %r9
	movq %r9, %rax
	shlq $17, %rax
	xorq %rax, %r9
	.endm

user:
	movl $MAILBOX, %ebx
	xorl %r8d, %r8d
	movabsq $0x9e3779b97f4a7c15, %r9
wait:
	movq TURN(%rbx), %rax
	cmpq %rax, %r8
	je wait
	movq %rax, %r8
	movq FIRST(%rbx), %rdi
	movq COUNT(%rbx), %rcx
page:
	random
	movq %r9, %rax
	xorl %edx, %edx
	divq PLACES(%rbx)
	leaq (%rdi,%rdx), %rsi
	movq %r9, %rax
	shrq $32, %rax
	xorl %edx, %edx
	divq RANGE(%rbx)
	movq %rdx, %r10
	addq LEAST(%rbx), %r10
word:
	random
	movq %r9, (%rsi)
	addq $8, %rsi
	decq %r10
	jnz word
	addq STRIDE(%rbx), %rdi
	decq %rcx
	jnz page
	movq %r8, DONE(%rbx)
	jmp wait
