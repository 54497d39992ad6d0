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

// diskACL turns an access control list from the form in which it is read and set, version 2, into the one that ext4
// stores, version 1: there entries without a qualifier have none.
func diskACL(value string) (string, error) {
	const (
		version, diskVersion = 2, 1
		user, group          = 0x02, 0x08
		userObj, groupObj    = 0x01, 0x04
		mask, other          = 0x10, 0x20
	)
	in := []byte(value)
	if len(in) < 4 || len(in)%8 != 4 || binary.LittleEndian.Uint32(in) != version {
		return "", errors.New("it is no access control list")
	}
	out := binary.LittleEndian.AppendUint32(nil, diskVersion)
	for in = in[4:]; len(in) > 0; in = in[8:] {
		switch binary.LittleEndian.Uint16(in) {
		case user, group:
			out = append(out, in[:8]...)
		case userObj, groupObj, mask, other:
			out = append(out, in[:4]...)
		default:
			return "", errors.New("it is no access control list")
		}
	}
	return string(out), nil
}
