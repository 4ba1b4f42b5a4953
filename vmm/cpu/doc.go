// Package cpu computes what processor a guest sees. A Model is complete: from it alone, the vCPU's
// number and their count, follows every CPUID leaf, so that each start on each host shows the guest
// exactly the same processor. A Host is what one machine can give to guests; Common is the model that
// several hosts can run, and Host.Check says why a host can't run a model.
//
// The package is pure: CPUID leaves come in as data, models go out as data and text. It knows nothing
// of KVM's calls, and nothing of replication.
//
// Invariants. A guest is shown a feature only if this program knows it by name and carries its state in
// a checkpoint. Common is commutative, and its features are a subset of those of every host. A model's
// text says all of it: Parse gives back the same model.
package cpu
