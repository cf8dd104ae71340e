package storage

import (
	storagev1 "k8s.io/api/storage/v1"

	"github.com/skiff-project/skiff/api"
)

func volumeAttachmentResource() *api.Resource {
	return &api.Resource{
		Group: Group,
		Name:  "volumeattachments", Singular: "volumeattachment", Kind: "VolumeAttachment",
		Versions:      []api.Version{api.Versioned[storagev1.VolumeAttachment, storagev1.VolumeAttachmentList]("v1", nil)},
		StoragePrefix: "volumeattachments",
		Subresources: []api.Subresource{
			{Name: "status", View: &api.View{}},
		},
	}
}
