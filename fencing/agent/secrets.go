package agent

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const secretsMax = 64 << 10 // bytes

// ReadSecrets reads the parameters that nobody but the daemon may see: lines "key=value"; empty ones and those
// that begin with # count for nothing. The file must be the daemon's user's own, and nobody else's to read or to
// change.
func ReadSecrets(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the fence agent's secrets: %w", err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("read the fence agent's secrets: %w", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o077 != 0 || st.Uid != uint32(os.Geteuid()) && st.Uid != 0 {
		return nil, fmt.Errorf("%s must be a file that nobody but its owner, root or the daemon's user, may read or change: chmod 600 %s", path, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, secretsMax+1))
	if err != nil {
		return nil, fmt.Errorf("read the fence agent's secrets: %w", err)
	}
	if len(b) > secretsMax {
		return nil, fmt.Errorf("%s holds more than %d bytes: it is no list of a fence agent's parameters", path, secretsMax)
	}
	secrets := map[string]string{}
	for i, line := range strings.Split(string(b), "\n") {
		line = strings.TrimSuffix(line, "\r")
		if t := strings.TrimSpace(line); t == "" || t[0] == '#' {
			continue
		}
		// The value is taken as it is: a password may begin or end with a space.
		k, v, ok := strings.Cut(line, "=")
		k = strings.TrimSpace(k)
		if _, twice := secrets[k]; !ok || twice {
			return nil, fmt.Errorf("%s, line %d: give key=value, each key once", path, i+1) // without the line's words
		}
		secrets[k] = v
	}
	return secrets, nil
}
