package e2e

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cmd/pollux/demo"
	"github.com/pollux-ha/pollux/cmd/pollux/demo/lab"
)

// programVariable tells the test in its session which program the machines run.
const programVariable = "POLLUX_E2E_PROGRAM"

// session runs the test again in a lab session of its own, where clusters can be set up, and takes over
// its verdict. It returns true in that second run, which does the work.
func session(t *testing.T) bool {
	t.Helper()
	if lab.InSession() {
		lab.Program, lab.KeeperCommand = os.Getenv(programVariable), []string{"demo", "keeper"}
		return true
	}
	program(t) // or skip
	t.Setenv(programVariable, publicCopy(t))
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	var out bytes.Buffer
	code, err := lab.IsolateArgs(ctx, []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=3m"}, &out)
	t.Logf("\n%s", &out)
	if err != nil || code != 0 {
		t.Errorf("the session ended with %d: %v", code, err)
	}
	return false
}

// newStage sets up a cluster with a guest, for the time of the test.
func newStage(t *testing.T) *demo.Stage {
	t.Helper()
	stage, err := demo.NewStage(t.Context(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stage.Close(t.Failed()); err != nil {
			t.Log(err)
		}
	})
	return stage
}
