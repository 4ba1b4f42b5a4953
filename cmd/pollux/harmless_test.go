package main

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/pollux-ha/pollux/console"
)

// A guest's answer is shown to an operator, whose terminal must not obey it.
func TestAgentAnswerIsHarmless(t *testing.T) {
	said := "{\"name\": \"Größe \u009b2J\x7f\"}"
	var out bytes.Buffer
	writeAnswer(&out, &console.AgentAnswer{Answer: json.RawMessage(said)}, false)
	for _, r := range out.String() {
		if r != '\n' && (r < ' ' || r >= 0x7f && r < 0xa0) {
			t.Errorf("%q is shown", r)
		}
	}
	var got, want map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if json.Unmarshal([]byte(said), &want) != nil || got["name"] != want["name"] {
		t.Errorf("%q, want %q", got, want)
	}
}
