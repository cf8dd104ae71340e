package cluster

import (
	"github.com/skiff-project/skiff/apiserver/encryption"
	"github.com/skiff-project/skiff/apiserver/registry"
	"github.com/skiff-project/skiff/cluster/rotation"
)

// EncryptionFile is the EncryptionConfiguration of a cluster in a data folder:
// the key its Secrets are stored under.
func (o Options) EncryptionFile() string { return o.path("encryption.yaml") }

// openEncryption reads how objects are encrypted; nil: not at all.
func (c *Cluster) openEncryption() (_ *encryption.Set, err error) {
	create := c.encryptionFile == "" && c.opts.DataDir != ""
	if create {
		c.encryptionFile = c.opts.EncryptionFile()
	}
	if c.encryptionFile == "" {
		return nil, nil
	}
	c.keys, err = rotation.Open(c.encryptionFile, create, encryption.Options{Root: registry.Root, Stored: c.keyPrefix, Log: c.log})
	if err != nil {
		return nil, err
	}
	return c.keys.Set, nil
}
