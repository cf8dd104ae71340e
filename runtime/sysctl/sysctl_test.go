package sysctl

import (
	"os"
	"testing"
)

func TestCheck(t *testing.T) {
	for name, ok := range map[string]bool{
		"net.ipv4.tcp_syncookies":           true,
		"net/ipv4/conf/eth0.100/arp_accept": true,
		"kernel.shmmax":                     true,
		"fs.mqueue.msg_max":                 true,
		"kernel.panic":                      false,
		"vm.swappiness":                     false,
		"net.ipv4.x+kernel.core_pattern":    false, // CVE-2022-0811
		"net/../kernel/core_pattern":        false,
		"net..x":                            false,
	} {
		if err := Check(map[string]string{name: "1"}, false, false); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if Check(map[string]string{"net.core.somaxconn": "1"}, true, false) == nil || Check(map[string]string{"kernel.sem": "1"}, false, true) == nil {
		t.Error("a sysctl of the host's namespace is allowed")
	}
}

func TestWriteStaysInProcfs(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, name := range []string{"../../etc/hostname", "net.no.such"} {
		if Write(name, "1") == nil {
			t.Errorf("%s was written", name)
		}
	}
}
