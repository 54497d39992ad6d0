package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Follow what happens to pods and containers, until ^C; -o json prints an object a line, with their statuses",
		Args:  cobra.NoArgs,
		RunE: a.connected(func(ctx context.Context, c *client, _ []string) error {
			if !follow {
				return errors.New("events are told as they happen and not kept: leave -f=false out")
			}
			return c.follow(ctx, a.eventPrinter())
		}),
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", true, "go on until ^C; there is no other way")
	return cmd
}

// follow hands all events to print, until one of them fails or ctx ends.
func (c *client) follow(ctx context.Context, print func(*runtime.ContainerEventResponse) error) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan *runtime.ContainerEventResponse)
	var following sync.WaitGroup
	var ended error
	following.Go(func() {
		defer close(events)
		ended = c.GetContainerEvents(ctx, events, nil)
	})
	defer func() {
		cancel()
		for range events { // lets it see the end
		}
		following.Wait()
	}()
	for e := range events {
		if err := print(e); err != nil {
			return err
		}
	}
	return ended
}

// eventPrinter prints events one a line. What a container is called is remembered for the event of its removal, which
// does not tell.
func (a *app) eventPrinter() func(*runtime.ContainerEventResponse) error {
	if a.output == "json" {
		return func(e *runtime.ContainerEventResponse) error {
			line, err := protojson.Marshal(e)
			if err == nil {
				_, err = fmt.Fprintf(a.out, "%s\n", line)
			}
			return err
		}
	}
	names := map[string]string{}
	header := sync.OnceFunc(func() { eventLine(a.out, "TIME", "EVENT", "KIND", "ID", "POD", "CONTAINER", "DETAIL") })
	return func(e *runtime.ContainerEventResponse) error {
		header()
		meta := e.PodSandboxStatus.GetMetadata()
		pod, kind, name, detail := "-", "container", names[e.ContainerId], ""
		if meta != nil {
			pod = meta.Namespace + "/" + meta.Name
		}
		for _, s := range e.ContainersStatuses {
			if s.Id != e.ContainerId {
				continue
			}
			name = s.Metadata.GetName()
			if s.State == runtime.ContainerState_CONTAINER_EXITED {
				detail = fmt.Sprintf("exit code %d, %s", s.ExitCode, s.Reason)
			}
		}
		if e.ContainerId == e.PodSandboxStatus.GetId() {
			kind = "pod"
		}
		names[e.ContainerId] = name
		if e.ContainerEventType == runtime.ContainerEventType_CONTAINER_DELETED_EVENT {
			delete(names, e.ContainerId)
		}
		event := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(e.ContainerEventType.String(), "CONTAINER_"), "_EVENT"))
		return eventLine(a.out, time.Unix(0, e.CreatedAt).Format("15:04:05.000"), event, kind, short(e.ContainerId), pod, cmp.Or(name, "-"), detail)
	}
}

// eventLine has columns of fixed width, as what is still to come is not known.
func eventLine(w io.Writer, at, event, kind, id, pod, container, detail string) error {
	_, err := fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("%-12s   %-7s   %-9s   %-12s   %-30s   %-20s   %s", at, event, kind, id, pod, container, detail), " "))
	return err
}
