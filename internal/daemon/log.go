package daemon

import (
	"context"
	"io"
	"log/slog"
	"os"

	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"

	"github.com/pistis-run/pistis/internal/config"
)

// OpenLog makes the process's log, on standard error, and sends there too what libraries log by their own means:
// Kubernetes' through klog, containerd's through logrus. Their loggers are the whole process's, so this is for main to
// call, once.
func OpenLog(cfg config.Log) *slog.Logger {
	var level slog.Level
	if err := level.UnmarshalText([]byte(cfg.Level)); err != nil {
		level = slog.LevelInfo // the configuration was checked
	}
	options := &slog.HandlerOptions{Level: level}
	log := slog.New(slog.NewTextHandler(os.Stderr, options))
	if cfg.Format == "json" {
		log = slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	slog.SetDefault(log)
	klog.SetSlogLogger(log)
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.InfoLevel)
	if level <= slog.LevelDebug {
		logrus.SetLevel(logrus.DebugLevel)
	}
	logrus.AddHook(logrusHook{log})
	return log
}

// logrusHook hands entries on.
type logrusHook struct{ log *slog.Logger }

func (logrusHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h logrusHook) Fire(e *logrus.Entry) error {
	// A library's warning is detail here: what matters of it comes back as an error as well.
	level := slog.LevelDebug
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel, logrus.ErrorLevel:
		level = slog.LevelError
	}
	attrs := make([]slog.Attr, 0, len(e.Data))
	for key, value := range e.Data {
		attrs = append(attrs, slog.Any(key, value))
	}
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background()
	}
	h.log.LogAttrs(ctx, level, e.Message, attrs...)
	return nil
}
