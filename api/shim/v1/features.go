package shimv1

// FeaturePIDNamespaces in InfoResponse.Features: the shim knows CreateOptions.pid_namespace.
const FeaturePIDNamespaces = "pid-namespaces"

// FeatureResize: it knows Resize.
const FeatureResize = "resize"

// FeatureConsole: it removes the guest's console when its VM has ended as it should. Older ones leave every console.
const FeatureConsole = "console"
