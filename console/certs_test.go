package console

import (
	"strings"
	"testing"
	"time"

	"github.com/pollux-ha/pollux/cluster/daemon"
	"github.com/pollux-ha/pollux/cluster/pki"
)

func TestCertificateAlarms(t *testing.T) {
	now := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)
	until := func(d time.Duration) pki.Expiry { return pki.Expiry{NotAfter: now.Add(d)} }
	good := daemon.Certificate{Expiry: until(2 * certificateWarning), CA: until(2 * caWarning)}
	soon := daemon.Certificate{Expiry: until(certificateWarning / 2), CA: until(2 * caWarning)}
	hosts := map[string]daemon.HostInfo{"a": {Certificate: &good}, "b": {Certificate: &good}, "old": {}}
	if alarms := certificateAlarms(hosts, good, now); len(alarms) != 0 {
		t.Errorf("%v", alarms)
	}
	hosts["b"] = daemon.HostInfo{Certificate: &soon}
	if alarms := certificateAlarms(hosts, good, now); len(alarms) != 1 || !strings.Contains(alarms[0], "of b expires on 2025-01-16") {
		t.Errorf("%v", alarms)
	}
	good.CA = until(caWarning / 2)
	if alarms := certificateAlarms(nil, good, now); len(alarms) != 1 || !strings.Contains(alarms[0], "CA expires on 2025-07-02") {
		t.Errorf("%v", alarms)
	}
}
