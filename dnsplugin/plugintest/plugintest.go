// Package plugintest helps to test what a dnsplugin.Handler answers.
package plugintest

import (
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
)

// Recorder is a dns.ResponseWriter that keeps the answer, whether it comes as a message or,
// since it was prepared, in wire format.
type Recorder struct {
	test.ResponseWriter
	Msg *dns.Msg // nil: none came
}

// WriteMsg implements dns.ResponseWriter.
func (r *Recorder) WriteMsg(m *dns.Msg) error {
	r.Msg = m
	return nil
}

// Write implements dns.ResponseWriter. It returns an error if b is no message.
func (r *Recorder) Write(b []byte) (int, error) {
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		return 0, err
	}
	r.Msg = m
	return len(b), nil
}
