package image

import (
	"context"
	"io"
	"log/slog"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// containerdLog leads the log of containerd's packages to ours. What they report is detail here: what went wrong
// comes back as an error as well.
func containerdLog(to *slog.Logger) *log.Entry {
	logger := &logrus.Logger{Out: io.Discard, Formatter: noFormat{}, Hooks: logrus.LevelHooks{}, Level: logrus.PanicLevel}
	if to.Enabled(context.Background(), slog.LevelDebug) {
		logger.Level = logrus.InfoLevel
		logger.AddHook(slogHook{to})
	}
	return logrus.NewEntry(logger)
}

type noFormat struct{}

func (noFormat) Format(*logrus.Entry) ([]byte, error) { return nil, nil }

type slogHook struct{ to *slog.Logger }

func (slogHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h slogHook) Fire(e *logrus.Entry) error {
	attrs := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, k, v)
	}
	h.to.Debug(e.Message, attrs...)
	return nil
}
