package agent

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Cut switches the machine off, and returns nil only once the agent has confirmed that it is. A failure of the
// order itself is none where the machine turns out to be off.
func (d Device) Cut(ctx context.Context) error { return d.bring(ctx, Off, PowerOff) }

// Raise switches the machine on, and returns nil once the agent has confirmed it.
func (d Device) Raise(ctx context.Context) error { return d.bring(ctx, On, PowerOn) }

// Cycle switches the machine off and on again. off says that it was confirmed to be off in between, which is what
// counts; err is then why it is not on again. An agent's own "reboot" is not used: afterwards nobody could tell a
// machine that was off from one that never was.
func (d Device) Cycle(ctx context.Context) (off bool, err error) {
	if err := d.Cut(ctx); err != nil {
		return false, err
	}
	return true, d.Raise(ctx)
}

// bring gives an order until the state is the wanted one, at most 1+Retries times.
func (d Device) bring(ctx context.Context, a Action, want Power) error {
	var errs []error
	for try := 0; try <= d.Retries; try++ {
		if try > 0 && !wait(ctx, d.Poll) {
			break
		}
		_, err := d.do(ctx, a)
		if err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			break
		}
		// After an order that was taken the machine may need some seconds to go; after one that was not it has
		// no reason to.
		is, asked := d.becomes(ctx, want, err == nil)
		if is {
			return nil
		}
		errs = append(errs, asked)
		if ctx.Err() != nil {
			break
		}
	}
	if err := ctx.Err(); err != nil && len(errs) == 0 {
		errs = append(errs, err)
	}
	return fmt.Errorf("%w to be %s: %w", ErrNotVerified, want, errors.Join(errs...))
}

// becomes asks for the state: once, or, with patience, until it is the wanted one, for as long as one run of the
// agent may take.
func (d Device) becomes(ctx context.Context, want Power, patience bool) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	for {
		is, err := d.Status(ctx)
		switch {
		case err == nil && is == want:
			return true, nil
		case err == nil:
			err = fmt.Errorf("the machine is %s", is)
		case !errors.Is(err, ErrTimeout):
			return false, err // it will not say more when it is asked again at once
		}
		if !patience || !wait(ctx, d.Poll) {
			return false, err
		}
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
