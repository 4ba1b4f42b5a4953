// Package history records what clients of a Redis server saw, and judges it afterwards: whether an
// acknowledged write was lost, a read was stale, something was applied twice, and whether the whole
// history is linearizable. It knows nothing of Pollux and speaks to any server that knows SET, GET,
// INCR and APPEND, so that its verdict doesn't rest on the thing that it judges.
//
// Two judges look at the same history. The detectors (detect.go) rest on values that are unique and
// on plain comparisons of times; they count and name what is wrong. The linearizability check
// (model.go) is porcupine's, with a sequential model of one key; it finds what the detectors don't
// think of, and says only yes or no.
package history
