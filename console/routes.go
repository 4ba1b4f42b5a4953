package console

import (
	"net/http"

	"github.com/pollux-ha/pollux/cluster/access"
)

// endpoint is one thing that can be asked.
type endpoint struct {
	pattern string
	// allow are the roles whose users may ask it. Who comes through the Unix socket may ask everything.
	allow []access.Role
	// open lets anybody ask, without a token.
	open   bool
	answer func(*http.Request) (any, error)
}

var (
	everyUser = access.Roles
	readers   = []access.Role{access.Auditor, access.Operator, access.Administrator} // of the event log
	operators = []access.Role{access.Operator, access.Administrator}
	admins    = []access.Role{access.Administrator}
	overseers = []access.Role{access.Auditor, access.Administrator}
)

// endpoints are all of them. An endpoint that names no role is for the Unix socket alone, and a test fails.
//
// What makes or ends guests, or names files of a host, is an administrator's: the daemon opens them as root.
func (s *Server) endpoints() []endpoint {
	return []endpoint{
		{pattern: "GET /api/v1/status", allow: everyUser, answer: s.status},
		{pattern: "GET /api/v1/guests", allow: everyUser, answer: s.guests},
		{pattern: "POST /api/v1/guests", allow: admins, answer: s.create},
		{pattern: "GET /api/v1/guests/{name}", allow: everyUser, answer: s.guest},
		{pattern: "DELETE /api/v1/guests/{name}", allow: admins, answer: s.delete},
		{pattern: "POST /api/v1/guests/{name}/start", allow: operators, answer: s.start},
		{pattern: "POST /api/v1/guests/{name}/stop", allow: operators, answer: s.stop},
		{pattern: "POST /api/v1/guests/{name}/switchover", allow: operators, answer: s.switchover},
		{pattern: "POST /api/v1/guests/{name}/protect", allow: operators, answer: s.protect},
		{pattern: "POST /api/v1/guests/{name}/reset", allow: operators, answer: s.reset},
		{pattern: "POST /api/v1/guests/{name}/dump", allow: admins, answer: s.dump},
		{pattern: "POST /api/v1/guests/{name}/fault", allow: admins, answer: s.fault},
		{pattern: "POST /api/v1/guests/{name}/agent", allow: operators, answer: s.agent},
		{pattern: "POST /api/v1/guests/{name}/balloon", allow: operators, answer: s.balloon},
		{pattern: "POST /api/v1/guests/{name}/cpu", allow: admins, answer: s.setCPU},
		{pattern: "POST /api/v1/tokens", allow: admins, answer: s.token},
		{pattern: "DELETE /api/v1/members/{name}", allow: admins, answer: s.removeMember},
		{pattern: "POST /api/v1/members/{name}/reset", allow: operators, answer: s.resetMember},
		{pattern: "GET /api/v1/fence", allow: everyUser, answer: s.fencing},
		{pattern: "POST /api/v1/fence/test", allow: admins, answer: s.testFence},
		{pattern: "GET /api/v1/events", allow: readers, answer: s.events},
		{pattern: "GET /api/v1/certificates", allow: everyUser, answer: s.certificates},
		{pattern: "POST /api/v1/certificates/renew", allow: admins, answer: s.renew},
		{pattern: "GET /api/v1/users", allow: overseers, answer: s.users},
		{pattern: "POST /api/v1/users", allow: admins, answer: s.addUser},
		{pattern: "DELETE /api/v1/users/{name}", allow: admins, answer: s.removeUser},
		{pattern: "GET /livez", open: true, answer: s.live},
		{pattern: "GET /readyz", allow: everyUser, answer: s.ready},
		{pattern: "/", allow: everyUser, answer: s.nothing},
	}
}

func (s *Server) handler(endpoints []endpoint) http.Handler {
	mux := http.NewServeMux()
	for _, e := range endpoints {
		mux.HandleFunc(e.pattern, func(w http.ResponseWriter, r *http.Request) { s.answer(w, r, e) })
	}
	return mux
}

func (s *Server) live(*http.Request) (any, error) { return map[string]bool{"live": true}, nil }

func (s *Server) nothing(r *http.Request) (any, error) {
	return nil, Errorf(CodeInvalid, "there is no %s %s", r.Method, r.URL.Path)
}
