// Command probe runs in a guest of the lab and lets a client outside see whether the guest goes on as if nothing had
// happened: it answers each line that a TCP connection sends on port 7 with the line and a report (JSON, Report),
// watches the guest's clocks on every CPU, and keeps dirtying memory and a disk, if there is one.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Report is what the probe says with each echoed line.
type Report struct {
	Line string
	// Boot is different after each start of the probe.
	Boot string
	// Uptime is CLOCK_BOOTTIME in nanoseconds.
	Uptime int64
	CPUs   int
	// Backwards counts, over all CPUs, readings of CLOCK_MONOTONIC or CLOCK_REALTIME that were smaller than one
	// before; JumpNS is the largest step between two readings on one CPU.
	Backwards, JumpNS int64
	// Churned counts rewritten memory pages; Wrong those that did not hold what was written into them.
	Churned, Wrong int64
	// Blocks counts disk blocks that were written, flushed and read back; DiskError is the first error there.
	Blocks    int64
	DiskError string
}

// state is the report in the making.
type state struct {
	mu sync.Mutex
	r  Report
}

func (s *state) change(f func(r *Report)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(&s.r)
}

func main() {
	s := &state{}
	var id [8]byte
	if _, err := unix.Getrandom(id[:], unix.GRND_INSECURE); err != nil {
		fmt.Println("probe: random:", err)
	}
	s.r.Boot, s.r.CPUs = hex.EncodeToString(id[:]), runtime.NumCPU()
	for cpu := range runtime.NumCPU() {
		go s.watch(cpu)
	}
	go s.churn()
	if f, err := os.OpenFile("/dev/vda", os.O_RDWR|unix.O_DIRECT, 0); err == nil {
		go s.write(f)
	}
	l, err := net.Listen("tcp4", ":7")
	if err != nil {
		fmt.Println("probe:", err)
		os.Exit(1)
	}
	fmt.Println("probe: listening")
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Println("probe:", err)
			os.Exit(1)
		}
		go s.answer(c)
	}
}

func (s *state) answer(c net.Conn) {
	defer c.Close()
	in, out := bufio.NewScanner(c), json.NewEncoder(c)
	for in.Scan() {
		s.mu.Lock()
		r := s.r
		s.mu.Unlock()
		r.Line, r.Uptime = in.Text(), now(unix.CLOCK_BOOTTIME)
		if out.Encode(r) != nil {
			return
		}
	}
}

func now(clock int32) int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		panic(err)
	}
	return t.Nano()
}

// clocks are the last readings, of any CPU.
var clocks struct {
	sync.Mutex
	last [2]int64
}

// watch reads the clocks on one CPU, again and again.
func (s *state) watch(cpu int) {
	runtime.LockOSThread()
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		fmt.Println("probe: affinity:", err)
	}
	var before [2]int64
	for ; ; time.Sleep(2 * time.Millisecond) {
		clocks.Lock()
		var read [2]int64
		back := int64(0)
		for i, c := range []int32{unix.CLOCK_MONOTONIC, unix.CLOCK_REALTIME} {
			read[i] = now(c)
			if read[i] < clocks.last[i] {
				back++
			}
			clocks.last[i] = read[i]
		}
		clocks.Unlock()
		jump := int64(0)
		for i := range read {
			if before[i] != 0 {
				jump = max(jump, read[i]-before[i])
			}
		}
		before = read
		s.change(func(r *Report) { r.Backwards, r.JumpNS = r.Backwards+back, max(r.JumpNS, jump) })
	}
}

// churn rewrites pages and looks whether they still hold what they should.
func (s *state) churn() {
	const pages, size = 512, 4096
	memory := make([]byte, pages*size)
	sums := make([][sha256.Size]byte, pages)
	for round := 1; ; round++ {
		n := round * 7 % pages
		page := memory[n*size : (n+1)*size]
		wrong := int64(0)
		if round > pages && sha256.Sum256(page) != sums[n] {
			wrong = 1
		}
		for i := range page {
			page[i] = byte(i*round + n)
		}
		sums[n] = sha256.Sum256(page)
		s.change(func(r *Report) { r.Churned, r.Wrong = r.Churned+1, r.Wrong+wrong })
		time.Sleep(time.Millisecond)
	}
}

// write writes blocks, flushes them and reads them back.
func (s *state) write(f *os.File) {
	const size = 4096
	// O_DIRECT wants whole pages, and mmap gives such.
	block, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		s.change(func(r *Report) { r.DiskError = err.Error() })
		return
	}
	for n := int64(1); ; n++ {
		for i := range block {
			block[i] = byte(int64(i) + n*31)
		}
		want := sha256.Sum256(block)
		at := n % 1024 * size
		_, err := f.WriteAt(block, at)
		if err == nil {
			err = f.Sync()
		}
		if err == nil {
			clear(block)
			_, err = f.ReadAt(block, at)
		}
		if err == nil && sha256.Sum256(block) != want {
			err = fmt.Errorf("block %d: not what was written", n%1024)
		}
		s.change(func(r *Report) {
			r.Blocks = n
			if err != nil && r.DiskError == "" {
				r.DiskError = err.Error()
			}
		})
		time.Sleep(20 * time.Millisecond)
	}
}
