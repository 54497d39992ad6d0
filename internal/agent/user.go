package agent

import (
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	agentv1 "github.com/pistis-run/pistis/api/agent/v1"
	"github.com/pistis-run/pistis/internal/task"
	"github.com/pistis-run/pistis/internal/userdb"
)

// resolveUser sets the process's user and home directory. Without a request the spec's numbers stay as they
// are, and only the home directory is looked up.
func resolveUser(root string, req *agentv1.User, p *specs.Process) (*agentv1.ResolvedUser, error) {
	ask := task.UserRequest{
		User: strconv.FormatUint(uint64(p.User.UID), 10), GID: &p.User.GID,
		SupplementalGroups: p.User.AdditionalGids, Strict: true,
	}
	if req != nil {
		ask = task.UserRequest{User: req.User, GID: req.Gid, SupplementalGroups: req.SupplementalGroups, Strict: req.Strict}
	}
	id, err := userdb.Resolve(root, ask)
	if err != nil {
		return nil, err
	}
	p.User.UID, p.User.GID, p.User.AdditionalGids, p.User.Username = id.UID, id.GID, id.AdditionalGIDs, ""
	if !hasEnv(p.Env, "HOME") {
		p.Env = append(p.Env, "HOME="+id.Home)
	}
	return &agentv1.ResolvedUser{Uid: id.UID, Gid: id.GID, AdditionalGids: id.AdditionalGIDs}, nil
}

func hasEnv(env []string, name string) bool {
	return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
}

// inheritHome gives a process that runs as the container's user that user's home.
func inheritHome(p *specs.Process, own specs.Process) {
	if hasEnv(p.Env, "HOME") {
		return
	}
	for _, e := range own.Env {
		if strings.HasPrefix(e, "HOME=") {
			p.Env = append(p.Env, e)
		}
	}
}
