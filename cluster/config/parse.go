package config

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Parse reads a configuration. Its errors name the line.
func Parse(b []byte) (*Config, error) {
	d := toml.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	var c Config
	if err := d.Decode(&c); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, explain(err))
	}
	c = c.WithDefaults()
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &c, nil
}

func explain(err error) error {
	var strict *toml.StrictMissingError
	if errors.As(err, &strict) {
		var errs []error
		for i := range strict.Errors {
			e := &strict.Errors[i]
			line, _ := e.Position()
			key := e.Key()
			table := key[:max(len(key)-1, 0)]
			where := "at the top"
			if len(table) > 0 {
				where = "in [" + strings.Join(table, ".") + "]"
			}
			errs = append(errs, fmt.Errorf("line %d: unknown key %q; allowed %s: %s", line, strings.Join(key, "."), where, strings.Join(allowed(table), ", ")))
		}
		return errors.Join(errs...)
	}
	var de *toml.DecodeError
	if errors.As(err, &de) {
		line, column := de.Position()
		return fmt.Errorf("line %d, column %d: key %q: %w", line, column, strings.Join(de.Key(), "."), err)
	}
	return err
}

// allowed lists the keys of a table, from the struct that it is read into.
func allowed(table []string) []string {
	t := reflect.TypeFor[Config]()
	for _, key := range table {
		if t.Kind() == reflect.Map {
			t = t.Elem() // the key is a name
			continue
		}
		next, ok := field(t, key)
		if !ok || next.Kind() != reflect.Struct && (next.Kind() != reflect.Map || next.Elem().Kind() != reflect.Struct) {
			return []string{"nothing of that kind"}
		}
		t = next
	}
	if t.Kind() != reflect.Struct {
		return []string{"tables, by name"}
	}
	var keys []string
	for i := range t.NumField() {
		if tag := t.Field(i).Tag.Get("toml"); tag != "-" && tag != "" {
			keys = append(keys, tag)
		}
	}
	return keys
}

func field(t reflect.Type, key string) (reflect.Type, bool) {
	for i := range t.NumField() {
		if t.Field(i).Tag.Get("toml") == key {
			return t.Field(i).Type, true
		}
	}
	return nil, false
}
