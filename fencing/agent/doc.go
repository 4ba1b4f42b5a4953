// Package agent runs the standard fence agents: programs that switch a machine's power by way of its management
// controller, a power strip or a hypervisor (Debian: the package fence-agents, fence_ipmilan(8) and its like).
//
// The agents' interface, as ClusterLabs' FenceAgentAPI.md has it and Debian's agents keep it: parameters come as
// lines "key=value" on standard input, "action" among them; exit code 0 is success, anything else is not;
// for the action "status" 0 means on and 2 means off.
//
// Invariants. A timeout is a failure, never a success. A machine counts as off only where the agent has said so in
// answer to "status" after the order, in word and in exit code: 2 is also what an interpreter that does not find
// its program leaves behind. No parameter's value is ever part of an error or of a log line.
package agent
