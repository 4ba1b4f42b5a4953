package demo

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/pollux-ha/pollux/tests/history"
)

// Result is what a demo found. Its JSON form is documented and stable.
type Result struct {
	Fault  Fault  `json:"fault,omitempty"`
	During During `json:"during,omitempty"`
	Victim Victim `json:"victim,omitempty"`
	Twice  bool   `json:"twice,omitempty"`
	Load   bool   `json:"load"`
	Seed   uint64 `json:"seed"`
	Rounds int    `json:"rounds"` // that were played to their end

	LostWrites   int                     `json:"lost_acknowledged_writes"`
	Resets       int                     `json:"tcp_resets"` // connections of the checking clients that ended without their wish
	StaleReads   int                     `json:"stale_reads"`
	CorruptReads int                     `json:"corrupt_reads"`
	Duplicated   int                     `json:"duplicated_writes"`
	ServerErrors int                     `json:"server_errors"` // error replies to valid requests
	Linearizable history.Linearizability `json:"linearizable"`
	Stuck        bool                    `json:"stuck"`    // a request was still without a reply at the end
	Verified     bool                    `json:"verified"` // every key was read again at the end

	// TakeoverMs*: from the fault to the first reply after it, over the faults that hit the primary.
	TakeoverMsP50 float64 `json:"takeover_ms_p50"`
	TakeoverMsMax float64 `json:"takeover_ms_max"`
	// Elections counts the faults that hit the primary and Raft's leader at once: there the takeover
	// had to wait for an election.
	Elections int `json:"elections"`
	// ClientGapMsMax is the longest time between two replies on one connection, in the whole run.
	ClientGapMsMax float64 `json:"client_gap_ms_max"`
	ProtectedAgain bool    `json:"protected_again"` // after every fault
	// SwitchoverGapMs is the longest gap that a client saw around the story's switchover.
	SwitchoverGapMs float64 `json:"switchover_gap_ms,omitempty"`

	// EventLogsWhole: the hash chains of all machines' event logs hold.
	EventLogsWhole bool `json:"event_logs_whole"`

	Operations   int    `json:"operations"`
	Acknowledged int    `json:"acknowledged_writes"`
	Epochs       uint64 `json:"epochs"`
	WireBytes    uint64 `json:"wire_bytes"`
	DirtyBytes   uint64 `json:"dirty_bytes"`

	LoadFailure string   `json:"load_failure,omitempty"` // how redis-benchmark failed
	Findings    []string `json:"findings,omitempty"`     // of the checkers, and lost connections
	Error       string   `json:"error,omitempty"`        // what ended the run early

	Strikes []Strike `json:"strikes"`

	// Latencies of the checking clients' requests, in milliseconds.
	ProtectedP50Ms float64 `json:"protected_reply_ms_p50,omitempty"`
	SoloP50Ms      float64 `json:"solo_reply_ms_p50,omitempty"`
}

// Strike is one fault and what became of it. Milliseconds are from the fault unless they say otherwise.
type Strike struct {
	Round int   `json:"round"`
	Fault Fault `json:"fault"`
	// Variant says how exactly: whether a cut cable keeps its carrier.
	Variant string `json:"variant,omitempty"`
	// State is the guest's at the moment of the fault, as the API had it: protected, syncing, switching.
	State         string `json:"state"`
	Victim        Victim `json:"victim"`
	Host          string `json:"host"` // that was hit
	HitPrimary    bool   `json:"hit_primary"`
	PrimaryBefore string `json:"primary_before"`
	PrimaryAfter  string `json:"primary_after"`
	TermBefore    uint64 `json:"term_before"`
	TermAfter     uint64 `json:"term_after"`
	RaftLeader    string `json:"raft_leader,omitempty"` // before the fault

	// FaultMs is how long it took to do the harm.
	FaultMs float64 `json:"fault_ms"`
	// TakeoverMs: the first reply that a client got after the service had stopped; it ends the longest
	// silence since the fault.
	TakeoverMs float64 `json:"takeover_ms"`
	// NewRequestMs: the first reply to a request that was sent when the harm was done.
	NewRequestMs float64 `json:"new_request_ms"`
	// SeenMs: the API told of the outcome.
	SeenMs float64 `json:"seen_ms"`
	// GapMs is the longest time between two replies on one connection, from the fault until the guest
	// was protected again.
	GapMs float64 `json:"client_gap_ms"`
	// GapAtMs is when that gap began.
	GapAtMs float64 `json:"client_gap_at_ms"`
	// ProtectedAgainMs is from the repair until the guest was protected again.
	ProtectedAgainMs float64 `json:"protected_again_ms"`
	ProtectedAgain   bool    `json:"protected_again"`

	// PhasesUs is what the new primary says of the takeover, in microseconds: detect, decide, activate,
	// announce.
	PhasesUs map[string]float64 `json:"phases_us,omitempty"`
	Error    string             `json:"error,omitempty"`
}

// Good reports that nothing was lost, reset, stale or out of order, and that the guest was
// protected again every time.
func (r *Result) Good() bool {
	return r.LostWrites == 0 && r.Resets == 0 && r.StaleReads == 0 && r.CorruptReads == 0 && r.Duplicated == 0 &&
		r.ServerErrors == 0 && r.Linearizable == history.Linearizable && r.Verified && !r.Stuck && r.ProtectedAgain &&
		r.EventLogsWhole && r.LoadFailure == "" && r.Error == ""
}

// judge fills in what the checkers say.
func (r *Result) judge(w *history.Workload, report history.Report) {
	r.LostWrites, r.StaleReads, r.CorruptReads, r.Duplicated = report.LostWrites, report.StaleReads, report.CorruptReads, report.Duplicated
	r.Linearizable, r.Operations, r.Acknowledged = report.Linearizable, report.Operations, report.Acknowledged
	r.Resets, r.ServerErrors = w.Resets(), w.ServerErrors()
	r.Findings = append(append(r.Findings, report.Findings...), w.Failures()...)
}

// summarize fills in what follows from the strikes.
func (r *Result) summarize() {
	var takeovers []float64
	r.ProtectedAgain = len(r.Strikes) > 0
	for _, s := range r.Strikes {
		if s.HitPrimary && s.TakeoverMs > 0 && s.Fault != Daemon {
			takeovers = append(takeovers, s.TakeoverMs)
			if s.RaftLeader == s.Host && s.Fault != Kill && s.Fault != Link {
				r.Elections++
			}
		}
		r.ProtectedAgain = r.ProtectedAgain && s.ProtectedAgain
	}
	slices.Sort(takeovers)
	if n := len(takeovers); n > 0 {
		r.TakeoverMsP50, r.TakeoverMsMax = takeovers[n/2], takeovers[n-1]
	}
}

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

// WriteText writes the result for people.
func (r *Result) WriteText(w io.Writer) {
	line := func(what, format string, a ...any) {
		fmt.Fprintf(w, "  %-34s %s\n", what, fmt.Sprintf(format, a...))
	}
	fmt.Fprintln(w)
	line("acknowledged writes", "%d, in %d requests", r.Acknowledged, r.Operations)
	line("acknowledged writes lost", "%d", r.LostWrites)
	line("TCP connections reset", "%d", r.Resets)
	line("stale reads", "%d", r.StaleReads)
	if r.CorruptReads+r.Duplicated+r.ServerErrors > 0 {
		line("corrupt reads, doubled writes, errors", "%d, %d, %d", r.CorruptReads, r.Duplicated, r.ServerErrors)
	}
	line("history linearizable", "%s", r.Linearizable)
	if r.TakeoverMsMax > 0 {
		if len(r.Strikes) == 1 {
			line("takeover: first reply after", "%.1f ms", r.TakeoverMsMax)
		} else {
			line("takeover: first reply after", "%.1f ms (p50), %.1f ms (max)", r.TakeoverMsP50, r.TakeoverMsMax)
		}
	}
	if r.Elections > 0 {
		line("of these with an election", "%d", r.Elections)
	}
	if r.SwitchoverGapMs > 0 {
		line("planned switchover: longest gap", "%.1f ms", r.SwitchoverGapMs)
	}
	line("longest gap that a client saw", "%.1f ms", r.ClientGapMsMax)
	if r.ProtectedP50Ms > 0 && r.SoloP50Ms > 0 {
		line("reply time (p50)", "%.2f ms protected, %.2f ms solo", r.ProtectedP50Ms, r.SoloP50Ms)
	}
	line("epochs", "%d", r.Epochs)
	wire := fmt.Sprintf("%.1f MB", float64(r.WireBytes)/1e6)
	if r.DirtyBytes > 0 {
		wire += fmt.Sprintf(" for %.1f MB of dirtied pages", float64(r.DirtyBytes)/1e6)
	}
	line("sent to the twin", "%s", wire)
	yes := map[bool]string{true: "yes", false: "NO"}
	line("protected again", "%s", yes[r.ProtectedAgain])
	line("event logs whole", "%s", yes[r.EventLogsWhole])
	if r.Fault != "" {
		line("rounds", "%d of %s, seed %d", r.Rounds, r.Fault, r.Seed)
	}
	if r.Stuck {
		fmt.Fprintln(w, "  STUCK: a request was still without a reply at the end")
	}
	for _, f := range r.Findings {
		fmt.Fprintln(w, "  FOUND:", f)
	}
	if r.LoadFailure != "" {
		fmt.Fprintln(w, "  THE LOAD FAILED:", r.LoadFailure)
	}
	if r.Error != "" {
		fmt.Fprintln(w, "  STOPPED EARLY:", strings.ReplaceAll(r.Error, "\n", "\n    "))
	}
}
