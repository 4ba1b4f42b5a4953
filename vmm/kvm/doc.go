// Package kvm speaks to Linux's KVM: typed ioctls, one file a subject, no policy. Numbers and
// layouts are those of include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h; what each
// call does is written in the kernel's Documentation/virt/kvm/api.rst, cited by section here.
//
// Structures that Pollux only carries from one host to the other (registers, XSAVE area, LAPIC
// page, …) are byte arrays of the kernel's size: KVM checks them when they are set.
package kvm
