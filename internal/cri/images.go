package cri

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/pistis-run/pistis/internal/image"
)

// images is the engine's owner of images.
type images interface {
	imageReader
	Pull(ctx context.Context, req image.PullRequest) (image.Image, error)
	List(ctx context.Context) ([]image.Image, error)
	Remove(ctx context.Context, ref string) error
	FSInfo(ctx context.Context) (image.FSInfo, error)
}

// imageServer is ImageService.
type imageServer struct {
	runtime.UnimplementedImageServiceServer
	images      images
	handlers    Handlers
	containerFS func(ctx context.Context) (image.FSInfo, error)
}

// PullImage pulls an image and answers with its id.
func (s *imageServer) PullImage(ctx context.Context, req *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	ref := req.GetImage().GetImage()
	if err := s.validateSpec(req.Image); err != nil {
		return nil, fmt.Errorf("pull image: %w", err)
	}
	img, err := s.images.Pull(ctx, image.PullRequest{Ref: ref, Auth: auth(req.Auth)})
	if err != nil {
		return nil, pullError(ref, err)
	}
	return &runtime.PullImageResponse{ImageRef: img.ID.String()}, nil
}

// pullError marks what the kubelet wants to know of: an unavailable registry, and an image that its signatures do not
// allow. The kubelet looks for the mark at the beginning.
func pullError(ref string, err error) error {
	if errors.Is(err, image.ErrSignature) {
		return fmt.Errorf("%w: pull image %q: %w", crierrors.ErrSignatureValidationFailed, ref, err)
	}
	if errdefs.IsUnavailable(err) && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("%w: pull image %q: %w", crierrors.ErrRegistryUnavailable, ref, err)
	}
	return fmt.Errorf("pull image %q: %w", ref, err)
}

func (s *imageServer) validateSpec(spec *runtime.ImageSpec) error {
	if spec.GetImage() == "" {
		return invalid("the request names no image")
	}
	if len(spec.Image) > 4096 || hasSpace(spec.Image) {
		return invalid("%q… is not the name of an image", spec.Image[:min(len(spec.Image), 64)])
	}
	return s.handlers.known(spec.RuntimeHandler)
}

func auth(a *runtime.AuthConfig) *image.Auth {
	if a == nil {
		return nil
	}
	return &image.Auth{
		Username: a.Username, Password: a.Password, Auth: a.Auth, ServerAddress: a.ServerAddress,
		IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
	}
}

// ListImages lists all images, or the one that the filter names.
func (s *imageServer) ListImages(ctx context.Context, req *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	list, err := s.list(ctx, req.GetFilter())
	return &runtime.ListImagesResponse{Images: list}, err
}

func (s *imageServer) list(ctx context.Context, filter *runtime.ImageFilter) ([]*runtime.Image, error) {
	if ref := filter.GetImage().GetImage(); ref != "" {
		img, err := s.images.Get(ctx, ref)
		switch {
		case errdefs.IsNotFound(err):
			return nil, nil
		case err != nil:
			return nil, fmt.Errorf("list images: %q: %w", ref, err)
		}
		return []*runtime.Image{toCRIImage(img)}, nil
	}
	all, err := s.images.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var list []*runtime.Image
	for _, img := range all {
		list = append(list, toCRIImage(img))
	}
	return list, nil
}

// ImageStatus describes an image; one that is not there has no status, which is no error.
func (s *imageServer) ImageStatus(ctx context.Context, req *runtime.ImageStatusRequest) (*runtime.ImageStatusResponse, error) {
	if err := s.validateSpec(req.Image); err != nil {
		return nil, fmt.Errorf("image status: %w", err)
	}
	img, err := s.images.Get(ctx, req.Image.Image)
	if errdefs.IsNotFound(err) {
		return &runtime.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image status: %q: %w", req.Image.Image, err)
	}
	resp := &runtime.ImageStatusResponse{Image: toCRIImage(img)}
	if req.Verbose {
		resp.Info = map[string]string{}
		details := map[string]any{
			"imageSpec": img.Config, "target": img.Target, "manifest": img.Manifest, "layers": img.Layers, "pulled": img.Pulled,
		}
		if err := addInfo(resp.Info, "info", details); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// RemoveImage removes an image with all of its names; one that is not there counts as removed.
func (s *imageServer) RemoveImage(ctx context.Context, req *runtime.RemoveImageRequest) (*runtime.RemoveImageResponse, error) {
	if err := s.validateSpec(req.Image); err != nil {
		return nil, fmt.Errorf("remove image: %w", err)
	}
	img, err := s.images.Get(ctx, req.Image.Image)
	if errdefs.IsNotFound(err) {
		return &runtime.RemoveImageResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("remove image %q: %w", req.Image.Image, err)
	}
	if err := s.images.Remove(ctx, img.ID.String()); err != nil {
		return nil, fmt.Errorf("remove image %q: %w", req.Image.Image, err)
	}
	return &runtime.RemoveImageResponse{}, nil
}

// ImageFsInfo says what images and writable layers use.
func (s *imageServer) ImageFsInfo(ctx context.Context, _ *runtime.ImageFsInfoRequest) (*runtime.ImageFsInfoResponse, error) {
	imageFS, err := s.images.FSInfo(ctx)
	if err != nil {
		return nil, fmt.Errorf("image file system: %w", err)
	}
	containerFS, err := s.containerFS(ctx)
	if err != nil {
		return nil, fmt.Errorf("container file system: %w", err)
	}
	return &runtime.ImageFsInfoResponse{
		ImageFilesystems:     []*runtime.FilesystemUsage{filesystemUsage(imageFS)},
		ContainerFilesystems: []*runtime.FilesystemUsage{filesystemUsage(containerFS)},
	}, nil
}

func filesystemUsage(fs image.FSInfo) *runtime.FilesystemUsage {
	return &runtime.FilesystemUsage{
		Timestamp: fs.At.UnixNano(), FsId: &runtime.FilesystemIdentifier{Mountpoint: fs.Mountpoint},
		UsedBytes: number(fs.UsedBytes), InodesUsed: number(fs.UsedInodes),
	}
}

// maxAnnotations and maxUser bound, in bytes, what an image's author can put into the list of all images: it is one message.
const (
	maxAnnotations = 16 << 10
	maxUser        = 256
)

// imageAnnotations are those of the manifest, unless they are too large for a list; a verbose status has them in any case.
func imageAnnotations(annotations map[string]string) map[string]string {
	size := 0
	for key, value := range annotations {
		size += len(key) + len(value)
	}
	if size > maxAnnotations {
		return nil
	}
	return maps.Clone(annotations)
}

func toCRIImage(img image.Image) *runtime.Image {
	out := &runtime.Image{
		Id: img.ID.String(), RepoTags: slices.Clone(img.Tags), RepoDigests: slices.Clone(img.Digests), Size: uint64(max(img.Size, 1)),
		Pinned: img.Pinned, Spec: &runtime.ImageSpec{Image: img.ID.String(), Annotations: imageAnnotations(img.Manifest.Annotations)},
	}
	user, _, _ := strings.Cut(img.Config.Config.User, ":")
	if uid, err := strconv.ParseUint(user, 10, 31); err == nil {
		out.Uid = &runtime.Int64Value{Value: int64(uid)}
	} else {
		out.Username = strings.ToValidUTF8(user[:min(len(user), maxUser)], "")
	}
	return out
}
