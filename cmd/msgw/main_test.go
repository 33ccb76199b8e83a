package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	// Scripts wait for nodes most of the time. Who says otherwise on the command line is heard.
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	testscript.Main(m, map[string]func(){"msgw": main})
}

// given are the ports that scripts have.
var given sync.Map

// freePorts returns n ports of 127.0.0.1 that are free for TCP and UDP. They are below those
// that the kernel gives to connections, of which scripts beside this one make many, and are
// given once only: a script may not use them until long after.
func freePorts(n int) ([]string, error) {
	var ports []string
	for range n {
		for {
			port := strconv.Itoa(10000 + rand.IntN(20000))
			if _, taken := given.LoadOrStore(port, true); taken {
				continue
			}
			l, err := net.Listen("tcp", "127.0.0.1:"+port)
			if errors.Is(err, syscall.EADDRINUSE) {
				continue
			}
			if err != nil {
				return nil, err
			}
			defer l.Close()
			u, err := net.ListenPacket("udp", "127.0.0.1:"+port)
			if err != nil {
				continue
			}
			u.Close()
			ports = append(ports, port)
			break
		}
	}
	return ports, nil
}

// TestScripts runs the command line as an operator would; each script has a node's
// configuration in $WORK/a.toml and $WORK/b.toml, with free ports.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			ports, err := freePorts(12)
			if err != nil {
				return err
			}
			for i, name := range []string{"a", "b"} {
				p := ports[5*i:]
				text := fmt.Sprintf("name = %q\nstate = %q\nresolver = \"127.0.0.1:%s\"\n[listen]\nsmtp = \"127.0.0.1:%s\"\npop3 = \"127.0.0.1:%s\"\npop3s = \"127.0.0.1:%s\"\ndns = \"127.0.0.1:%s\"\npeer = \"127.0.0.1:%s\"\n[public]\nipv4 = [\"127.0.0.1\"]\nsmtp_port = %s\ndns_port = %s\n",
					name, e.WorkDir+"/"+name, ports[10], p[0], p[1], p[2], p[3], p[4], p[0], p[3])
				if name == "b" { // it serves the MTA-STS policy, too
					text = strings.Replace(text, "[listen]\n", "[listen]\nhttps = \"127.0.0.1:"+ports[11]+"\"\n", 1)
					e.Setenv("HTTPS_b", "127.0.0.1:"+ports[11])
				}
				if err := os.WriteFile(e.WorkDir+"/"+name+".toml", []byte(text), 0o600); err != nil {
					return err
				}
				e.Setenv("SMTP_"+name, "127.0.0.1:"+p[0])
				e.Setenv("SMTP_PORT_"+name, p[0])
				e.Setenv("DNS_"+name, "127.0.0.1:"+p[3])
			}
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":   cmdExits,
			"retry":   cmdRetry,
			"oneline": cmdOneLine,
			"ehlo":    cmdEHLO,
			"rcpt":    cmdRCPT,
			"signed":  cmdSigned,
			"query":   cmdQuery,
			"policy":  cmdPolicy,
			"shows":   cmdShows,
		},
	})
}

// cmdQuery waits until a node's DNS answers a name with a text within the records of a type,
// or with none of them if there is no text: query NODE NAME TYPE [TEXT].
func cmdQuery(ts *testscript.TestScript, _ bool, args []string) {
	m := new(dns.Msg).SetQuestion(args[1]+".", dns.StringToType[args[2]])
	var got string
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		r, err := dns.Exchange(m, ts.Getenv("DNS_"+args[0]))
		if err != nil {
			got = err.Error()
			continue
		}
		got = ""
		for _, rr := range r.Answer {
			got += strings.ReplaceAll(rr.String(), "\t", " ") + "\n"
		}
		if len(args) == 3 && got == "" || len(args) == 4 && strings.Contains(got, args[3]) {
			return
		}
	}
	ts.Fatalf("%v is answered %q", args[1:], got)
}

// cmdPolicy fetches the MTA-STS policy of a host from a node, whose certificate must be for it
// and by the CA in a file, and expects text: policy NODE HOST CAFILE TEXT.
func cmdPolicy(ts *testscript.TestScript, _ bool, args []string) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ts.ReadFile(args[2])))
	c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, ts.Getenv("HTTPS_"+args[0]))
		}}}
	var got string
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		res, err := c.Get("https://" + args[1] + "/.well-known/mta-sts.txt")
		if err != nil {
			got = err.Error() // the certificate may not have the name yet
			continue
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if got = res.Status + " " + string(b); err == nil && strings.Contains(got, args[3]) {
			return
		}
	}
	ts.Fatalf("policy of %s: %q", args[1], got)
}

// cmdEHLO checks that a node offers something: ehlo NODE TEXT.
func cmdEHLO(ts *testscript.TestScript, _ bool, args []string) {
	if got := smtpReply(ts, args[0]); !strings.Contains(got, args[1]+"\n") {
		ts.Fatalf("EHLO was answered %q, want %q within", got, args[1])
	}
}

// cmdRCPT checks what a node answers for a mailbox: rcpt NODE MAILBOX ANSWER.
func cmdRCPT(ts *testscript.TestScript, _ bool, args []string) {
	got := smtpReply(ts, args[0], "MAIL FROM:<>", "RCPT TO:<"+args[1]+"@msgw.example.com>")
	if !strings.HasPrefix(got, args[2]) {
		ts.Fatalf("RCPT was answered %q, want %q", got, args[2])
	}
}

// smtpReply says EHLO and the commands to a node and returns the last reply.
func smtpReply(ts *testscript.TestScript, node string, commands ...string) (reply string) {
	c, err := textproto.Dial("tcp", ts.Getenv("SMTP_"+node))
	ts.Check(err)
	defer c.Close()
	_, _, err = c.ReadResponse(220)
	ts.Check(err)
	for _, line := range append([]string{"EHLO client.example.net"}, commands...) {
		ts.Check(c.PrintfLine("%s", line))
		code, text, err := c.ReadResponse(0)
		ts.Check(err)
		reply = fmt.Sprintf("%d %s\n", code, text)
	}
	return reply
}

// cmdSigned checks that a node's MX answer is signed by a key that it has: signed NODE.
func cmdSigned(ts *testscript.TestScript, _ bool, args []string) {
	ask := func(qtype uint16) []dns.RR {
		q := new(dns.Msg).SetQuestion("msgw.example.com.", qtype).SetEdns0(1232, true)
		m, err := dns.Exchange(q, ts.Getenv("DNS_"+args[0]))
		ts.Check(err)
		return m.Answer
	}
	var set []dns.RR
	var sigs []*dns.RRSIG
	for _, rr := range ask(dns.TypeMX) {
		if s, ok := rr.(*dns.RRSIG); ok {
			sigs = append(sigs, s)
		} else {
			set = append(set, rr)
		}
	}
	for _, rr := range ask(dns.TypeDNSKEY) {
		if k, ok := rr.(*dns.DNSKEY); ok && len(sigs) == 1 && sigs[0].KeyTag == k.KeyTag() {
			ts.Check(sigs[0].Verify(k, set))
			return
		}
	}
	ts.Fatalf("MX %v with signatures %v", set, sigs)
}

// cmdExits runs a command and checks its exit code: exits CODE COMMAND [ARG...].
func cmdExits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	code := 0
	var ee *exec.ExitError
	if errors.As(err, &ee) {
		code = ee.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

// cmdRetry runs a command until it succeeds, for at most 20 s.
func cmdRetry(ts *testscript.TestScript, _ bool, args []string) {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := ts.Exec(args[0], args[1:]...)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			ts.Fatalf("%s: %v", strings.Join(args, " "), err)
		}
	}
}

// cmdShows repeats a command that works until it prints a text, or does not any more:
// [!] shows TEXT COMMAND...
func cmdShows(ts *testscript.TestScript, neg bool, args []string) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		ts.Check(ts.Exec(args[1], args[2:]...))
		if got := ts.ReadFile("stdout"); strings.Contains(got, args[0]) != neg {
			return
		} else if time.Now().After(end) {
			ts.Fatalf("%s: %s", strings.Join(args, " "), got)
		}
	}
}

// cmdOneLine checks that the last command complained in one line, and perhaps a hint.
func cmdOneLine(ts *testscript.TestScript, _ bool, _ []string) {
	lines := strings.Split(strings.TrimSpace(ts.ReadFile("stderr")), "\n")
	if !strings.HasPrefix(lines[0], "msgw: ") || len(lines) > 2 || len(lines) == 2 && !strings.HasPrefix(lines[1], "hint: ") {
		ts.Fatalf("expected one line, and perhaps a hint: %q", lines)
	}
}
