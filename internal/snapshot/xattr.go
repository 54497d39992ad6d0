package snapshot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

const (
	xattrRecord   = "SCHILY.xattr."
	overlayPrefix = "trusted.overlay."
	opaqueXattr   = overlayPrefix + "opaque"
	aclPrefix     = "system.posix_acl_"
)

// fillXattrs takes over the extended attributes that a layer may set.
func (e *entry) fillXattrs(records map[string]string) error {
	for key, value := range records {
		name, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		value, keep, err := xattr(name, value)
		if err != nil {
			return fmt.Errorf("attribute %s: %w", quote(name), err)
		}
		if !keep {
			continue
		}
		if e.xattrs == nil {
			e.xattrs = map[string]string{}
		}
		e.xattrs[name] = value
	}
	return nil
}

// xattr says whether an attribute is kept, and with what value.
func xattr(name, value string) (_ string, keep bool, err error) {
	if len(name) > maxComponent {
		return "", false, errors.New("its name is too long")
	}
	prefix, rest, _ := strings.Cut(name, ".")
	switch {
	case strings.HasPrefix(name, overlayPrefix):
		return overlayXattr(name, value)
	case strings.HasPrefix(name, aclPrefix):
		_, err := diskACL(value)
		return value, true, err
	case rest == "":
		return "", false, errors.New("it has no name after its class")
	case prefix == "user", prefix == "trusted", prefix == "security":
		return value, true, nil
	}
	return "", false, errors.New("its class is neither user, trusted, security nor a POSIX access control list")
}

// overlayXattr: a layer that was taken from an overlay may carry that overlay's notes. Some mean nothing elsewhere;
// those that would make a container's overlay look elsewhere for content are refused.
func overlayXattr(name, value string) (string, bool, error) {
	switch strings.TrimPrefix(name, overlayPrefix) {
	case "opaque":
		return value, value == "y", nil
	case "origin", "impure", "nlink", "upper", "uuid", "protattr":
		return "", false, nil
	}
	return "", false, errors.New("it would redirect the overlay")
}

// diskXattr is the value that ext4 stores of an attribute that xattr has let pass.
func diskXattr(name, value string) (string, error) {
	if strings.HasPrefix(name, aclPrefix) {
		return diskACL(value)
	}
	return value, nil
}

// What access control lists consist of, as they are read and set and as ext4 stores them.
const (
	aclVersion, aclDiskVersion = 2, 1

	aclUser, aclGroup       = 0x02, 0x08
	aclUserObj, aclGroupObj = 0x01, 0x04
	aclMask, aclOther       = 0x10, 0x20
)

var errACL = errors.New("it is no access control list")

// diskACL turns an access control list from the form in which it is read and set, version 2, into the one that ext4
// stores, version 1: there entries without a qualifier have none.
func diskACL(value string) (string, error) {
	in := []byte(value)
	if len(in) < 4 || len(in)%8 != 4 || binary.LittleEndian.Uint32(in) != aclVersion {
		return "", errACL
	}
	out := binary.LittleEndian.AppendUint32(nil, aclDiskVersion)
	for in = in[4:]; len(in) > 0; in = in[8:] {
		switch binary.LittleEndian.Uint16(in) {
		case aclUser, aclGroup:
			out = append(out, in[:8]...)
		case aclUserObj, aclGroupObj, aclMask, aclOther:
			out = append(out, in[:4]...)
		default:
			return "", errACL
		}
	}
	return string(out), nil
}

// readACL is the way back.
func readACL(value string) (string, error) {
	in := []byte(value)
	if len(in) < 4 || len(in)%4 != 0 || binary.LittleEndian.Uint32(in) != aclDiskVersion {
		return "", errACL
	}
	out := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for in = in[4:]; len(in) > 0; {
		length := 4
		if tag := binary.LittleEndian.Uint16(in); tag == aclUser || tag == aclGroup {
			length = 8
		}
		if len(in) < length {
			return "", errACL
		}
		out = append(out, in[:length]...)
		if length == 4 {
			out = append(out, 0xff, 0xff, 0xff, 0xff)
		}
		in = in[length:]
	}
	return string(out), nil
}
