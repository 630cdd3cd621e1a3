"""Write the pages of docs/ that are made from the code: ``python -m scripts.generate_docs``."""

from __future__ import annotations

from pathlib import Path

from meshlib.cli.reference import reference
from meshlib.settings import table
from scripts import diagrams

DOCS = Path(__file__).parents[1] / "docs"

SETTINGS = """\
# Settings

Everything that can be set, is set by an environment variable, by the same name in lower case and without its prefix in code
(`Mesh.from_env(port=8080)`, `Settings(port=8080)`), or by a framework's own settings. The strongest says it: code, then the
environment, then the framework, then the default. An empty variable is an unset one.

A value that cannot be used is refused when it is read, by a `ConfigError` that names the variable, where its value came from,
what is wrong with it, and an example. A variable that starts as ours do and is none of them is a warning. Secrets are never
shown, and those in files are read again when the files change.

This page is made from the code: `make docs` writes it, `python -m meshlib.settings` prints the table.

{table}

## Notes

- Seconds are decimal numbers: `0.5`. Labels are pairs: `team=pay,track=canary`. IPv6 addresses with a port stand in brackets:
  `[2001:db8::1]:8080`.
- A namespace separates whole environments that share a registry. Without one, services are seen by all who have none either.
- The state directory is, by default, `meshlib` in `$XDG_STATE_HOME` or `~/.local/state`, and where that cannot be written a
  directory of this user's below the temporary one. It holds the disk snapshots and the registry of `local://`.
"""


COMMANDS = """\
# Command line

`pip install 'meshlib-cloud[cli]'` brings the script `mesh` (also `python -m meshlib`, `flask mesh`, `manage.py mesh`). Its
settings are those of the library: `MESH_*` variables, over those of the app whose command line it is part of. All commands
take `--registry`, `--namespace`, `--state-dir`, `--token-file`, `--registry-timeout` and `--json`, before or after their name.

- **`--json`** prints one JSON document on standard output and nothing else (`watch`: one a line, for each change); an error is
  a document, too: `{{"error": {{"kind": …, "message": …}}}}`. Fields stay as they are; new ones may come. What goes on
  meanwhile is told on standard error.
- **Exit codes**: 0 fine; 1 the answer is no (not found, nobody to call, an error status, a finding, no registry); 2 wrong
  usage or settings.
- **Completion**: `mesh --install-completion`.

This page is made from the code: `make docs` writes it.

## Commands

{commands}
## Draining and maintenance of other processes

The status of an instance is what its processes say, with each heartbeat; what another process writes into the registry, they
put right. So they are told, by the file in the state directory that the workers of one port share: run the command on their
machine, as their user, with their `MESH_STATE_DIR`. It holds until all of them have ended, or it is undone (`--undo`, `--off`).

From elsewhere only the registry itself can help. Consul has a maintenance mode: `mesh maintenance` puts it on, through the
agent that the instance is registered with (`--registry consul://that-agent:8500`; the error names the node). Consumers heed it,
and heartbeats do not undo it. Draining is not known to Consul; etcd knows neither.

## Desired state

`mesh apply -f policies/` makes the policy documents what the files say. A file is one document, several with `---` between
them, or `services: {{orders: …, shop.prod.users: …}}`; a document names its `service`, or its file does (`orders.yaml`).
Versions are given by the store. All documents are checked before any is put; what is as it should be is left alone; what
somebody changes in between is not overwritten. Without `--prune` nothing is deleted, with it only documents of this namespace.

## What the doctor finds

`mesh doctor` changes nothing (on `local://` it makes the registry's file, as any process does). Rights are tried by writes
whose conditions never hold. `--ignore CODE` leaves a kind of finding out.

| code | what |
|---|---|
| `settings.invalid`, `settings.unknown` | a value that cannot be used; a variable that is none of ours, with the nearest one |
| `extras.missing`, `extras.version` | a library that the settings need, or one of a version that does not fit |
| `state.writable_by_others`, `state.foreign_owner`, `state.unusable`, `state.not_writable`, `state.remote_disk`, \
`state.full` | the state directory |
| `snapshot.expired`, `snapshot.damaged`, `snapshot.quarantined` | disk snapshots that a start would not use |
| `processes.no_locks`, `processes.stuck` | workers of one port cannot share their entry; they are alive, and not confirmed |
| `registry.unreachable`, `registry.server_down`, `registry.denied`, `registry.cannot_register` | no answer; one of several \
servers; credentials; the right to register |
| `clock.skew` | our clock and a registry's server's are more than 2 s apart |
| `kv.denied`, `kv.read_only` | policy documents cannot be read, or put (which apps need not do) |
| `policy.rejected` | a policy document that every process refuses |
| `service.not_passing` | a service that is registered, with nobody to call |
| `address.loopback`, `address.no_route`, `address.unreachable`, `port.silent` | what is advertised, seen from this machine |
| `instance.duplicate`, `instance.missing` | our id at another address; something serves, and is not listed |
"""


def pages() -> dict[Path, str]:
    """Every generated page and its content."""
    drawn = {DOCS / "diagrams" / f"{each.__name__}.svg": each() for each in (diagrams.call, diagrams.planes, diagrams.leaving)}
    return {
        DOCS / "settings.md": SETTINGS.format(table=table()),
        DOCS / "cli.md": COMMANDS.format(commands=reference()),
        **drawn,
    }


def main() -> None:
    """Write them."""
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
