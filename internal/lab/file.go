package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"

	"msgw/internal/durable"
	"msgw/internal/node"
)

// Zone is the zone that every lab answers.
const Zone = "msgw.example.com"

// File is what tools read of a running lab.
type File struct {
	Zone      string    `json:"zone"`
	CA        string    `json:"ca"` // path of a PEM bundle that trusts the nodes' certificates
	Nodes     []NodeRow `json:"nodes"`
	Mailboxes []Mailbox `json:"mailboxes"`
}

// NodeRow is a node in File. A witness has empty service addresses.
type NodeRow struct {
	Name    string   `json:"name"`
	Host    string   `json:"host"`
	Role    string   `json:"role"`
	Addr    string   `json:"addr"`
	SMTP    string   `json:"smtp"`
	POP3    string   `json:"pop3"`
	POP3S   string   `json:"pop3s"`
	DNS     string   `json:"dns"`
	Console string   `json:"console"`
	Peer    string   `json:"peer"`
	Metrics string   `json:"metrics"`
	PID     int      `json:"pid"` // 0 while it does not run
	Argv    []string `json:"argv"`
	Dir     string   `json:"dir"`
}

// Mailbox in File.
type Mailbox struct {
	ID       string `json:"id"`
	Address  string `json:"address"`
	Password string `json:"password"`
}

// load reads what an earlier lab left in the directory. If it did not come up, what
// it left is removed.
func (l *Lab) load() error {
	b, err := os.ReadFile(filepath.Join(l.opt.Dir, fileName))
	if err == nil {
		if err := json.Unmarshal(b, &l.file); err != nil {
			return fmt.Errorf("%s: %w", fileName, err)
		}
		l.opt.Witness = l.opt.Witness || slices.ContainsFunc(l.file.Nodes, func(n NodeRow) bool { return n.Role == "witness" })
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range []string{"msgw1", "msgw2", "witness"} {
		if err := os.RemoveAll(filepath.Join(l.opt.Dir, name)); err != nil {
			return err
		}
	}
	return nil
}

// layOut decides names, addresses and ports.
func (l *Lab) layOut() {
	smtp, pop3, pop3s, dns := "2525", "1110", "1995", "1053"
	if l.opt.StandardPorts {
		smtp, pop3, pop3s, dns = "25", "110", "995", "53"
	}
	names := []string{"msgw1", "msgw2"}
	if l.opt.Witness {
		names = append(names, "witness")
	}
	l.file.Zone, l.file.CA = Zone, filepath.Join(l.opt.Dir, caName)
	l.file.Nodes = nil
	for i, name := range names {
		addr := fmt.Sprintf("%s.%d", l.opt.Net, 11+i)
		at := func(port string) string { return net.JoinHostPort(addr, port) }
		n := NodeRow{Name: name, Role: "site", Addr: addr, Peer: at("8451"), Metrics: at("8452"), Dir: filepath.Join(l.opt.Dir, name),
			Argv: []string{l.opt.Program, "serve", "--config", filepath.Join(l.opt.Dir, name+".toml")}}
		if name == "witness" {
			n.Role = "witness"
		} else {
			n.Host, n.SMTP, n.POP3, n.POP3S, n.DNS = name+"."+Zone, at(smtp), at(pop3), at(pop3s), at(dns)
		}
		l.file.Nodes = append(l.file.Nodes, n)
	}
	if l.file.Mailboxes == nil {
		l.file.Mailboxes = []Mailbox{}
	}
}

// config writes a node's configuration file and returns it as the node reads it.
func (l *Lab) config(n NodeRow) (*node.Config, error) {
	text := fmt.Sprintf("name = %q\nstate = %q\n\n[listen]\npeer = %q\nmetrics = %q\n", n.Name, n.Dir, n.Peer, n.Metrics)
	if n.Role == "site" {
		_, smtp, _ := net.SplitHostPort(n.SMTP)
		_, dns, _ := net.SplitHostPort(n.DNS)
		text += fmt.Sprintf("smtp = %q\npop3 = %q\npop3s = %q\ndns = %q\n\n[public]\nipv4 = [%q]\nsmtp_port = %s\ndns_port = %s\n",
			n.SMTP, n.POP3, n.POP3S, n.DNS, n.Addr, smtp, dns)
	}
	path := filepath.Join(l.opt.Dir, n.Name+".toml")
	if err := durable.ReplaceFile(path, []byte(text)); err != nil {
		return nil, err
	}
	return node.LoadConfig(path)
}

// write replaces lab.json.
func (l *Lab) write() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	b, err := json.MarshalIndent(l.Describe(), "", "  ")
	if err != nil {
		return err
	}
	return durable.ReplaceFile(filepath.Join(l.opt.Dir, fileName), append(b, '\n'))
}

// Describe returns what lab.json holds.
func (l *Lab) Describe() File {
	f := l.file
	f.Nodes = slices.Clone(l.file.Nodes)
	for i := range f.Nodes {
		f.Nodes[i].PID = l.pid(f.Nodes[i].Name)
	}
	return f
}
