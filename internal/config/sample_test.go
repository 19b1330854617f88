package config

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"

	"countersign/internal/tomldoc"
)

const (
	applianceSample = "../../config.toml"
	relaySample     = "relay.toml"
)

// TestSampleConfig holds that the shipped file has every key, gives each its
// default, and loads.
func TestSampleConfig(t *testing.T) {
	checkSample(t, applianceSample, &Appliance{})
	var written Appliance
	if _, err := toml.DecodeFile(applianceSample, &written); err != nil {
		t.Fatal(err)
	}
	if want := DefaultAppliance(); !reflect.DeepEqual(written, want) {
		t.Errorf("the sample differs from the defaults:\ngot  %+v\nwant %+v", written, want)
	}
	a, err := LoadAppliance(applianceSample)
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, got, want string }{
		{"state_dir", a.StateDir, "/var"},
		{"hsm.pin", a.HSM.Pin.Path, "/var/pin"},
		{"store.path", a.Store.Path, "/var/countersign.db"},
		{"admin.socket", a.Admin.Socket, "/var/admin.sock"},
	} {
		if tc.got != root+tc.want {
			t.Errorf("%s is %s, want %s", tc.name, tc.got, root+tc.want)
		}
	}
	if a.HSM.Module != "/usr/lib/softhsm/libsofthsm2.so" || a.HSM.WorkerBinary != "" {
		t.Errorf("hsm: %+v", a.HSM)
	}
}

func TestSampleRelay(t *testing.T) {
	checkSample(t, relaySample, &Relay{})
	var written Relay
	if _, err := toml.DecodeFile(relaySample, &written); err != nil {
		t.Fatal(err)
	}
	want := DefaultRelay()
	want.Accept = []uint64{100, 200, 300}
	want.Appliance, want.Links = written.Appliance, written.Links // without default
	want.Hook.Command, want.Hook.Environment = []string{}, []string{}
	if !reflect.DeepEqual(written, want) {
		t.Errorf("the sample differs from the defaults:\ngot  %+v\nwant %+v", written, want)
	}
	r, err := LoadRelay(relaySample)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Links) != 1 || r.Links[0].Class != "wire" || r.Links[0].Listen.String() != "tcp:127.0.0.1:7443" {
		t.Errorf("links: %+v", r.Links)
	}
	if !filepath.IsAbs(r.Appliance.CA) || r.Display != "-" || r.Order.Socket != "" {
		t.Errorf("paths: %q, %q, %q", r.Appliance.CA, r.Display, r.Order.Socket)
	}
}

// checkSample compares the keys of a file with those of a struct, in both
// directions, and requires one comment line above each.
func checkSample(t *testing.T, path string, configuration any) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(raw), "\n")
	var written []string
	md, err := toml.Decode(string(raw), new(map[string]any))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range tomldoc.Locate(string(raw), md) {
		written = append(written, k.Path.String())
		text := lines[k.Line-1]
		if !strings.HasPrefix(text, "[") && !strings.HasPrefix(lines[k.Line-2], "# ") {
			t.Errorf("%s:%d: %s has no comment", path, k.Line, k.Path)
		}
	}
	keys := Keys(configuration)
	if len(keys) < 20 {
		t.Fatalf("only %d keys found by reflection: %v", len(keys), keys)
	}
	for _, k := range keys {
		if strings.HasPrefix(k, "hsm.pin.") || strings.HasPrefix(k, "hsm.second.pin.") {
			continue // one of several forms, all told in the comment
		}
		if !slices.Contains(written, k) {
			t.Errorf("%s lacks %s", path, k)
		}
	}
	for _, k := range written {
		if !slices.Contains(keys, k) {
			t.Errorf("%s has %s, no struct does", path, k)
		}
	}
}
