package main

import (
	"strings"
	"testing"
)

func TestYAML(t *testing.T) {
	v := struct {
		Name   string            `json:"name"`
		Term   int               `json:"term"`
		Odd    []string          `json:"odd"`
		None   []int             `json:"none"`
		Empty  map[string]int    `json:"empty"`
		Nested map[string]string `json:"nested"`
		Items  []map[string]any  `json:"items"`
		Deep   [][]int           `json:"deep"`
	}{
		Name: "ledger", Term: 7, Odd: []string{"yes", "007", "a: b", "", "- x", "#", "line\nbreak", "n"}, None: []int{}, Empty: map[string]int{},
		Nested: map[string]string{"x": "plain words"},
		Items:  []map[string]any{{"a": 1, "b": []int{2, 3}}, {"c": nil}},
		Deep:   [][]int{{1, 2}, {3}},
	}
	want := `name: ledger
term: 7
odd:
  - "yes"
  - "007"
  - "a: b"
  - ""
  - "- x"
  - "#"
  - "line\nbreak"
  - "n"
none: []
empty: {}
nested:
  x: plain words
items:
  - a: 1
    b:
      - 2
      - 3
  - c: null
deep:
  - - 1
    - 2
  - - 3
`
	var b strings.Builder
	if err := writeYAML(&b, v); err != nil {
		t.Fatal(err)
	}
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestParseBytes(t *testing.T) {
	for s, want := range map[string]uint64{"0": 0, "4096": 4096, "64K": 64 << 10, "256M": 256 << 20, "1G": 1 << 30, "1GiB": 1 << 30, "2gb": 2 << 30, "1T": 1 << 40} {
		if got, err := parseBytes(s); err != nil || got != want {
			t.Errorf("%s: %d, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "M", "-1", "1.5G", "1X", "99999999999999T", "1MM", "1 G"} {
		if n, err := parseBytes(s); err == nil {
			t.Errorf("%q was taken for %d", s, n)
		}
	}
}
