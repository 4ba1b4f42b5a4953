package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// writeYAML writes v as the YAML form of its JSON encoding, with the same keys in the same order, so
// that there is one documented form and not two.
func writeYAML(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var out strings.Builder
	if err := yamlValue(&out, d, 0, true); err != nil {
		return fmt.Errorf("encode the result as YAML: %w", err)
	}
	_, err = io.WriteString(w, out.String())
	return err
}

// yamlValue writes the next value. A mapping or sequence that isn't empty begins on a line of its
// own and a scalar behind a space, save as the item of a sequence (inline), which begins right
// behind the dash and its space.
func yamlValue(w *strings.Builder, d *json.Decoder, indent int, inline bool) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	space := ""
	if !inline {
		space = " "
	}
	delim, ok := t.(json.Delim)
	if !ok {
		fmt.Fprintf(w, "%s%s\n", space, yamlScalar(t))
		return nil
	}
	if !d.More() {
		fmt.Fprintf(w, "%s%s\n", space, map[json.Delim]string{'{': "{}", '[': "[]"}[delim])
		_, err = d.Token()
		return err
	}
	if !inline {
		w.WriteByte('\n')
	}
	for first := true; d.More(); first = false {
		if !first || !inline {
			w.WriteString(strings.Repeat("  ", indent))
		}
		if delim == '[' {
			w.WriteString("- ")
			if err := yamlValue(w, d, indent+1, true); err != nil {
				return err
			}
			continue
		}
		key, err := d.Token()
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s:", yamlScalar(key))
		if err := yamlValue(w, d, indent+1, false); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

// plainYAML is what needs no quotes: it can't be taken for a number, a date, a boolean or null.
var plainYAML = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./ -]*[A-Za-z0-9_/]$|^[a-z]$`)

var yamlWords = regexp.MustCompile(`(?i)^(y|n|yes|no|on|off|true|false|null)$`)

func yamlScalar(t json.Token) string {
	switch v := t.(type) {
	case string:
		if plainYAML.MatchString(v) && !yamlWords.MatchString(v) {
			return v
		}
		b, _ := json.Marshal(v) // a string always encodes; a JSON string is a YAML one
		return string(b)
	case nil:
		return "null"
	}
	return fmt.Sprint(t)
}
