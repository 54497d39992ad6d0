package cli

import (
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"k8s.io/client-go/rest"
)

func (a *app) portForwardCommand() *cobra.Command {
	var addresses []string
	cmd := &cobra.Command{
		Use:   "port-forward POD [LOCAL:]REMOTE...",
		Short: "Lead ports of this host to ports inside a pod, its localhost included",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.output != "" {
				return fmt.Errorf("port-forward has nothing to say to programs: leave -o %s out", a.output)
			}
			ctx := cmd.Context()
			c, err := a.connect(ctx)
			if err != nil {
				return err
			}
			defer c.close(ctx)
			pod, err := c.pod(ctx, args[0])
			if err != nil {
				return err
			}
			resp, err := c.PortForward(ctx, &runtime.PortForwardRequest{PodSandboxId: pod.Id})
			if err != nil {
				return err
			}
			u, err := url.Parse(resp.Url)
			if err != nil {
				return fmt.Errorf("streaming address: %w", err)
			}
			transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: u.Host})
			if err != nil {
				return err
			}
			dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
			ready := make(chan struct{})
			forwarder, err := portforward.NewOnAddresses(dialer, addresses, args[1:], ctx.Done(), ready, a.out, a.err)
			if err != nil {
				return err
			}
			return forwarder.ForwardPorts()
		},
	}
	cmd.Flags().StringSliceVar(&addresses, "address", []string{"localhost"}, "addresses to listen on")
	return cmd
}
