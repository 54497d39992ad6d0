package cri

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// requestFields says what becomes of each field of a request; configurations, and what they consist of, are in
// convert's tables.
var requestFields = map[string]string{
	"RunPodSandboxRequest.config":                     "convert's tables",
	"RunPodSandboxRequest.runtime_handler":            "chooses the handler",
	"StopPodSandboxRequest.pod_sandbox_id":            "names it",
	"RemovePodSandboxRequest.pod_sandbox_id":          "names it",
	"PodSandboxStatusRequest.pod_sandbox_id":          "names it",
	"PodSandboxStatusRequest.verbose":                 "adds info",
	"ListPodSandboxRequest.filter":                    "filters",
	"StreamPodSandboxesRequest.filter":                "filters",
	"CreateContainerRequest.pod_sandbox_id":           "names it",
	"CreateContainerRequest.config":                   "convert's tables",
	"CreateContainerRequest.sandbox_config":           "ignored: the pod is known as it was made",
	"StartContainerRequest.container_id":              "names it",
	"StopContainerRequest.container_id":               "names it",
	"StopContainerRequest.timeout":                    "grace",
	"RemoveContainerRequest.container_id":             "names it",
	"ListContainersRequest.filter":                    "filters",
	"StreamContainersRequest.filter":                  "filters",
	"ContainerStatusRequest.container_id":             "names it",
	"ContainerStatusRequest.verbose":                  "adds info",
	"UpdateContainerResourcesRequest.container_id":    "names it",
	"UpdateContainerResourcesRequest.linux":           "convert's tables",
	"UpdateContainerResourcesRequest.windows":         "refused",
	"UpdateContainerResourcesRequest.annotations":     "refused",
	"ReopenContainerLogRequest.container_id":          "names it",
	"ExecSyncRequest.container_id":                    "names it",
	"ExecSyncRequest.cmd":                             "runs",
	"ExecSyncRequest.timeout":                         "bounds",
	"ExecRequest.container_id":                        "names it",
	"ExecRequest.cmd":                                 "runs",
	"ExecRequest.tty":                                 "terminal",
	"ExecRequest.stdin":                               "stream",
	"ExecRequest.stdout":                              "stream",
	"ExecRequest.stderr":                              "stream",
	"AttachRequest.container_id":                      "names it",
	"AttachRequest.stdin":                             "stream",
	"AttachRequest.tty":                               "has to be the container's",
	"AttachRequest.stdout":                            "stream",
	"AttachRequest.stderr":                            "stream",
	"PortForwardRequest.pod_sandbox_id":               "names it",
	"PortForwardRequest.port":                         "ports",
	"ContainerStatsRequest.container_id":              "names it",
	"ListContainerStatsRequest.filter":                "filters",
	"StreamContainerStatsRequest.filter":              "filters",
	"PodSandboxStatsRequest.pod_sandbox_id":           "names it",
	"ListPodSandboxStatsRequest.filter":               "filters",
	"StreamPodSandboxStatsRequest.filter":             "filters",
	"UpdateRuntimeConfigRequest.runtime_config":       "networks of the bridge",
	"StatusRequest.verbose":                           "adds info",
	"CheckpointContainerRequest.container_id":         "names it",
	"CheckpointContainerRequest.location":             "archive",
	"CheckpointContainerRequest.timeout":              "bounds",
	"CheckpointPodRequest.pod_sandbox_id":             "refused",
	"CheckpointPodRequest.output_path":                "refused",
	"CheckpointPodRequest.container_ids":              "refused",
	"CheckpointPodRequest.options":                    "refused",
	"RestorePodRequest.checkpoint_path":               "refused",
	"RestorePodRequest.config":                        "refused",
	"RestorePodRequest.runtime_handler":               "refused",
	"RestorePodRequest.options":                       "refused",
	"RestorePodRequest.container_configs":             "refused",
	"UpdatePodSandboxResourcesRequest.pod_sandbox_id": "names it",
	"UpdatePodSandboxResourcesRequest.overhead":       "convert's tables",
	"UpdatePodSandboxResourcesRequest.resources":      "convert's tables",
	"ListImagesRequest.filter":                        "filters",
	"StreamImagesRequest.filter":                      "filters",
	"ImageStatusRequest.image":                        "names it",
	"ImageStatusRequest.verbose":                      "adds info",
	"PullImageRequest.image":                          "names it",
	"PullImageRequest.auth":                           "credentials",
	"PullImageRequest.sandbox_config":                 "ignored: an image is the same for all pods",
	"RemoveImageRequest.image":                        "names it",
	"VersionRequest.version":                          "ignored: it is the kubelet's, of which nothing depends",
	"PodSandboxFilter.id":                             "filters",
	"PodSandboxFilter.state":                          "filters",
	"PodSandboxFilter.label_selector":                 "filters",
	"ContainerFilter.id":                              "filters",
	"ContainerFilter.state":                           "filters",
	"ContainerFilter.pod_sandbox_id":                  "filters",
	"ContainerFilter.label_selector":                  "filters",
	"ContainerStatsFilter.id":                         "filters",
	"ContainerStatsFilter.pod_sandbox_id":             "filters",
	"ContainerStatsFilter.label_selector":             "filters",
	"PodSandboxStatsFilter.id":                        "filters",
	"PodSandboxStatsFilter.label_selector":            "filters",
	"ImageFilter.image":                               "filters",
	"AuthConfig.username":                             "credentials",
	"AuthConfig.password":                             "credentials",
	"AuthConfig.auth":                                 "credentials",
	"AuthConfig.server_address":                       "whom the credentials are for",
	"AuthConfig.identity_token":                       "credentials",
	"AuthConfig.registry_token":                       "credentials",
	"RuntimeConfig.network_config":                    "networks of the bridge",
	"NetworkConfig.pod_cidr":                          "networks of the bridge",
}

// TestEveryRequestFieldIsKnown walks the requests of both services, so that a field that a new version of CRI brings
// cannot be ignored silently.
func TestEveryRequestFieldIsKnown(t *testing.T) {
	known := map[string]bool{}
	services := runtime.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			walkRequest(t, methods.Get(j).Input(), known)
		}
	}
	for name := range requestFields {
		if !known[name] {
			t.Errorf("there is no field %s", name)
		}
	}
}

func walkRequest(t *testing.T, m protoreflect.MessageDescriptor, known map[string]bool) {
	t.Helper()
	for i := range m.Fields().Len() {
		field := m.Fields().Get(i)
		name := string(m.Name()) + "." + string(field.Name())
		if known[name] {
			continue
		}
		known[name] = true
		if requestFields[name] == "" {
			t.Errorf("nothing says what becomes of field %s", name)
		}
		if field.Message() == nil {
			continue
		}
		kind := string(field.Message().Name())
		if strings.HasSuffix(kind, "Filter") || slices.Contains([]string{"AuthConfig", "RuntimeConfig", "NetworkConfig"}, kind) {
			walkRequest(t, field.Message(), known)
		}
	}
}
