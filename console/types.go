// Package console is what people and their programs see of a cluster: HTTP and JSON under /api/v1 on
// the daemon's Unix socket, and over TLS for users with a token where api_address is set. The types here are the documented, stable form of everything that
// is asked and answered; the command line is one client of it among others.
package console

import (
	"fmt"
	"net/http"
	"time"

	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
)

// Code says what kind of error it was, for programs. Codes are stable.
type Code string

const (
	CodeInvalid           Code = "invalid"            // the request can't be understood or breaks a rule
	CodeNoSuchGuest       Code = "no_such_guest"      //
	CodeExists            Code = "exists"             // a guest of that name is there already
	CodeNoQuorum          Code = "no_quorum"          // no majority of the voters answers: nothing was changed
	CodeUnprotected       Code = "unprotected"        // it needs a protected guest, and this one is not
	CodeTimeout           Code = "timeout"            // it was asked for, and has not come about in time
	CodeUnknown           Code = "outcome_unknown"    // nobody can say yet whether the change was committed
	CodeNeedsConfirmation Code = "needs_confirmation" // dangerous, and not confirmed by the guest's name
	CodeRefused           Code = "refused"            // the state does not allow it; the message says why
	CodeUnauthorized      Code = "unauthorized"       // the token is missing, or not good
	CodeForbidden         Code = "forbidden"          // the user's role does not reach that far
	CodeTooMany           Code = "too_many_requests"  // later again; the header Retry-After says when
	CodeUnavailable       Code = "unavailable"        // the daemon, or the one that would have to act, can't be reached
	CodeFailed            Code = "failed"             // anything else
)

// HTTPStatus is the status that goes with a code.
func (c Code) HTTPStatus() int {
	switch c {
	case CodeInvalid:
		return http.StatusBadRequest
	case CodeNoSuchGuest:
		return http.StatusNotFound
	case CodeExists, CodeRefused, CodeUnprotected:
		return http.StatusConflict
	case CodeNeedsConfirmation:
		return http.StatusPreconditionRequired
	case CodeUnauthorized:
		return http.StatusUnauthorized
	case CodeForbidden:
		return http.StatusForbidden
	case CodeTooMany:
		return http.StatusTooManyRequests
	case CodeNoQuorum, CodeUnavailable:
		return http.StatusServiceUnavailable
	case CodeTimeout, CodeUnknown:
		return http.StatusGatewayTimeout
	}
	return http.StatusInternalServerError
}

// Error is every error of the API.
type Error struct {
	Code    Code   `json:"code"`
	Message string `json:"message"` // what happened and what to do about it, for people
	// retryAfter goes with CodeTooMany.
	retryAfter time.Duration
}

func (e *Error) Error() string { return e.Message }

// Is makes errors.Is(err, &Error{Code: c}) compare codes.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Errorf makes an Error.
func Errorf(code Code, format string, a ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, a...)}
}

// ClusterStatus is the answer to GET /api/v1/status.
type ClusterStatus struct {
	Host    string `json:"host"` // whose daemon answers
	Role    string `json:"role"` // "host" or "witness"
	Version string `json:"version"`
	Cluster string `json:"cluster"` // the cluster's id

	Leader    string `json:"leader"` // name; empty: none is known
	RaftTerm  uint64 `json:"raft_term"`
	RaftIndex uint64 `json:"raft_index"` // last applied here
	Quorum    Quorum `json:"quorum"`

	Members []Member `json:"members"`
	Guests  []Guest  `json:"guests"`
	// Alarms are the things that somebody should do something about.
	Alarms []string `json:"alarms"`
}

// Quorum is the health of the voters.
type Quorum struct {
	Voters    int `json:"voters"`
	Reachable int `json:"reachable"`
	Needed    int `json:"needed"`
	// Tolerates is how many further voters may fail before nothing can be decided any more.
	Tolerates int  `json:"tolerates"`
	Healthy   bool `json:"healthy"` // there is a leader and a majority
}

// Member is one machine of the cluster.
type Member struct {
	Name    string `json:"name"`
	Role    string `json:"role"`    // "host" or "witness"
	Address string `json:"address"` // of its control plane
	Voter   bool   `json:"voter"`
	Leader  bool   `json:"leader"`
	State   string `json:"state"` // "alive", "gone" or "left", as gossip has it; "unknown" when it was never seen
	Version string `json:"version,omitempty"`
	RaftID  string `json:"raft_id"`
	// CPU is what it can give to guests; missing for a witness.
	CPU *CPU `json:"cpu,omitempty"`
}

// Guest is a guest as the asked daemon knows it.
type Guest struct {
	Name    string       `json:"name"`
	Desired pact.Desired `json:"desired"`
	Mode    pact.Mode    `json:"mode"`
	Term    pact.Term    `json:"term"`
	// Primary and Replica are host names; empty: none.
	Primary string `json:"primary"`
	Replica string `json:"replica"`
	// CurrentDisk is the host whose disk copy is the current one.
	CurrentDisk string `json:"current_disk"`
	// State is one word for people and scripts: "stopped", "starting", "solo", "syncing", "protected",
	// "deciding", "switching", "stopping" or "lost" (its processes are gone and nobody may start it).
	State string `json:"state"`
	// Detail says what it waits for.
	Detail     string          `json:"detail,omitempty"`
	Spec       pact.Spec       `json:"spec"`
	Assignment pact.Assignment `json:"assignment"`
	// CPU is the processor that the guest sees; missing where it sees whatever its host has.
	CPU *CPU `json:"cpu,omitempty"`
	// Processes are the data-plane processes on all hosts that answered.
	Processes []Process `json:"processes"`
}

// Process is one data-plane process.
type Process struct {
	Host        string       `json:"host"`
	Incarnation string       `json:"incarnation"` // 16 hexadecimal digits
	PID         int          `json:"pid"`
	Address     string       `json:"address,omitempty"` // of its checkpoint stream
	Status      *link.Status `json:"status,omitempty"`  // nil: it has not said anything yet
}

// CreateRequest asks for a new guest: POST /api/v1/guests.
type CreateRequest struct {
	Name  string    `json:"name"`
	Spec  pact.Spec `json:"spec"`
	Start bool      `json:"start"` // start it at once
	// Operator is who says so, in this request as in the others. What a user says of himself here does not count:
	// it is his name then.
	Operator string `json:"operator,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

// StartRequest starts a guest: POST /api/v1/guests/{name}/start. It answers when the guest runs, or
// after WaitSeconds with CodeTimeout.
type StartRequest struct {
	// Host, with AcceptLoss, is the host whose disk copy is to be used.
	Host string `json:"host,omitempty"`
	// AcceptLoss orders a start from a disk copy that is not known to be current. It says in the
	// operator's words what loss is accepted, goes into the event log, and needs Confirm.
	AcceptLoss string `json:"accept_loss,omitempty"`
	// AcceptInconsistent extends AcceptLoss to a copy whose blocks are of different moments.
	AcceptInconsistent bool `json:"accept_inconsistent,omitempty"`
	// HostsOff are hosts of which the operator gives his word, or a fence agent has confirmed, that
	// they are powered off. Recorded; needed where such a host might still run the guest.
	HostsOff []string `json:"hosts_off,omitempty"`
	Confirm  string   `json:"confirm,omitempty"` // the guest's name, typed again
	Operator string   `json:"operator,omitempty"`
	Wait
	DryRun bool `json:"dry_run,omitempty"`
}

// StopRequest stops a guest: POST /api/v1/guests/{name}/stop: the power button, and force after a while.
type StopRequest struct {
	Force          bool    `json:"force,omitempty"`           // at once, as by pulling the plug
	TimeoutSeconds float64 `json:"timeout_seconds,omitempty"` // from the power button to force; 0: the daemon's default
	Operator       string  `json:"operator,omitempty"`
	Wait
	DryRun bool `json:"dry_run,omitempty"`
}

// DeleteRequest forgets a stopped guest: DELETE /api/v1/guests/{name}. Its disks are moved aside on
// each host, not erased.
type DeleteRequest struct {
	Confirm  string `json:"confirm"` // the guest's name, typed again
	Operator string `json:"operator,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

// SwitchoverRequest exchanges the roles: POST /api/v1/guests/{name}/switchover.
type SwitchoverRequest struct {
	Operator string `json:"operator,omitempty"`
	Wait
	DryRun bool `json:"dry_run,omitempty"`
}

// ProtectRequest asks for a (new) replica: POST /api/v1/guests/{name}/protect.
type ProtectRequest struct {
	Operator string `json:"operator,omitempty"`
	Wait
	DryRun bool `json:"dry_run,omitempty"`
}

// Wait says how long to wait for the outcome.
type Wait struct {
	// WaitSeconds bounds the wait; 0 means a default of the operation, below 0 no wait at all: the
	// answer then says what was ordered, not what has come about.
	WaitSeconds float64 `json:"wait_seconds,omitempty"`
}

// TokenRequest asks for a join token: POST /api/v1/tokens. Only a host that holds the CA's key can
// issue one.
type TokenRequest struct {
	Name         string  `json:"name"`                    // of the machine that will join
	Role         string  `json:"role"`                    // "host" or "witness"
	ValidSeconds float64 `json:"valid_seconds,omitempty"` // 0: an hour
	Operator     string  `json:"operator,omitempty"`
}

// Token lets one machine join, once.
type Token struct {
	Token   string    `json:"token"`
	Name    string    `json:"name"`
	Role    string    `json:"role"`
	Expires time.Time `json:"expires"`
}

// RemoveMemberRequest takes a machine out of the cluster: DELETE /api/v1/members/{name}.
type RemoveMemberRequest struct {
	Confirm string `json:"confirm"` // the member's name, typed again
	// Revoke takes it out whatever it runs, as one that was stolen: to its guests that is the loss of the host.
	Revoke   bool   `json:"revoke,omitempty"`
	Operator string `json:"operator,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

// Event is one line of a host's event log: GET /api/v1/events?limit=N&guest=NAME.
type Event struct {
	Time   time.Time      `json:"time"`
	Host   string         `json:"host"`
	Kind   string         `json:"kind"`
	Guest  string         `json:"guest,omitempty"`
	Term   pact.Term      `json:"term,omitempty"`
	Actor  string         `json:"actor,omitempty"`
	Detail map[string]any `json:"detail,omitempty"`
}
