package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// execute runs the command in the lab. ready is called when the lab is up.
func (m *machine) execute(ctx context.Context, o options, ready func()) (int, error) {
	dir, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for _, port := range ports() {
		conn, err := m.dial(ctx, port)
		if err != nil {
			return 0, err
		}
		conns = append(conns, conn)
		if port == controlPort {
			ready()
		}
	}
	// A command that does not end is ended with its lab.
	stop := context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.SetDeadline(time.Unix(1, 0))
		}
	})
	defer stop()
	var beats sync.WaitGroup
	defer beats.Wait()
	running, ended := context.WithCancel(ctx)
	defer ended()
	beats.Go(func() { beat(running, conns[3]) })
	control := conns[0]
	err = json.NewEncoder(control).Encode(job{Args: o.command, Env: os.Environ(), Dir: dir})
	if err == nil {
		err = control.(interface{ CloseWrite() error }).CloseWrite()
	}
	if err != nil {
		return 0, fmt.Errorf("send the command: %w", err)
	}
	var output sync.WaitGroup
	var copied [2]error
	for i, w := range []io.Writer{o.stdout, o.stderr} {
		output.Go(func() { _, copied[i] = io.Copy(w, conns[i+1]) })
	}
	var result outcome
	err = json.NewDecoder(io.LimitReader(control, maxMessage)).Decode(&result)
	output.Wait()
	switch err = errors.Join(err, copied[0], copied[1]); {
	case err != nil:
		return 0, fmt.Errorf("the lab ended before its command: %w", err)
	case result.Error != "":
		return 0, errors.New(result.Error)
	}
	return result.Code, nil
}

// beat sends pulses until ctx ends or the lab does not take them any more.
func beat(ctx context.Context, w io.Writer) {
	tick := time.NewTicker(pulse)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := w.Write([]byte{0}); err != nil {
			return
		}
	}
}

// dial gives up when QEMU ends.
func (m *machine) dial(ctx context.Context, port uint32) (net.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	defer func() { <-watched }()
	go func() {
		defer close(watched)
		select {
		case <-m.qemu.done:
			cancel(errors.New("QEMU ended"))
		case <-m.share.done:
			cancel(errors.New("virtiofsd ended"))
		case <-ctx.Done():
		}
	}()
	conn, err := m.streams.Dial(ctx, port)
	cancel(nil)
	return conn, err
}
