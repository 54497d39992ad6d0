package streaming

import (
	"context"
	"io"
	"sync"
	"time"
)

const (
	// podLinger is how long a pod may be silent after the client said that it sends no more. A client that has gone
	// altogether looks the same, and its connection into the pod must not stay for ever.
	podLinger = 30 * time.Second
	// clientLinger is how long a client may keep its side open after the pod closed the connection.
	clientLinger = 5 * time.Second
)

// join copies both ways until the pod's side has said all, or either failed, or ctx ended. It closes both.
func join(ctx context.Context, client, pod io.ReadWriteCloser) error {
	abort := sync.OnceFunc(func() {
		_ = pod.Close()
		reset(client)
	})
	defer context.AfterFunc(ctx, abort)()
	silence := time.AfterFunc(podLinger, abort)
	silence.Stop()
	defer silence.Stop()

	var upload sync.WaitGroup
	uploaded := make(chan struct{})
	upload.Go(func() {
		defer close(uploaded)
		_, _ = io.Copy(pod, client)
		// The end is passed on where it can be: what the pod answers is still wanted.
		if half, ok := pod.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
		silence.Reset(podLinger)
	})

	_, err := io.Copy(&noisy{Writer: client, uploaded: uploaded, silence: silence}, pod)
	// This ends what we send. What was sent still arrives, as it might not with a reset.
	_ = client.Close()
	_ = pod.Close()
	patience := time.AfterFunc(clientLinger, abort)
	upload.Wait()
	patience.Stop()
	abort()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// reset ends both directions of a stream where closing ends only ours.
func reset(stream io.Closer) {
	if r, ok := stream.(interface{ Reset() error }); ok {
		_ = r.Reset()
		return
	}
	_ = stream.Close()
}

// noisy puts the silence off with everything that the pod says after the upload ended.
type noisy struct {
	io.Writer
	uploaded <-chan struct{}
	silence  *time.Timer
}

func (n *noisy) Write(p []byte) (int, error) {
	select {
	case <-n.uploaded:
		n.silence.Reset(podLinger)
	default:
	}
	return n.Writer.Write(p)
}
