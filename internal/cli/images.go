package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	pistisv1 "github.com/pistis-run/pistis/api/pistis/v1"
)

// chunkSize is the size of the pieces in which archives travel.
const chunkSize = 1 << 20

// extras reaches the operator's service of the daemon.
func (a *app) extras() (pistisv1.PistisClient, io.Closer, error) {
	conn, err := grpc.NewClient("unix://"+a.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return pistisv1.NewPistisClient(conn), conn, nil
}

func (a *app) imagesCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "images",
		Short: "List images",
		Args:  cobra.NoArgs,
		RunE: a.connected(func(ctx context.Context, c *client, _ []string) error {
			images, err := c.images.ListImages(ctx, nil)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return printJSON(a.out, images)
			}
			var rows [][]string
			for _, i := range images {
				names := i.RepoTags
				if len(names) == 0 {
					names = i.RepoDigests
				}
				if len(names) == 0 {
					names = []string{"<none>"}
				}
				for _, name := range names {
					rows = append(rows, []string{name, short(i.Id), size(i.Size)})
				}
			}
			slices.SortFunc(rows, func(x, y []string) int { return strings.Compare(x[0], y[0]) })
			return table(a.out, "NAME ID SIZE", rows)
		}),
	}
}

func (a *app) pullCommand() *cobra.Command {
	var creds string
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := a.pull(cmd.Context(), args[0], creds)
			if err != nil {
				return err
			}
			if a.output == "json" {
				return printValue(a.out, map[string]string{"id": id})
			}
			fmt.Fprintln(a.out, id)
			return nil
		},
	}
	cmd.Flags().StringVar(&creds, "creds", "", "credentials, as user:password")
	return cmd
}

// pull shows progress on standard error, as a bar where that is a terminal, and returns the image's id.
func (a *app) pull(ctx context.Context, image, creds string) (string, error) {
	client, conn, err := a.extras()
	if err != nil {
		return "", err
	}
	defer conn.Close()
	user, password, _ := strings.Cut(creds, ":")
	stream, err := client.Pull(ctx, &pistisv1.PullRequest{Image: image, Username: user, Password: password})
	if err != nil {
		return "", err
	}
	show := a.progress(image)
	id := ""
	for {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if id == "" {
				return "", fmt.Errorf("pull %s: the daemon ended the call without an image", image)
			}
			return id, nil
		}
		if err != nil {
			return "", err
		}
		show(p)
		if p.Id != "" {
			id = p.Id
		}
	}
}

// progress returns what is to be called with every message of a pull.
func (a *app) progress(image string) func(*pistisv1.PullProgress) {
	if f, ok := a.err.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		last := ""
		return func(p *pistisv1.PullProgress) {
			if p.Status != last {
				last = p.Status
				fmt.Fprintf(a.err, "%s: %s\n", image, p.Status)
			}
		}
	}
	bar := progressbar.NewOptions64(-1, progressbar.OptionSetWriter(a.err), progressbar.OptionShowBytes(true),
		progressbar.OptionClearOnFinish(), progressbar.OptionSetWidth(30))
	return func(p *pistisv1.PullProgress) {
		bar.Describe(p.Status)
		if p.Total > 0 {
			bar.ChangeMax64(p.Total)
			_ = bar.Set64(min(p.Offset, p.Total))
		}
		if p.Id != "" {
			_ = bar.Finish()
		}
	}
}

func (a *app) rmiCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rmi IMAGE...",
		Short: "Remove images",
		Args:  cobra.MinimumNArgs(1),
		RunE: a.connected(func(ctx context.Context, c *client, args []string) error {
			return a.each(args, func(name string) error {
				spec := &runtime.ImageSpec{Image: name}
				status, err := c.images.ImageStatus(ctx, spec, false)
				if err != nil {
					return err
				}
				if status.Image == nil {
					return fmt.Errorf("no image %q: `pistis images` lists them", name)
				}
				return c.images.RemoveImage(ctx, spec)
			})
		}),
	}
}

func (a *app) importCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE|-",
		Short: "Load images from an OCI or docker archive",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := io.Reader(a.in)
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			client, conn, err := a.extras()
			if err != nil {
				return err
			}
			defer conn.Close()
			stream, err := client.Import(cmd.Context())
			if err != nil {
				return err
			}
			if err := sendChunks(stream, in); err != nil {
				return err
			}
			resp, err := stream.CloseAndRecv()
			if err != nil {
				return err
			}
			if a.output == "json" {
				return printJSON(a.out, resp.Images)
			}
			for _, i := range resp.Images {
				fmt.Fprintln(a.out, short(i.Id), strings.Join(i.Tags, " "))
			}
			return nil
		},
	}
}

// sendChunks sends all of r. When the daemon has refused, its reason is what CloseAndRecv returns.
func sendChunks(stream grpc.ClientStreamingClient[pistisv1.Chunk, pistisv1.ImportResponse], r io.Reader) error {
	buf := make([]byte, chunkSize)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if err := stream.Send(&pistisv1.Chunk{Data: buf[:n]}); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (a *app) exportCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "export -f FILE IMAGE...",
		Short: "Write images into an archive that OCI and docker tools read",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			client, conn, err := a.extras()
			if err != nil {
				return err
			}
			defer conn.Close()
			stream, err := client.Export(cmd.Context(), &pistisv1.ExportRequest{Images: args})
			if err != nil {
				return err
			}
			out := a.out
			if file != "-" {
				f, err := os.CreateTemp(dirOf(file), ".export-*")
				if err != nil {
					return err
				}
				// A half-written archive must not pass for a whole one.
				defer os.Remove(f.Name())
				if err := errors.Join(receiveChunks(stream, f), f.Close()); err != nil {
					return err
				}
				return os.Rename(f.Name(), file)
			}
			return receiveChunks(stream, out)
		},
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the archive; - is standard output")
	_ = cmd.MarkFlagRequired("file")
	return cmd
}

func dirOf(file string) string {
	if i := strings.LastIndexByte(file, '/'); i >= 0 {
		return file[:i+1]
	}
	return "."
}

func receiveChunks(stream grpc.ServerStreamingClient[pistisv1.Chunk], w io.Writer) error {
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := w.Write(chunk.Data); err != nil {
			return err
		}
	}
}
