package etcdstore

import (
	"testing"

	"github.com/skiff-project/skiff/store"
	"github.com/skiff-project/skiff/store/storetest"
)

func TestStoreOnStockEtcd(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		return openStore(t, Options{Endpoints: urls(startCluster(t, 1, quick...)), Index: storetest.Index})
	})
}
