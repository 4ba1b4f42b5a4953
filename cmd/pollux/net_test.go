package main

import (
	"strings"
	"testing"

	"github.com/pollux-ha/pollux/cluster/pact"
)

func TestParseNet(t *testing.T) {
	for text, want := range map[string]pact.NetSpec{
		"bridge=lan,mac=02:00:00:12:34:56":                      {MAC: "02:00:00:12:34:56", Bridge: "lan"},
		"bridge=lan,mac=02:00:00:12:34:56,queues=2,mtu=9000":    {MAC: "02:00:00:12:34:56", Bridge: "lan", Queues: 2, MTU: 9000},
		"uso,queues=16,mtu=1280,bridge=b,mac=02:00:00:12:34:56": {MAC: "02:00:00:12:34:56", Bridge: "b", Queues: 16, MTU: 1280, USO: true},
		"bridge=lan,queues=1,mac=02-00-00-12-34-56":             {MAC: "02:00:00:12:34:56", Bridge: "lan", Queues: 1},
		"bridge=lan,mac=02:00:00:12:34:56,mtu=65521":            {MAC: "02:00:00:12:34:56", Bridge: "lan", MTU: pact.MaxMTU},
	} {
		if got, err := parseNet(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"mac=02:00:00:12:34:56":            "bridge=NAME",
		"bridge=lan,queues=0":              "queues=0: between 1 and 16",
		"bridge=lan,queues=17":             "queues=17: between 1 and 16",
		"bridge=lan,queues=two":            "queues=two",
		"bridge=lan,mtu=1279":              "mtu=1279: between 1280 and 65521",
		"bridge=lan,mtu=":                  "mtu=",
		"bridge=lan,offloads=no":           "unknown",
		"bridge=lan,mac=03:00:00:12:34:56": "unicast",
	} {
		if _, err := parseNet(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, expected %q", text, err, want)
		}
	}
}
