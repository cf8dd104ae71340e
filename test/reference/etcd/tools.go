//go:build tools

// Package etcd pins the version of etcd that Skiff is measured and mixed with.
// It is a module of its own, as Kubernetes pins another.
package etcd

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/etcdutl/v3"
	_ "go.etcd.io/etcd/server/v3"
)
