// The way in, and everything that runs at CPL 0. All else is C at CPL 3.
//
// Why so little here: on a software KVM (kvm-pvm) code at CPL 0 is interpreted by KVM's instruction
// emulator, at about 1 us an instruction and with instructions missing, while CPL 3 runs natively. On
// hardware KVM the split costs next to nothing. So CPL 0 has only what needs it: HLT, MSRs, CPUID (so
// that it is the VMM's word that counts), the end of interrupts. CPL 3 comes here by int3, the one way
// that works on every KVM; port I/O at CPL 3 is allowed by the TSS's bitmap (IOPL would not do on
// kvm-pvm), MMIO by the page tables.

// The Xen note that makes this a PVH kernel: 18 is XEN_ELFNOTE_PHYS32_ENTRY.
	.section .note.xen, "a", @note
	.align 4
	.long 4, 8, 18
	.asciz "Xen"
	.quad start

// ---- tables ----

#define PRESENT_WRITE_USER 0x67		// with accessed and dirty set: the CPU never writes to these pages
#define PAGE_2M (PRESENT_WRITE_USER | 0x80)
#define UNCACHED 0x18

#define CODE32 0x08
#define DATA 0x10
#define CODE64 0x18
#define USER_DATA (0x20 | 3)
#define USER_CODE (0x28 | 3)
#define TSS 0x30

	.section .tables, "aw"
	.align 4096
pml4:	.quad pdpt + PRESENT_WRITE_USER
	.fill 511, 8, 0
pdpt:	.set i, 0
	.rept 4
	.quad directory + i * 4096 + PRESENT_WRITE_USER
	.set i, i + 1
	.endr
	.fill 508, 8, 0
directory: // 4 GiB in pages of 2 MiB; devices live in the last GiB
	.set i, 0
	.rept 3 * 512
	.quad (i << 21) + PAGE_2M
	.set i, i + 1
	.endr
	.rept 512
	.quad (i << 21) + PAGE_2M + UNCACHED
	.set i, i + 1
	.endr

	.align 16
gdt:	.quad 0
	.quad 0x00cf9b000000ffff // CODE32
	.quad 0x00cf93000000ffff // DATA
	.quad 0x00af9b000000ffff // CODE64
	.quad 0x00cff3000000ffff // USER_DATA
	.quad 0x00affb000000ffff // USER_CODE
	.quad 0x0000890000002068 // TSS; its address is filled in below
	.quad 0
gdt_pointer:
	.word . - gdt - 1
	.long gdt
idt_pointer:
	.word 256 * 16 - 1
	.quad idt

	.align 128
tss:	.long 0
	.quad kernel_stack_top // RSP0
	.fill 0x66 - 12, 1, 0
	.word 0x68 // of the I/O bitmap
	.fill 8192, 1, 0 // all ports are allowed
	.byte 0xff

	.bss
	.align 16
	.skip 1024
kernel_stack_top:

// ---- start: 32-bit, paging off, EBX = struct hvm_start_info (Xen, docs/misc/pvh.pandoc) ----

	.text
	.code32
	.global start
start:
	cli
	movl %ebx, boot_info
	movl $tss, %eax
	movw %ax, gdt + TSS + 2
	shrl $16, %eax
	movb %al, gdt + TSS + 4
	movb %ah, gdt + TSS + 7
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
	movl $kernel_stack_top, %esp
	lidt idt_pointer // filled by main, before anything can arrive
	movl $TSS, %eax
	ltr %ax
	movl $USER_DATA, %eax
	movl %eax, %ds
	movl %eax, %es
	pushq $USER_DATA
	pushq $user_stack_top
	pushq $2
	pushq $USER_CODE
	pushq $bare_main
	iretq

// ---- int3: what CPL 3 may ask for; EDI says what ----
// 0 idle until an interrupt has come since irq_pending was cleared, 1 wrmsr and then idle, 2 wrmsr,
// 3 rdmsr, 4 cpuid. Interrupts are on at CPL 3 from the first call.

	.global trap_call
trap_call:
	orl $0x200, 16(%rsp) // IF
	cmpl $1, %edi
	ja 2f
	jb 1f
	wrmsr
1:	cmpb $0, irq_pending
	jne 9f
	sti // takes effect after hlt: an interrupt can't slip in between
	hlt
	jmp 1b
2:	cmpl $3, %edi
	ja 4f
	je 3f
	wrmsr
	jmp 9f
3:	rdmsr
	jmp 9f
4:	cpuid
9:	iretq

// ---- interrupts: note it, end it ----

	.macro interrupt name, flag
	.global \name\()_x2apic
\name\()_x2apic:
	pushq %rax
	pushq %rcx
	pushq %rdx
	movb $1, irq_pending
	.ifnb \flag
	movb $1, \flag
	.endif
	movl $0x80b, %ecx // EOI
	xorl %eax, %eax
	xorl %edx, %edx
	wrmsr
	popq %rdx
	popq %rcx
	popq %rax
	iretq

	.global \name\()_xapic
\name\()_xapic:
	pushq %rax
	movb $1, irq_pending
	.ifnb \flag
	movb $1, \flag
	.endif
	xorl %eax, %eax
	movabsl %eax, 0xfee000b0
	popq %rax
	iretq
	.endm

	interrupt irq_device
	interrupt irq_timer, timer_fired

	.global irq_spurious
irq_spurious:
	iretq

// ---- exceptions: none is expected. Report it from CPL 3, where the console can be reached. ----

	.macro exceptions
	.set vector, 0
	.rept 32
	.align 16
	.if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
	pushq $0
	.endif
	pushq $vector
	jmp exception
	.set vector, vector + 1
	.endr
	.endm

	.align 16
	.global exception_entries
exception_entries:
	exceptions

exception:
	popq trap_vector
	popq trap_error
	movq 0(%rsp), %rax
	movq %rax, trap_rip
	movq %cr2, %rax
	movq %rax, trap_address
	movq $user_stack_top, 24(%rsp)
	movq $trap_report, 0(%rsp)
	movq $USER_CODE, 8(%rsp)
	movq $2, 16(%rsp)
	movq $USER_DATA, 32(%rsp)
	iretq
