//go:build linux

package main

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain makes this program the follower of the file named in its environment.
func TestMain(m *testing.M) {
	if path := os.Getenv("FOLLOW"); path != "" {
		if err := follow(path); err != nil {
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// TestFollow: a log is copied through its whole life, and TERM ends the follower. Each
// step must be told of, long before the slow look.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FOLLOW="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string)
	go func() {
		for sc := bufio.NewScanner(out); sc.Scan(); {
			lines <- sc.Text()
		}
		close(lines)
	}()
	for _, step := range []struct {
		line string
		do   func() error
	}{
		{"made", func() error { return os.WriteFile(path, []byte("made\n"), 0o600) }},
		{"appended", func() error { return appendTo(path, "appended\n") }},
		{"replaced", func() error {
			if err := os.Rename(path, path+".1"); err != nil {
				return err
			}
			return os.WriteFile(path, []byte("replaced\n"), 0o600)
		}},
		{"appended again", func() error { return appendTo(path, "appended again\n") }},
		{"cut", func() error { return os.WriteFile(path, []byte("cut\n"), 0o600) }},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-lines:
			if got != step.line {
				t.Fatalf("got %q, want %q", got, step.line)
			}
		case <-time.After(followSlow / 2):
			t.Fatalf("no news of %q", step.line)
		}
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if _, more := <-lines; more {
		t.Error("more lines than were written")
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("TERM: %v", err)
	}
}

func appendTo(path, text string) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(text)
	return err
}
