package kubelet

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// maxEnvFile bounds a file environment variables are read from.
const maxEnvFile = 64 << 10

// envFile reads KEY=value (optionally quoted) from a file in a mounted volume; links are resolved
// inside the volume.
func (w *worker) envFile(volume, path, key string) (string, bool, error) {
	w.volMu.Lock()
	vols := w.vols
	w.volMu.Unlock()
	if vols == nil {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", volume)
	}
	v, ok := vols.Get(volume)
	if !ok {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", volume)
	}
	f, err := openIn(v.Path(), path)
	if err != nil {
		return "", false, fmt.Errorf("couldn't parse env file")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxEnvFile))
	if err != nil {
		return "", false, fmt.Errorf("couldn't parse env file")
	}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		name, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") || strings.TrimSpace(name) != key {
			continue
		}
		value = strings.TrimSpace(value)
		if n := len(value); n >= 2 && (value[0] == '\'' || value[0] == '"') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		return value, true, nil
	}
	return "", false, sc.Err()
}

// openIn opens a file below root without following a link out of it.
func openIn(root, path string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, strings.TrimLeft(path, "/"), &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}
