package stats

import (
	"math"
	"reflect"
	"testing"

	"google.golang.org/protobuf/proto"

	statsv1 "github.com/pistis-run/pistis/api/stats/v1"
	"github.com/pistis-run/pistis/internal/task"
)

// fill gives every field of a value, and of what it points to, a number or a text of its own.
func fill(v reflect.Value, next *int) {
	*next++
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), next)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), next)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), next)
		fill(v.Index(1), next)
	case reflect.Uint64:
		v.SetUint(uint64(*next))
	case reflect.Float64:
		v.SetFloat(float64(*next%100) + 0.5)
	case reflect.String:
		v.SetString("name" + string(rune('a'+*next%26)))
	default:
		panic("a kind of field that this test does not know: " + v.Kind().String())
	}
}

// wired sends a message through its wire format.
func wired[M proto.Message](t *testing.T, m M) M {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := m.ProtoReflect().New().Interface().(M)
	if err := proto.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func same[T any](t *testing.T, there func(T) T) {
	t.Helper()
	var full, empty T
	fill(reflect.ValueOf(&full).Elem(), new(int))
	for _, want := range []T{full, empty} {
		if got := there(want); !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// TestNothingIsLost sends values in which every field is set, and those in which none is, there and back.
func TestNothingIsLost(t *testing.T) {
	same(t, func(v task.CPU) task.CPU { return DecodeCPU(wired(t, EncodeCPU(v))) })
	same(t, func(v task.Memory) task.Memory { return DecodeMemory(wired(t, EncodeMemory(v))) })
	same(t, func(v task.IO) task.IO { return *DecodeIO(wired(t, EncodeIO(&v))) })
	same(t, func(v task.PSI) task.PSI { return *DecodePSI(wired(t, EncodePSI(&v))) })
	same(t, func(v task.FileSystem) task.FileSystem { return *DecodeFileSystem(wired(t, EncodeFileSystem(&v))) })
	same(t, func(v []task.Interface) []task.Interface { return DecodeInterfaces(EncodeInterfaces(v)) })
}

func TestNone(t *testing.T) {
	if DecodeIO(EncodeIO(nil)) != nil || DecodePSI(EncodePSI(nil)) != nil || DecodeFileSystem(EncodeFileSystem(nil)) != nil || DecodeInterfaces(EncodeInterfaces(nil)) != nil {
		t.Error("what is not measured became something")
	}
	if got := DecodeCPU(nil); !reflect.DeepEqual(got, task.CPU{}) {
		t.Errorf("got %+v", got)
	}
	if got := DecodeMemory(nil); !reflect.DeepEqual(got, task.Memory{}) {
		t.Errorf("got %+v", got)
	}
}

// FuzzDecode: whatever a guest sends, shares of time are shares.
func FuzzDecode(f *testing.F) {
	for _, v := range []float64{0, -1, 1e300, math.NaN(), math.Inf(-1)} {
		data, err := proto.Marshal(&statsv1.CPUStats{Psi: &statsv1.PSI{Full: &statsv1.PSIData{Avg10: v}}})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var cpu statsv1.CPUStats
		if proto.Unmarshal(data, &cpu) != nil {
			return
		}
		if psi := DecodeCPU(&cpu).PSI; psi != nil {
			for _, v := range []float64{psi.Full.Avg10, psi.Full.Avg60, psi.Full.Avg300, psi.Some.Avg10, psi.Some.Avg60, psi.Some.Avg300} {
				if !(v >= 0 && v <= 100) {
					t.Errorf("a share of %v percent", v)
				}
			}
		}
	})
}
