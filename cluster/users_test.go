package cluster

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cluster/access"
	"github.com/pollux-ha/pollux/console"
)

// A user is made at one member and known at all, over restarts; what he does is in the event log under his name,
// and his secret is nowhere.
func TestUsers(t *testing.T) {
	ctx := t.Context()
	a := newMachine(t, "a")
	if _, err := Init(a.cfg); err != nil {
		t.Fatal(err)
	}
	a.cfg.APIAddress = freeAddress(t)
	a.start()
	b := joinAs(t, a, "b", "host", func(m *machine) { m.cfg.APIAddress = freeAddress(t) })
	b.eventually("b has caught up", func() bool {
		s, err := b.client.Status(ctx)
		return err == nil && s.Leader != "" && len(s.Members) == 2
	})

	for name, bad := range map[string]console.AddUserRequest{
		"no role": {Name: "x"}, "a role that is none": {Name: "x", Role: "root"}, "no name": {Role: access.Viewer}, "a path": {Name: "../x", Role: access.Viewer},
	} {
		if _, err := a.client.AddUser(ctx, bad); !isCode(err, console.CodeInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	made := func(name string, role access.Role) string {
		t.Helper()
		u, err := a.client.AddUser(ctx, console.AddUserRequest{Name: name, Role: role, Operator: "root"})
		if err != nil || u.Token == "" {
			t.Fatalf("%+v %v", u, err)
		}
		return u.Token
	}
	if u, err := a.client.AddUser(ctx, console.AddUserRequest{Name: "ada", Role: access.Viewer, DryRun: true}); err != nil || u.Token != "" {
		t.Errorf("dry run: %+v %v", u, err)
	}
	admin, viewer := made("ada", access.Administrator), made("vera", access.Viewer)
	if _, err := a.client.AddUser(ctx, console.AddUserRequest{Name: "ada", Role: access.Viewer}); !isCode(err, console.CodeRefused) {
		t.Errorf("twice: %v", err)
	}

	as := func(m *machine, token string) *console.Client {
		t.Helper()
		c, err := console.NewUserClient(m.cfg.Name+"@"+m.cfg.APIAddress, token)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	b.eventually("b has caught up and knows both", func() bool {
		_, err := as(b, viewer).Status(ctx)
		return err == nil
	})
	ada := as(b, admin)
	if users, err := ada.Users(ctx); err != nil || len(users) != 2 || users[0].Name != "ada" || users[1].Role != access.Viewer {
		t.Errorf("%+v %v", users, err)
	}
	if _, err := as(a, viewer).Create(ctx, console.CreateRequest{Name: "g", Spec: spec()}); !isCode(err, console.CodeForbidden) {
		t.Errorf("a viewer makes a guest: %v", err)
	}

	// Every kind of change, by a user who says that he is somebody else. Whether it succeeds here does not matter:
	// what was ordered is in the log.
	did := map[string]func() error{
		"create": func() error {
			_, err := ada.Create(ctx, console.CreateRequest{Name: "g", Spec: spec(), Operator: "mallory"})
			return err
		},
		"start": func() error {
			_, err := ada.Start(ctx, "g", console.StartRequest{Operator: "mallory", Wait: console.Wait{WaitSeconds: limit.Seconds()}})
			return err
		},
		"stop": func() error {
			_, err := ada.Stop(ctx, "g", console.StopRequest{Force: true, Operator: "mallory", Wait: console.Wait{WaitSeconds: limit.Seconds()}})
			return err
		},
		"set-cpu": func() error {
			_, err := ada.SetCPU(ctx, "g", console.SetCPURequest{Operator: "mallory"})
			return err
		},
		"delete": func() error {
			_, err := ada.Delete(ctx, "g", console.DeleteRequest{Confirm: "g", Operator: "mallory"})
			return err
		},
		"add a user": func() error {
			_, err := ada.AddUser(ctx, console.AddUserRequest{Name: "bob", Role: access.Operator, Operator: "mallory"})
			return err
		},
		"remove a user": func() error {
			_, err := ada.RemoveUser(ctx, "bob", console.RemoveUserRequest{Operator: "mallory"})
			return err
		},
	}
	for _, what := range []string{"create", "start", "stop", "set-cpu", "delete", "add a user", "remove a user"} {
		if err := did[what](); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	events, err := as(b, admin).Events(ctx, 1000, "")
	if err != nil {
		t.Fatal(err)
	}
	for what := range did {
		if !slices.ContainsFunc(events, func(e console.Event) bool {
			return e.Kind == "operator-order" && e.Actor == "user:ada" && e.Detail["what"] == what
		}) {
			t.Errorf("%s is not in the event log under ada's name", what)
		}
	}
	for _, e := range events {
		if e.Actor == "mallory" {
			t.Errorf("the event log believes in mallory: %+v", e)
		}
	}
	a.eventually("the refusal of vera is in a's event log", func() bool {
		events, err := a.client.Events(ctx, 1000, "")
		return err == nil && slices.ContainsFunc(events, func(e console.Event) bool {
			return e.Kind == "access" && e.Actor == "user:vera" && strings.Contains(e.Detail["reason"].(string), "viewer")
		})
	})

	// A restart forgets nobody; who was removed stays so.
	if _, err := b.client.RemoveUser(ctx, "vera", console.RemoveUserRequest{Operator: "root"}); err != nil {
		t.Fatal(err)
	}
	a.stop()
	a.start()
	a.eventually("a knows ada again", func() bool {
		_, err := as(a, admin).Status(ctx)
		return err == nil
	})
	if _, err := as(a, viewer).Status(ctx); !isCode(err, console.CodeUnauthorized) {
		t.Errorf("a removed user: %v", err)
	}
	for _, m := range []*machine{a, b} {
		if err := filepath.WalkDir(m.cfg.StateDir, func(path string, e os.DirEntry, err error) error {
			if err == nil && !e.Type().IsRegular() {
				return nil
			}
			var content []byte
			if err == nil {
				content, err = os.ReadFile(path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil // files come and go
			}
			if err != nil {
				return err
			}
			if strings.Contains(string(content), admin[len(admin)-40:]) {
				t.Errorf("%s holds a token", path)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
}
