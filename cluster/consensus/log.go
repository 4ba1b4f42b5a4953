package consensus

import (
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// raftLogger passes on what the Raft library says. It says the same thing many times a second while a
// voter is away, so it is thinned out, and its levels are lowered: what matters is said by this package.
func raftLogger(log *zap.Logger) hclog.Logger {
	thin := log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core {
		return zapcore.NewSamplerWithOptions(c, time.Minute, 1, 1000)
	})).Named("raft")
	l := hclog.NewInterceptLogger(&hclog.LoggerOptions{Output: io.Discard, Level: hclog.Info})
	l.RegisterSink(sink{thin})
	return l
}

type sink struct{ log *zap.Logger }

func (s sink) Accept(_ string, level hclog.Level, msg string, args ...any) {
	to := s.log.Debug
	if level >= hclog.Error {
		to = s.log.Info
	}
	fields := make([]zap.Field, 0, len(args)/2)
	for i := 0; i+1 < len(args); i += 2 {
		fields = append(fields, zap.String(fmt.Sprint(args[i]), fmt.Sprint(args[i+1])))
	}
	to(msg, fields...)
}
