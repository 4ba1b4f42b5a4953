package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/config"
	"github.com/pollux-ha/pollux/cluster/link"
	"github.com/pollux-ha/pollux/cluster/pact"
	"github.com/pollux-ha/pollux/fencing/agent"
)

// openDevice makes a device ready, with its secrets. They are read anew each time: a password may have changed.
func openDevice(c config.FenceDevice) (agent.Device, error) {
	var secrets map[string]string
	if c.SecretsFile != "" {
		var err error
		if secrets, err = agent.ReadSecrets(c.SecretsFile); err != nil {
			return agent.Device{}, err
		}
	}
	v := c.Device(secrets)
	return v, v.Check()
}

// configured is a device that reads its secrets when it is used.
type configured config.FenceDevice

func (c configured) Cut(ctx context.Context) error {
	v, err := openDevice(config.FenceDevice(c))
	if err != nil {
		return err
	}
	return v.Cut(ctx)
}

func (c configured) Cycle(ctx context.Context) (bool, error) {
	v, err := openDevice(config.FenceDevice(c))
	if err != nil {
		return false, err
	}
	return v.Cycle(ctx)
}

// newDevices are the configuration's. What is wrong with one is said now, while it is not needed yet.
func (d *Daemon) newDevices() map[string]fenceDevice {
	devices := map[string]fenceDevice{}
	for host, c := range d.cfg.Fencing.Hosts {
		if _, err := openDevice(c); err != nil {
			d.log.Error("a fence device can't be used", zap.String("host", host), zap.Error(err))
		}
		devices[host] = fenceDevice{configured(c), c.Action == config.FenceActionReboot}
	}
	return devices
}

// fenceReports are the last of each host.
type fenceReports struct {
	mu   sync.Mutex
	last map[string]FenceReport
}

func (r *fenceReports) note(v FenceReport) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = map[string]FenceReport{}
	}
	r.last[v.Host] = v
}

func (r *fenceReports) list() []FenceReport {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := []FenceReport{}
	for _, h := range slices.Sorted(maps.Keys(r.last)) {
		all = append(all, r.last[h])
	}
	return all
}

// holdouts asks the losers' own daemon.
func (d *Daemon) holdouts(ctx context.Context, host string, losers []loser) (string, error) {
	info, err := d.askHost(ctx, host, pollTimeout)
	if err != nil {
		return "", err
	}
	for _, p := range info.Processes {
		for _, l := range losers {
			if p.Party == l.party && (p.Status == nil || p.Status.Role == link.RolePrimary) {
				return fmt.Sprintf("%v still runs guest %s", l.party, l.guest), nil
			}
		}
	}
	return "", nil
}

func (d *Daemon) permit(ctx context.Context, host, reason string) (refused string, err error) {
	c := pact.Command{Kind: pact.KeepOut, ID: newID(), Out: pact.OutFencing, By: pact.Party{Host: d.name}, Other: pact.Party{Host: host}, Reason: reason}
	v, err := d.node.Propose(ctx, c)
	return v.Reason, err
}

func (d *Daemon) release(ctx context.Context, host string) error {
	c := pact.Command{Kind: pact.Readmit, ID: newID(), Out: pact.OutFencing, By: pact.Party{Host: d.name}, Other: pact.Party{Host: host}, Reason: "the fencing has ended"}
	_, err := d.node.Propose(ctx, c) // a refusal: an operator was faster
	return err
}

func (d *Daemon) fenced(host string, stage fenceStage, l loser, detail string) {
	d.reports.note(FenceReport{Host: host, Stage: string(stage), Guest: l.guest, Time: time.Now(), Detail: detail})
	d.log.Warn("fencing", zap.String("host", host), zap.String("stage", string(stage)), zap.String("guest", l.guest), zap.String("detail", detail))
	d.record(audit.Fence, l.guest, l.term, "daemon", map[string]any{"target": host, "agent": d.cfg.Fencing.Hosts[host].Agent, "stage": string(stage), "reason": detail})
}

// releaseLeftovers ends what an earlier daemon of this host has begun: whether its agent had come to its end nobody
// can say, and a host is not kept out for that.
func (d *Daemon) releaseLeftovers() {
	for !d.node.Current() {
		if !sleep(d.ctx, lookEvery) {
			return
		}
	}
	for _, o := range d.node.Out() {
		if o.Kind != pact.OutFencing || o.By != d.name || len(d.fencer.losers(o.Host)) > 0 {
			continue
		}
		d.record(audit.Fence, "", 0, "daemon", map[string]any{"target": o.Host, "stage": string(fenceFailed), "reason": "the daemon ended while it was fencing; whether the host was powered off is not known"})
		for d.release(d.ctx, o.Host) != nil && sleep(d.ctx, fencePoll) {
		}
	}
}

// FenceDeviceInfo is a fence device as people may see it.
type FenceDeviceInfo struct {
	Host   string `json:"host"`
	Agent  string `json:"agent"`
	Action string `json:"action"`
	// Power is "on" or "off"; missing where it was not asked, or Error says why there is no answer.
	Power string `json:"power,omitempty"`
	Error string `json:"error,omitempty"`
}

// FenceInfo is all of this host's fencing.
type FenceInfo struct {
	When     string            `json:"when"`
	Devices  []FenceDeviceInfo `json:"devices"`
	Reports  []FenceReport     `json:"reports"`
	KeptOut  []pact.Out        `json:"kept_out"` // in the whole cluster
	Watchdog WatchdogInfo      `json:"watchdog"`
}

// Fencing tells of this host's fencing, and of the hosts that are kept out.
func (d *Daemon) Fencing() FenceInfo {
	info := FenceInfo{When: string(d.cfg.Fencing.When), Devices: []FenceDeviceInfo{}, Reports: d.reports.list(), KeptOut: []pact.Out{}, Watchdog: d.dog.info()}
	for _, h := range slices.Sorted(maps.Keys(d.cfg.Fencing.Hosts)) {
		c := d.cfg.Fencing.Hosts[h]
		info.Devices = append(info.Devices, FenceDeviceInfo{Host: h, Agent: c.Agent, Action: c.Action})
	}
	info.KeptOut = append(info.KeptOut, d.node.Out()...)
	return info
}

// CheckFence says why a host's fence device can't be used by an operator. evenPrimary lets one power off a host
// that the cluster counts on.
func (d *Daemon) CheckFence(host string, off, evenPrimary bool) error {
	if _, ok := d.cfg.Fencing.Hosts[host]; !ok {
		return fmt.Errorf("%w: %s has no fence device for %q in its configuration (fencing.hosts)", ErrRefused, d.name, host)
	}
	if !off || evenPrimary {
		return nil
	}
	for _, a := range d.node.Guests() {
		if a.Runs() && a.Primary.Host == host && !a.IsGone(a.Primary) {
			return fmt.Errorf("%w: %s is the primary of guest %s; switch it over first, or order it with --even-primary", ErrRefused, host, a.Guest)
		}
	}
	return nil
}

// TestFence asks a host's fence device for its state, and with off powers the host off first, which is confirmed or
// an error.
func (d *Daemon) TestFence(ctx context.Context, host string, off, evenPrimary bool, operator string) (FenceDeviceInfo, error) {
	c := d.cfg.Fencing.Hosts[host]
	info := FenceDeviceInfo{Host: host, Agent: c.Agent, Action: c.Action}
	if err := d.CheckFence(host, off, evenPrimary); err != nil {
		return info, err
	}
	v, err := openDevice(c)
	if err == nil && off {
		err = d.cut(ctx, host, v, evenPrimary, operator)
	}
	var power agent.Power
	if err == nil {
		power, err = v.Status(ctx)
	}
	info.Power = string(power)
	if err != nil {
		info.Error = err.Error()
		if off {
			return info, err
		}
	}
	return info, nil
}

// cut powers a host off by an operator's order.
func (d *Daemon) cut(ctx context.Context, host string, v agent.Device, evenPrimary bool, operator string) error {
	if err := d.operate(ctx, operator, "", "power off a host", map[string]any{"target": host, "agent": v.Path, "even_primary": evenPrimary}); err != nil {
		return err
	}
	if !evenPrimary {
		refused, err := d.permit(ctx, host, "an operator's order")
		if err == nil && refused != "" {
			err = fmt.Errorf("%w: %s", ErrRefused, refused)
		}
		if err != nil {
			return err
		}
		defer func() {
			ctx, cancel := context.WithTimeout(d.ctx, time.Minute)
			defer cancel()
			for d.release(ctx, host) != nil && sleep(ctx, fencePoll) {
			}
		}()
	}
	d.fenced(host, fenceShooting, loser{}, "by order of "+orOperator(operator))
	err := v.Cut(ctx)
	if err != nil {
		d.fenced(host, fenceFailed, loser{}, err.Error())
		return err
	}
	d.fenced(host, fenceDone, loser{}, "by order of "+orOperator(operator))
	return nil
}

// wordOnPower is what goes into the log beside an operator's word that a host is off. Where a fence agent can be
// asked it is, and one that says that the host is on outweighs the word.
func (d *Daemon) wordOnPower(ctx context.Context, host string) (string, error) {
	word := "the operator's word: " + host + " is off"
	if _, ok := d.cfg.Fencing.Hosts[host]; !ok {
		return word, nil
	}
	info, err := d.TestFence(ctx, host, false, false, "")
	switch {
	case err != nil:
		return "", err
	case info.Error != "":
		return word + "; the fence agent could not confirm it: " + info.Error, nil
	case info.Power != string(agent.PowerOff):
		return "", fmt.Errorf("%w: the fence agent says that %s is on; power it off first: pollux fence test %s --off", ErrRefused, host, host)
	}
	return "confirmed by the fence agent: " + host + " is off", nil
}
