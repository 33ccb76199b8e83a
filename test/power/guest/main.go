// Command guest is the first and only program of the machine that test/power cuts the
// power of: it mounts the disk, runs nodes as their service manager would, and carries
// connections from the machine's network card to them. What it and the nodes say goes to
// the serial console.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// settings are in /guest.json of the initrd.
type settings struct {
	Mount   string              // where the disk goes
	Modules []string            // files to load, in order
	Address string              // IPv4 address of the network card
	Run     map[string][]string // name of a node -> its command line
	Forward map[string]string   // port on Address -> "tcp HOST:PORT" or "unix PATH"
}

func main() {
	err := run()
	// The kernel panics when this program ends, and that switches the machine off.
	fmt.Println("guest: cannot go on:", err)
}

func run() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := unix.Mount(m[0], m[1], m[0], unix.MS_NOSUID, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	b, err := os.ReadFile("/guest.json")
	if err != nil {
		return err
	}
	var s settings
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("guest.json: %w", err)
	}
	for _, name := range s.Modules {
		if err := load(name); err != nil {
			return fmt.Errorf("module %s: %w", filepath.Base(name), err)
		}
	}
	if err := disk(s.Mount); err != nil {
		return err
	}
	for name, address := range map[string]string{"lo": "127.0.0.1", "eth0": s.Address} {
		if err := up(name, address); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for port, to := range s.Forward {
		l, err := net.Listen("tcp", net.JoinHostPort(s.Address, port))
		if err != nil {
			return err
		}
		network, address, _ := strings.Cut(to, " ")
		go forward(l, network, address)
	}
	ended := make(chan error)
	for name, argv := range s.Run {
		go func() { ended <- keep(name, argv) }()
	}
	fmt.Printf("guest: up after %s\n", uptime())
	return <-ended
}

func load(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// disk mounts the disk as the appliance mounts its data partition.
func disk(dir string) error {
	const dev = "/dev/vda"
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(dev); err == nil {
			break
		} else if time.Now().After(end) {
			return err
		}
	}
	if err := unix.Mount(dev, dir, "ext4", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "errors=remount-ro"); err != nil {
		return fmt.Errorf("mount the disk: %w", err)
	}
	return nil
}

// up gives a network device an address and starts it.
func up(name, address string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	mask := []byte{255, 255, 255, 0}
	if name == "lo" {
		mask = []byte{255, 0, 0, 0}
	}
	for _, set := range []struct {
		request uint
		value   []byte
	}{{unix.SIOCSIFADDR, net.ParseIP(address).To4()}, {unix.SIOCSIFNETMASK, mask}} {
		ifr, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := ifr.SetInet4Addr(set.value); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, set.request, ifr); err != nil {
			return err
		}
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// keep runs a node, and again whenever it ends.
func keep(name string, argv []string) error {
	for {
		cmd := exec.Command(argv[0], argv[1:]...)
		cmd.Dir, cmd.Env = "/", []string{}
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stdout
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fmt.Printf("guest: %s ended: %v\n", name, cmd.Wait())
		time.Sleep(time.Second)
	}
}

func forward(l net.Listener, network, address string) {
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Println("guest:", err)
			return
		}
		go func() {
			defer c.Close()
			to, err := net.DialTimeout(network, address, 10*time.Second)
			if err != nil {
				return // the host sees a connection without a greeting, and tries again
			}
			defer to.Close()
			var both sync.WaitGroup
			for _, d := range [][2]net.Conn{{to, c}, {c, to}} {
				both.Go(func() {
					// Either side may be gone: whoever waits at the other one sees that.
					_, _ = io.Copy(d[0], d[1])
					if w, ok := d[0].(interface{ CloseWrite() error }); ok {
						_ = w.CloseWrite()
					}
				})
			}
			both.Wait()
		}()
	}
}

func uptime() string {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err.Error()
	}
	seconds, _, _ := strings.Cut(string(b), " ")
	return seconds + " s"
}
