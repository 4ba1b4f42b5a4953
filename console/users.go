package console

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/pollux-ha/pollux/cluster/access"
)

// User is one who may use the API with a token: GET /api/v1/users.
type User struct {
	Name    string      `json:"name"`
	Role    access.Role `json:"role"`
	Created time.Time   `json:"created"`
}

// AddUserRequest makes a user: POST /api/v1/users.
type AddUserRequest struct {
	Name     string      `json:"name"`
	Role     access.Role `json:"role"`
	Operator string      `json:"operator,omitempty"`
	DryRun   bool        `json:"dry_run,omitempty"`
}

// NewUser is a user with its token, which is told this once. With DryRun there is none.
type NewUser struct {
	User
	Token string `json:"token,omitempty"`
}

// RemoveUserRequest takes a user's token back: DELETE /api/v1/users/{name}.
type RemoveUserRequest struct {
	Operator string `json:"operator,omitempty"`
	DryRun   bool   `json:"dry_run,omitempty"`
}

func asUser(u access.User) User {
	return User{Name: u.Name, Role: u.Role, Created: time.Unix(u.CreatedUnix, 0).UTC()}
}

func (s *Server) users(*http.Request) (any, error) {
	all := []User{}
	for _, u := range s.d.Users() {
		all = append(all, asUser(u))
	}
	return all, nil
}

func (s *Server) addUser(r *http.Request) (any, error) {
	q, err := read[AddUserRequest](r)
	if err != nil {
		return nil, err
	}
	if !access.ValidName(q.Name) || !q.Role.Valid() {
		return nil, &Error{Code: CodeInvalid, Message: s.d.CheckAddUser(q.Name, q.Role).Error()}
	}
	if q.DryRun {
		return NewUser{User: User{Name: q.Name, Role: q.Role, Created: time.Now().UTC()}}, s.d.CheckAddUser(q.Name, q.Role)
	}
	token, u, err := s.d.AddUser(r.Context(), q.Name, q.Role, q.Operator)
	if err != nil {
		return nil, err
	}
	return NewUser{User: asUser(u), Token: token.String()}, nil
}

func (s *Server) removeUser(r *http.Request) (any, error) {
	q, err := read[RemoveUserRequest](r)
	if err != nil {
		return nil, err
	}
	name := r.PathValue("name")
	u, err := s.d.CheckRemoveUser(name)
	if err != nil {
		return nil, err
	}
	if q.DryRun {
		return asUser(u), nil
	}
	return asUser(u), s.d.RemoveUser(r.Context(), name, q.Operator)
}

// Users lists the users of the API, by name.
func (c *Client) Users(ctx context.Context) ([]User, error) {
	u, err := call[[]User](ctx, c, http.MethodGet, "/users", nil)
	if err != nil {
		return nil, err
	}
	return *u, nil
}

// AddUser makes a user. The answer holds the token.
func (c *Client) AddUser(ctx context.Context, r AddUserRequest) (*NewUser, error) {
	return call[NewUser](ctx, c, http.MethodPost, "/users", r)
}

// RemoveUser takes a user's token back.
func (c *Client) RemoveUser(ctx context.Context, name string, r RemoveUserRequest) (*User, error) {
	return call[User](ctx, c, http.MethodDelete, "/users/"+url.PathEscape(name), r)
}
