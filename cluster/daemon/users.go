package daemon

import (
	"context"
	"fmt"
	"time"

	"github.com/pollux-ha/pollux/audit"
	"github.com/pollux-ha/pollux/cluster/access"
	"github.com/pollux-ha/pollux/cluster/consensus"
)

// Users are those who may use the API from outside, by name.
func (d *Daemon) Users() []access.User { return d.node.Users() }

// Who finds the user that a token belongs to, as far as this member knows; access.ErrToken: nobody. One that has
// not caught up since its start can't tell: a user may have been removed meanwhile.
func (d *Daemon) Who(token string) (access.User, error) {
	t, err := access.ParseToken(token)
	if err != nil {
		return access.User{}, err
	}
	if !d.node.Current() {
		return access.User{}, fmt.Errorf("%w: this daemon has not heard from the cluster since its start and does not know the users", consensus.ErrNoQuorum)
	}
	u, ok := d.node.Who(t)
	if !ok {
		return u, access.ErrToken
	}
	return u, nil
}

// CheckAddUser says why a user can't be made.
func (d *Daemon) CheckAddUser(name string, role access.Role) error {
	if !access.ValidName(name) {
		return fmt.Errorf("%w: %q can't be a user's name: lower-case letters, digits, dots, hyphens and underscores, at most 63", ErrRefused, name)
	}
	if !role.Valid() {
		return fmt.Errorf("%w: there is no role %q; there are %v", ErrRefused, role, access.Roles)
	}
	if u, ok := d.user(name); ok {
		return fmt.Errorf("%w: there is a user %q already (%s); remove it first", ErrRefused, name, u.Role)
	}
	return nil
}

func (d *Daemon) user(name string) (access.User, bool) {
	for _, u := range d.node.Users() {
		if u.Name == name {
			return u, true
		}
	}
	return access.User{}, false
}

// AddUser makes a user of the API. The token is in no other place: whoever loses it has the user removed and
// made again.
func (d *Daemon) AddUser(ctx context.Context, name string, role access.Role, operator string) (access.Token, access.User, error) {
	if err := d.CheckAddUser(name, role); err != nil {
		return access.Token{}, access.User{}, err
	}
	token, u := access.NewToken(d.id.CAFingerprint(), name, role, time.Now().Unix())
	if err := d.operate(ctx, operator, "", "add a user", map[string]any{"name": name, "role": string(role)}); err != nil {
		return access.Token{}, access.User{}, err
	}
	return token, u, d.changeAccess(ctx, access.Change{Add: &u, Operator: orOperator(operator)})
}

// CheckRemoveUser says why a user can't be removed.
func (d *Daemon) CheckRemoveUser(name string) (access.User, error) {
	u, ok := d.user(name)
	if !ok {
		return u, fmt.Errorf("%w: there is no user %q", ErrRefused, name)
	}
	return u, nil
}

// RemoveUser takes a user's token back. From when it returns no request with it is begun at this member; at the
// others, as soon as they apply it.
func (d *Daemon) RemoveUser(ctx context.Context, name, operator string) error {
	u, err := d.CheckRemoveUser(name)
	if err != nil {
		return err
	}
	if err := d.operate(ctx, operator, "", "remove a user", map[string]any{"name": name, "role": string(u.Role)}); err != nil {
		return err
	}
	return d.changeAccess(ctx, access.Change{Remove: &u, Operator: orOperator(operator)})
}

func (d *Daemon) changeAccess(ctx context.Context, c access.Change) error {
	v, err := d.node.ChangeAccess(ctx, c)
	if err != nil {
		return err
	}
	if err := d.node.WaitApplied(ctx, v.Index); err != nil {
		return fmt.Errorf("%w: it is committed, and not applied here yet: %w", ErrTimeout, err)
	}
	if !v.Applied {
		return fmt.Errorf("%w: %s", ErrRefused, v.Reason)
	}
	return nil
}

// RecordAccess notes that somebody was turned away. Nothing waits for it.
func (d *Daemon) RecordAccess(actor string, detail map[string]any) {
	d.record(audit.Access, "", 0, actor, detail)
}
