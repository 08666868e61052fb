//! Where the daemon listens, and where the other commands look for it.

use std::path::{Path, PathBuf};

use crate::api::{Client, ClientError, Request, SOCKET};

use super::args::Common;
use super::{set, state_path};

/// Where the system's daemon listens (`RuntimeDirectory=tributary`); OpenWrt has no `/run`.
const SYSTEM: [&str; 2] = ["/run/tributary", "/var/run/tributary"];

/// Where a daemon listens: as asked, in the directory that systemd made for that, else beside its state.
pub(super) fn listens_at(common: &Common) -> PathBuf {
    listening(
        common.socket.as_deref(),
        set("RUNTIME_DIRECTORY"),
        &state_path(common),
    )
}

/// Asks the first daemon that is there: at the socket that was named, or else that of the state directory; where none
/// was named either, also the system's.
///
/// # Errors
/// Where none is there, or it may not be asked.
pub(super) async fn ask(common: &Common, request: &Request) -> Result<Client, ClientError> {
    let mut failure = ClientError::NoDaemon;
    for socket in sockets_of(common) {
        match Client::ask(&socket, request).await {
            Err(ClientError::NoDaemon) => {}
            // Another one may be for this user.
            Err(error @ ClientError::NotAllowed { .. }) => failure = error,
            decided => return decided,
        }
    }
    Err(failure)
}

/// Where daemons are looked for, the likeliest first.
pub(super) fn sockets_of(common: &Common) -> Vec<PathBuf> {
    let state = state_path(common);
    sockets(common.socket.as_deref(), &state, common.state_dir.is_some())
}

/// The same, for messages.
pub(super) fn places(common: &Common) -> String {
    let places: Vec<String> = sockets_of(common)
        .iter()
        .map(|s| s.display().to_string())
        .collect();
    places.join(", ")
}

fn sockets(named: Option<&Path>, state: &Path, state_is_named: bool) -> Vec<PathBuf> {
    if let Some(socket) = named {
        return vec![socket.to_owned()];
    }
    let own = state.join(SOCKET);
    if state_is_named {
        return vec![own];
    }
    let there = SYSTEM.iter().find(|dir| Path::new(dir).exists());
    vec![own, Path::new(there.unwrap_or(&SYSTEM[0])).join(SOCKET)]
}

fn listening(named: Option<&Path>, runtime: Option<PathBuf>, state: &Path) -> PathBuf {
    if let Some(socket) = named {
        return socket.to_owned();
    }
    // systemd separates several by colons.
    let first = runtime.and_then(|dirs| Some(PathBuf::from(dirs.to_str()?.split(':').next()?)));
    first.unwrap_or_else(|| state.to_owned()).join(SOCKET)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_socket_comes_before_a_named_state_and_that_before_the_systems() {
        let (state, named) = (Path::new("/s"), Path::new("/n/sock"));
        assert_eq!(sockets(Some(named), state, true), [named]);
        assert_eq!(sockets(None, state, true), [Path::new("/s/control.sock")]);
        assert_eq!(
            sockets(None, state, false),
            ["/s/control.sock", "/run/tributary/control.sock"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_daemon_listens_where_it_is_told_else_in_its_runtime_directory_else_beside_its_state() {
        let state = Path::new("/s");
        let listens = |named: Option<&str>, runtime: Option<&str>| {
            listening(named.map(Path::new), runtime.map(PathBuf::from), state)
        };
        assert_eq!(listens(Some("/n/sock"), Some("/r")), Path::new("/n/sock"));
        assert_eq!(listens(None, Some("/r")), Path::new("/r/control.sock"));
        assert_eq!(listens(None, Some("/r:/other")), Path::new("/r/control.sock"));
        assert_eq!(listens(None, None), Path::new("/s/control.sock"));
    }
}
