package dnsplugin

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"msgw/dnsplugin/plugintest"
)

// through sends q as CoreDNS does, by UDP or TCP, and returns what comes.
func through(t testing.TB, h *Handler, q *dns.Msg, tcp bool) *dns.Msg {
	t.Helper()
	rec := &plugintest.Recorder{ResponseWriter: test.ResponseWriter{TCP: tcp}}
	if _, err := h.ServeDNS(t.Context(), request.NewScrubWriter(q, rec), q); err != nil || rec.Msg == nil {
		t.Fatalf("%v: %v", q, err)
	}
	return rec.Msg
}

// Whatever comes of an answer that was kept is what a handler says that keeps none, but for
// the draw: every flag, section and size, signed and not.
func TestPreparedIsTheSame(t *testing.T) {
	t.Parallel()
	for _, z := range []*Zone{fullZone(t), signed(t, fullZone(t))} {
		h := handler(t, Options{Source: sourceOf(z), NSID: "one"})
		random := rand.New(rand.NewPCG(7, 7))
		for range 4000 {
			tc := answers[random.IntN(len(answers))]
			q := askType(tc.name, tc.qtype)
			q.Id, q.RecursionDesired, q.CheckingDisabled = uint16(random.Uint32()), random.IntN(2) == 0, random.IntN(2) == 0
			switch random.IntN(4) {
			case 0:
			case 1:
				q.SetEdns0(512, random.IntN(2) == 0)
			case 2:
				q.SetEdns0(uint16(1000+random.IntN(3000)), random.IntN(2) == 0)
			default:
				q.SetEdns0(4096, random.IntN(2) == 0)
				q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
			}
			if random.IntN(8) == 0 {
				q.Question[0].Name = strings.ToUpper(q.Question[0].Name)
			}
			tcp := random.IntN(3) == 0
			got := through(t, h, q.Copy(), tcp)
			fresh := handler(t, Options{Source: sourceOf(z), NSID: "one"})
			fresh.signer = h.signer // signatures differ each time they are made
			want := through(t, fresh, q.Copy(), tcp)
			if a, b := text(sorted(got)), text(sorted(want)); a != b || got.Id != q.Id || got.MsgHdr != want.MsgHdr {
				t.Fatalf("%v, TCP %v:\nkept\n%s\nnew\n%s\n%v\n%v", q, tcp, a, b, got.MsgHdr, want.MsgHdr)
			}
		}
		ix := h.index()
		if n := len(*ix.prepared.Load()); n < 10 || n > maxPrepared {
			t.Errorf("%d answers are kept", n)
		}
	}
}

// sorted gives each section in an order of its own: that of drawn answers says nothing.
func sorted(m *dns.Msg) *dns.Msg {
	m = m.Copy()
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		slices.SortFunc(section, func(a, b dns.RR) int { return strings.Compare(a.String(), b.String()) })
	}
	return m
}

// Answers that are kept are drawn as often as others.
func TestPreparedShares(t *testing.T) {
	t.Parallel()
	z := twoHosts()
	z.Hosts[0].Weight, z.Hosts[1].Weight = 3, 1
	h := handler(t, Options{Source: sourceOf(z)})
	first := map[string]float64{}
	const n = 20000
	for range n {
		m := through(t, h, question("gw.example.org.", "MX"), false)
		first[m.Answer[0].(*dns.MX).Mx]++
	}
	chi := (first["gw1.gw.example.org."]-n*0.75)*(first["gw1.gw.example.org."]-n*0.75)/(n*0.75) +
		(first["gw2.gw.example.org."]-n*0.25)*(first["gw2.gw.example.org."]-n*0.25)/(n*0.25)
	if chi > 24 { // once in a million
		t.Errorf("%v, chi-square %.1f", first, chi)
	}
	if got := slices.Sorted(maps.Keys(first)); len(got) != 2 {
		t.Errorf("hosts %v", got)
	}
}

// What is kept is used for an hour, and holds nothing that a stranger can multiply.
func TestPreparedIsBounded(t *testing.T) {
	t.Parallel()
	h := handler(t, Options{Source: sourceOf(fullZone(t))})
	for size := range 5000 {
		through(t, h, question("gw.example.org.", "SOA").SetEdns0(uint16(size), size%2 == 0), false)
		through(t, h, question("gw.example.org.", "TXT"), false)
	}
	ix := h.index()
	if n := len(*ix.prepared.Load()); n > 4 {
		t.Errorf("%d answers are kept for one question", n)
	}
	q := question("gw.example.org.", "SOA")
	key, ok := h.preparable(ix, q, cookie{}, true)
	if !ok {
		t.Fatal("the SOA is not kept")
	}
	through(t, h, q, false)
	if ix.ready(&key, time.Now()) == nil || ix.ready(&key, time.Now().Add(preparedLife+time.Second)) != nil {
		t.Error("not kept for its time")
	}
}

// A prepared answer allocates hardly anything.
func TestPreparedAllocations(t *testing.T) {
	z := twoHosts()
	z.Hosts[0].Weight, z.Hosts[1].Weight = 3, 1
	h := handler(t, Options{Source: sourceOf(z)})
	q, w := question("gw.example.org.", "MX").SetEdns0(1232, false), &packer{}
	ask := func() {
		if _, err := h.ServeDNS(context.Background(), w, q); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		ask()
	}
	if n := testing.AllocsPerRun(1000, ask); n > 1 {
		t.Errorf("%v allocations for a prepared answer", n)
	}
}
