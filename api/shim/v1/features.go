package shimv1

// FeaturePIDNamespaces in InfoResponse.Features: the shim knows CreateOptions.pid_namespace.
const FeaturePIDNamespaces = "pid-namespaces"

// FeatureResize: it knows Resize.
const FeatureResize = "resize"
